// Routing in one launch, by one block or by the eight blocks of one cluster: decode is bound by latency, and a second
// launch would cost as much as the whole routing. Warps route tokens and mark them in shared memory; then each thread
// has an expert, adds up the counts (of all blocks: each block has written its own to every other), and a scan gives
// places (route_rank.cuh). Bytes: tokens·experts·4 in, tokens·top_k·12 out.
//
// With a step the launch is that of the bound, and the tokens and logits are read here; a block without tokens takes
// part in the counting with zeros. A ring of counts is filled by the first block while the slots are placed. What is
// waited for, and when, is told in launch.h.
#pragma once
#include <algorithm>

#include "data/cuda/cluster.cuh"
#include "data/cuda/launch.h"
#include "data/cuda/route.h"
#include "data/cuda/route_rank.cuh"

namespace nexus::cuda {

/// Words of shared memory: marks [words][E] | cursors [words][E] | counts [E] | scan [32] | ids [tokens·k] |
/// weights [tokens·k] | counts by block [8][E] | group keys [warps][groups].
inline size_t route_block_shared(const RouterDesc& d, int tokens, bool cluster, int threads) {
  const size_t experts = static_cast<size_t>(d.experts), words = static_cast<size_t>(words_of(tokens));
  const size_t groups = d.groups > 1 ? static_cast<size_t>(threads / 32) * d.groups : 0;
  return ((2 * words + 1 + (cluster ? kClusterBlocks : 0)) * experts + 32 + 2 * static_cast<size_t>(tokens) * d.top_k +
          groups) *
         4;
}

/// Warps for `tokens` tokens; at least four, which the experts' part uses.
inline int route_block_threads(int per, bool quad, int tokens) {
  const int warps = (tokens + warp_tokens(quad) - 1) / warp_tokens(quad);
  return std::clamp(warps * 32, 128, route_threads(per));
}

/// Most of them in a step that says when it is done: a block routes beside the experts of the step before, and one of
/// 512 threads that is long at it, with many experts, finds no room before they have left an SM (qwen3's steps of up to
/// 256 tokens: 2 to 3 us more). Beyond 256 tokens 256 threads take 1 % longer, and with 16 experts 3 %.
inline int most_route_threads(const RouteParams& p, int per) {
  constexpr int kThreads = 256, kTokens = 256, kExperts = 64;
  const bool beside = p.ready != nullptr && p.tokens <= kTokens && p.desc.experts > kExperts;
  return beside && !p.few_weights ? std::min(kThreads, route_threads(per)) : route_threads(per);
}

template <int PER, bool QUAD, bool CLUSTER>
__global__ void __launch_bounds__(route_threads(PER), 1) route_block_kernel(const RouteParams p) {
  constexpr bool kCluster = CLUSTER;
  if constexpr (CLUSTER && !kHasClusters) __trap();  // never launched: see hopper_path()
  extern __shared__ int words_[];
  const bool clears = p.ready != nullptr && threadIdx.x == 0;
  if (clears && (!kCluster || cluster_rank() == 0)) clear_ready(p.ready);
  if (!p.settled) wait_for_previous();
  if (p.ready == nullptr || clears) release_next();
  int rank = 0;
  if constexpr (kCluster) {
    cluster_arrive();  // this block is there: its shared memory may be written
    rank = cluster_rank();
  }
  const RouteInput input(p);
  const int experts = p.desc.experts, k = p.desc.top_k, words = words_of(p.chunk_tokens);
  const int all = static_cast<int>(input.tokens), first = rank * p.chunk_tokens;
  const int tokens = max(min(all - first, p.chunk_tokens), 0);
  const int first_slot = first * k;
  unsigned* const marks = reinterpret_cast<unsigned*>(words_);
  int* const cursors = words_ + words * experts;
  int* const counts = cursors + words * experts;
  int* const sums = counts + experts;
  int* const ids = sums + 32;
  float* const weights = reinterpret_cast<float*>(ids + p.chunk_tokens * k);
  int* const by_block = ids + 2 * p.chunk_tokens * k;
  unsigned* const group_keys = reinterpret_cast<unsigned*>(by_block + (kCluster ? kClusterBlocks * experts : 0));
  CountRingView ring_view{};
  if (rank == 0) ring_view = p.ring;
  const RingSlot ring(ring_view);

  for (int i = threadIdx.x; i < words * experts; i += blockDim.x) marks[i] = 0;
  __syncthreads();
  route_tokens<PER, QUAD>(p, input.logits + static_cast<int64_t>(first) * experts, tokens, group_keys,
                          [&](int token, int j, int id, float weight) {
                            const int slot = token * k + j;
                            mark(marks, experts, token, id);
                            ids[slot] = id;
                            weights[slot] = weight;
                          });
  __syncthreads();
  if constexpr (kCluster) {
    cluster_wait();  // all blocks are there
    for (int i = threadIdx.x; i < kClusterBlocks * experts; i += blockDim.x) {
      const int to = i / experts, e = i - to * experts;
      in_block(by_block, to)[rank * experts + e] = marked(marks, experts, words, e);
    }
    cluster_arrive();
    cluster_wait();  // all counts are here, and no block writes to another from now on
  }
  int before = 0;  // slots of the thread's expert in earlier blocks
  scan_experts(
      experts, sums,
      [&](int e) {
        int total = 0;
        if constexpr (kCluster) {
#pragma unroll
          for (int b = 0; b < kClusterBlocks; ++b) {
            if (b == rank) before = total;
            total += by_block[b * experts + e];
          }
        } else {
          total = marked(marks, experts, words, e);
        }
        counts[e] = total;
        return total;
      },
      [&](int e, int offset) {
        set_cursors(marks, experts, words, e, offset + before, cursors);
        // From here on it writes: where the step before reads, when that is over.
        if (p.settled && p.ready == nullptr) wait_for_previous();
        if (rank == 0) p.offsets[e] = offset, p.counts[e] = counts[e];
      });
  if (rank == 0 && threadIdx.x == 0) p.offsets[experts] = all * k;
  __syncthreads();
  ring.fill(all, counts, experts);
  if (threadIdx.x == blockDim.x - 1) ring.close(p.ring.counter);
  place_slots(p, ids, tokens * k, first_slot, marks, cursors);
  for (int i = threadIdx.x; i < tokens * k; i += blockDim.x) {
    p.expert_ids[first_slot + i] = ids[i];
    p.weights[first_slot + i] = weights[i];
  }
  if (p.ready != nullptr) {
    __syncthreads();
    if (threadIdx.x == 0) say_ready(p.ready, kCluster ? kReady / kClusterBlocks : kReady);
  }
  if (p.settled && p.ready != nullptr) wait_for_previous();  // so that its end is still that of all before it
}

}  // namespace nexus::cuda
