// The last launch of routing many tokens by chunks, where their histograms are of bytes: counts, offsets and the stable
// order. Each block adds up all histograms, for the totals and for what lies before its chunk, and sorts its chunk's
// slots by expert in shared memory, with the ranks of route_rank.cuh. Only then does it write them: to the expert's
// places one behind another, since words that are scattered over the order cost a sector of 32 bytes each.
//
// All that does not hang on the launch before is done ahead of its end, reading the parameters included: the first to
// touch a line of them waits for memory.
#pragma once
#include "data/cuda/launch.h"
#include "data/cuda/route_rank.cuh"

namespace nexus::cuda {

/// With 64 registers a thread, blocks find their place beside those of the launch before.
constexpr int kSortThreads = 256, kSortBlocks = 4;

/// Words of shared memory: sums [stride], pairs of 16 bits | marks [words][stride] | cursors [words][stride] |
/// to [stride] | counts [stride] | sorted [slots].
__host__ __device__ constexpr size_t sort_words(int stride, int words, int slots) {
  return static_cast<size_t>(3 + 2 * words) * stride + slots;
}

/// The compiler reads a parameter where it is used; this has it read here.
template <class... T>
__device__ __forceinline__ void read_here(const T&... values) {
  (..., [&] { asm volatile("" ::"l"(static_cast<int64_t>(values))); }());
}

/// Four experts' counts out of pairs of 16 bits: the first and third expert's, and the second and fourth's.
__device__ __forceinline__ int4 apart(unsigned even, unsigned odd) {
  return {static_cast<int>(even & 0xffff), static_cast<int>(odd & 0xffff), static_cast<int>(even >> 16),
          static_cast<int>(odd >> 16)};
}
/// Where each of four counts begins, from `first` on.
__device__ __forceinline__ int4 one_behind_another(int first, int4 counts) {
  return {first, first + counts.x, first + counts.x + counts.y, first + counts.x + counts.y + counts.z};
}
__device__ __forceinline__ int sum_of(int4 v) { return v.x + v.y + v.z + v.w; }
__device__ __forceinline__ int4 operator+(int4 a, int4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ __forceinline__ int4 operator-(int4 a, int4 b) { return {a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w}; }

/// The sum over the lanes before, and over all.
__device__ __forceinline__ int sum_before(int own, int lane, int& all) {
  int through = own;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int left = __shfl_up_sync(0xffffffffu, through, d);
    if (lane >= d) through += left;
  }
  all = __shfl_sync(0xffffffffu, through, 31);
  return through - own;
}

/// fours: a fourth of histogram_stride(); words: words_of(p.chunk_tokens). What is read by fours lies on 16 bytes.
__global__ void __launch_bounds__(kSortThreads, kSortBlocks)
    route_sort_kernel(const RouteParams p, int fours, int words) {
  extern __shared__ __align__(16) unsigned sort_shared[];
  constexpr int kEarly = 4, kWarps = kSortThreads / 32;
  const int stride = 4 * fours, k = p.desc.top_k, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  unsigned* const sums = sort_shared;  // of all chunks, even and odd, and of those before, even and odd
  unsigned* const marks = sums + stride;
  int* const cursors = reinterpret_cast<int*>(marks + words * stride);
  int* const to = cursors + words * stride;  // from a slot's place in the sorted chunk to that in the order, by expert
  int* const counts = to + stride;
  unsigned* const sorted = reinterpret_cast<unsigned*>(counts + stride);
  for (int i = threadIdx.x; i < (1 + words) * stride; i += kSortThreads) sort_shared[i] = 0;
  // Each lane of a group of warps has four experts, and adds up every groups-th histogram.
  const int columns = (fours + 31) / 32, group = warp / columns, groups = kWarps / columns;
  const int four = threadIdx.x - group * columns * 32;
  const int first_token = static_cast<int>(blockIdx.x) * p.chunk_tokens, first_slot = first_token * k;
  const int32_t* const ids = p.expert_ids + first_slot;
  const int32_t* const column = p.workspace + four;
  read_here(reinterpret_cast<int64_t>(ids), reinterpret_cast<int64_t>(column), reinterpret_cast<int64_t>(p.step),
            p.tokens, p.per_top_k, reinterpret_cast<int64_t>(p.ring.slots), reinterpret_cast<int64_t>(p.order),
            reinterpret_cast<int64_t>(p.counts), reinterpret_cast<int64_t>(p.offsets));
  __syncthreads();
  wait_for_previous();
  release_next();
  // A chunk's slots, and slot numbers, are below 2^31 by contract.
  const int all = static_cast<int>(step_tokens(p.step, p.tokens));
  if (blockIdx.x > 0 && first_token >= all) return;
  const int slots = min(all - first_token, p.chunk_tokens) * k;
  const int chunks = (all + p.chunk_tokens - 1) / p.chunk_tokens;
  CountRingView ring_view{};
  if (blockIdx.x == 0) ring_view = p.ring;
  const RingSlot ring(ring_view);

  int early[kEarly];  // the thread's first slots, on their way while it adds up histograms
#pragma unroll
  for (int i = 0; i < kEarly; ++i) {
    const int slot = threadIdx.x + i * kSortThreads;
    early[i] = slot < slots ? ids[slot] : 0;
  }
  if (four < fours && group < groups) {
    unsigned even = 0, odd = 0, even_before = 0, odd_before = 0;
#pragma unroll 8
    for (int c = group; c < chunks; c += groups) {
      const unsigned four_counts = static_cast<unsigned>(column[c * fours]);
      const unsigned e = four_counts & 0x00ff00ffu, o = four_counts >> 8 & 0x00ff00ffu;
      even += e, odd += o;
      if (c < static_cast<int>(blockIdx.x)) even_before += e, odd_before += o;
    }
    atomicAdd(sums + four, even);
    atomicAdd(sums + fours + four, odd);
    atomicAdd(sums + 2 * fours + four, even_before);
    atomicAdd(sums + 3 * fours + four, odd_before);
  }
  const auto each_slot = [&](auto&& take) {
#pragma unroll
    for (int i = 0; i < kEarly; ++i) {
      const int slot = threadIdx.x + i * kSortThreads;
      if (slot < slots) take(slot, early[i]);
    }
    for (int slot = threadIdx.x + kEarly * kSortThreads; slot < slots; slot += kSortThreads) take(slot, ids[slot]);
  };
  each_slot([&](int slot, int id) { mark(marks, stride, token_of(p, slot), id); });
  __syncthreads();

  // A warp for each word of tokens. Each works out the places of all experts, so that none has to wait for another's.
  for (int w = warp; w < words; w += kWarps) {
    int in_order = 0, in_chunk = 0;
    for (int first = 0; first < fours; first += 32) {
      const int f = first + lane;
      const bool there = f < fours;
      int4 own{0, 0, 0, 0}, earlier{0, 0, 0, 0}, count{0, 0, 0, 0};
      if (there) {
        count = apart(sums[f], sums[fours + f]);
        for (int v = 0; v < words; ++v) {
          const uint4 m = reinterpret_cast<const uint4*>(marks + v * stride)[f];
          if (v == w) earlier = own;
          own = own + int4{__popc(m.x), __popc(m.y), __popc(m.z), __popc(m.w)};
        }
      }
      int sum;
      const int4 at = one_behind_another(in_chunk + sum_before(sum_of(own), lane, sum), own);
      in_chunk += sum;
      if (there) reinterpret_cast<int4*>(cursors + w * stride)[f] = at + earlier;
      if (w != 0) continue;
      const int4 offset = one_behind_another(in_order + sum_before(sum_of(count), lane, sum), count);
      in_order += sum;
      if (!there) continue;
      reinterpret_cast<int4*>(to)[f] = offset + apart(sums[2 * fours + f], sums[3 * fours + f]) - at;
      if (blockIdx.x != 0) continue;
      reinterpret_cast<int4*>(counts)[f] = count;
      const int offsets[4] = {offset.x, offset.y, offset.z, offset.w},
                numbers[4] = {count.x, count.y, count.z, count.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (4 * f + i < p.desc.experts) p.offsets[4 * f + i] = offsets[i], p.counts[4 * f + i] = numbers[i];
    }
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) p.offsets[p.desc.experts] = all * k;
  __syncthreads();
  ring.fill(all, counts, p.desc.experts);
  if (threadIdx.x == kSortThreads - 1) ring.close(p.ring.counter);
  each_slot([&](int slot, int id) {
    const int token = token_of(p, slot), at = (token >> 5) * stride + id;
    sorted[cursors[at] + __popc(marks[at] & ((1u << (token & 31)) - 1))] = static_cast<unsigned>(id << 16 | slot);
  });
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < slots; i += kSortThreads)
    p.order[to[sorted[i] >> 16] + i] = first_slot + static_cast<int>(sorted[i] & 0xffff);
}

}  // namespace nexus::cuda
