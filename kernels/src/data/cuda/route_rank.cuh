// Stable places for the counting sort by expert, the same whatever order threads run in. A token's experts are all
// different, so a set bit for every (expert, token) says everything: a word of 32 tokens for each expert. Its
// population is the expert's count, and the bits below a token's own are the slots of that expert before it. Bits are
// set by integer atomics in shared memory.
#pragma once
#include <cstdint>

#include "data/cuda/route_token.cuh"

namespace nexus::cuda {

constexpr int kPassTokens = 128;  // that a block ranks at once
constexpr int words_of(int tokens) { return (tokens + 31) / 32; }

/// The token of slot i < 2^22: exact, since 2^32 / top_k is rounded up by less than 2^-32 · top_k <= 2^-27 of a token.
__device__ __forceinline__ int token_of(const RouteParams& p, int slot) {
  return p.desc.top_k == 1 ? slot : static_cast<int>(__umulhi(static_cast<unsigned>(slot), p.per_top_k));
}

/// marks: [words_of(tokens)][experts], zeroed before; token < tokens.
__device__ __forceinline__ void mark(unsigned* marks, int experts, int token, int expert) {
  atomicOr(marks + (token >> 5) * experts + expert, 1u << (token & 31));
}
__device__ __forceinline__ int marked(const unsigned* marks, int experts, int words, int expert) {
  int count = 0;
  for (int w = 0; w < words; ++w) count += __popc(marks[w * experts + expert]);
  return count;
}
/// cursors: [words][experts], by word the place of its first slot of the expert, whose first slot of all has `place`.
/// Returns the place behind the last.
__device__ __forceinline__ int set_cursors(const unsigned* marks, int experts, int words, int expert, int place,
                                           int* cursors) {
  for (int w = 0; w < words; ++w) {
    cursors[w * experts + expert] = place;
    place += __popc(marks[w * experts + expert]);
  }
  return place;
}
/// order[place] = first_slot + i for the block's slots i < slots, whose experts are ids.
__device__ __forceinline__ void place_slots(const RouteParams& p, const int32_t* ids, int slots, int first_slot,
                                            const unsigned* marks, const int* cursors) {
  for (int i = threadIdx.x; i < slots; i += blockDim.x) {
    const int token = token_of(p, i), at = (token >> 5) * p.desc.experts + ids[i];
    p.order[cursors[at] + __popc(marks[at] & ((1u << (token & 31)) - 1))] = first_slot + i;
  }
}

/// Exclusive sums over the experts, by all threads of the block: take(e, sum of count(e') over e' < e), in the thread
/// that was asked for count(e) last. sums: [32] words of shared memory. A barrier lies between all counts and the
/// takes.
template <class Count, class Take>
__device__ __forceinline__ void scan_experts(int experts, int* sums, Count&& count, Take&& take) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  int carry = 0;
  for (int base = 0; base < experts; base += blockDim.x) {
    const int e = base + threadIdx.x;
    const int own = e < experts ? count(e) : 0;
    int through = own;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int left = __shfl_up_sync(0xffffffffu, through, d);
      if (lane >= d) through += left;
    }
    if (lane == 31) sums[warp] = through;
    __syncthreads();
    const int of_warp = lane < warps ? sums[lane] : 0;
    const int before = __reduce_add_sync(0xffffffffu, lane < warp ? of_warp : 0);
    if (e < experts) take(e, carry + before + through - own);
    if (base + static_cast<int>(blockDim.x) >= experts) break;
    carry += __reduce_add_sync(0xffffffffu, of_warp);
    __syncthreads();  // all have read the sums
  }
}

}  // namespace nexus::cuda
