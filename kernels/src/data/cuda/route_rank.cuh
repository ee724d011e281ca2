// Stable ranks for the counting sort by expert, without atomics on the result's order: each of a block's ranking warps
// owns a contiguous run of slots and walks it 32 at a time; a slot's place is its warp's cursor for that expert plus
// the number of lower lanes with the same expert.
#pragma once
#include <cstdint>

namespace nexus::cuda {

/// The contiguous run [first, last) of warp `warp` of WARPS over n slots.
template <int WARPS>
__device__ __forceinline__ void run_of(int warp, int n, int& first, int& last) {
  const int per_warp = (n + WARPS - 1) / WARPS;
  first = min(warp * per_warp, n);
  last = min(first + per_warp, n);
}

/// histogram: this warp's [experts], zeroed before. Counts are integers: the order of the additions does not matter.
__device__ __forceinline__ void count_run(const int32_t* ids, int first, int last, int* histogram) {
  for (int i = first + (threadIdx.x & 31); i < last; i += 32) atomicAdd(histogram + ids[i], 1);
}

/// cursor: this warp's [experts], the place of its first slot of each expert. order[place] = first_slot + i.
__device__ __forceinline__ void place_run(const int32_t* ids, int first, int last, int first_slot, int* cursor,
                                          int32_t* order) {
  const int lane = threadIdx.x & 31;
  for (int base = first; base < last; base += 32) {
    const int i = base + lane;
    const bool active = i < last;
    const int expert = active ? ids[i] : -1;  // the idle lanes form a class of their own
    const unsigned same = __match_any_sync(0xffffffffu, expert);
    int start = 0;
    if (active) start = cursor[expert];
    __syncwarp();
    if (active) {
      order[start + __popc(same & ((1u << lane) - 1))] = first_slot + i;
      if (lane == 31 - __clz(same)) cursor[expert] = start + __popc(same);
    }
    __syncwarp();
  }
}

/// Exclusive sums of counts[0..n) into sums[0..n] by one whole warp; sums[n] is the total.
__device__ __forceinline__ void exclusive_scan(const int* counts, int n, int* sums) {
  const int lane = threadIdx.x & 31;
  int carry = 0;
  for (int base = 0; base < n; base += 32) {
    const int own = base + lane < n ? counts[base + lane] : 0;
    int through = own;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int left = __shfl_up_sync(0xffffffffu, through, d);
      if (lane >= d) through += left;
    }
    if (base + lane < n) sums[base + lane] = carry + through - own;
    carry += __shfl_sync(0xffffffffu, through, 31);
  }
  if (lane == 0) sums[n] = carry;
}

}  // namespace nexus::cuda
