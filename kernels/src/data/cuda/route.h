// The ways of routing (all give the same bits) and which of them a call takes. One launch is what a few tokens cost, so
// one block does everything for them; eight blocks of a cluster, which exchange their counts through distributed shared
// memory, for some hundred; two launches for more (route_small.cu, route_cluster.cu, route_large.cu).
//
// What decides is the descriptor, the number of tokens the launch is laid out for and the architecture. A slice's
// stream and one that shares its SMs get no cluster: it needs eight free places near one another at the same time,
// which a slice need not have, and a neighbour's blocks may hold for long.
#pragma once
#include <cstdint>
#include <type_traits>

#include "data/cuda/route_path.h"
#include "data/cuda/route_quad.cuh"

namespace nexus::cuda {

constexpr int kBlockTokens = 128;  // the most for one block
/// Over how many tokens, and up to how many, a cluster is quicker than a block and than two launches (H200,
/// docs/kernels/log.md, entry 8): by fours, and with a warp per token.
constexpr int kClusterFromQuad = 64, kClusterFromWarp = 8, kClusterToWarp = 128;
constexpr int cluster_to_quad(int experts) { return experts <= 64 ? 512 : experts <= 128 ? 256 : kClusterFromQuad; }

/// The grid's chunks, each a block's. Up to kWideExperts experts each block of the second launch adds up all chunks'
/// histograms itself; with more, which would be too many bytes, a launch between the two does.
constexpr int kWideExperts = 256;

/// Whether the way takes this many tokens at all.
bool block_fits(const RouterDesc& desc, int64_t tokens);
bool cluster_fits(const RouterDesc& desc, int64_t tokens);
void launch_route_block(const RouteParams& params, int device, cudaStream_t stream);
void launch_route_cluster(RouteParams params, cudaStream_t stream);

/// Threads of a block at most: as many as have the registers.
constexpr int route_threads(int per) { return per <= 8 ? 512 : 256; }
/// Tokens that a warp routes at once.
constexpr int warp_tokens(bool quad) { return quad ? kQuadTokens : 1; }

/// Calls f(per, quad): logits a lane of a warp that routes one token, and whether it routes four instead.
template <class F>
void with_router(const RouterDesc& desc, F&& f) {
  const auto with = [&](auto per) {
    if constexpr (decltype(per)::value * 32 <= kQuadExperts)
      if (by_fours(desc)) return f(per, std::true_type{});
    f(per, std::false_type{});
  };
  if (desc.experts <= 32) return with(std::integral_constant<int, 1>{});
  if (desc.experts <= 64) return with(std::integral_constant<int, 2>{});
  if (desc.experts <= 128) return with(std::integral_constant<int, 4>{});
  if (desc.experts <= 256) return with(std::integral_constant<int, 8>{});
  if (desc.experts <= 512) return with(std::integral_constant<int, 16>{});
  with(std::integral_constant<int, 32>{});
}

/// Routes `tokens` tokens from `logits` on, by all warps of the block: emit(token, j, id, weight) for each slot.
/// group_keys: [warps][groups] words of shared memory where there are groups.
template <int PER, bool QUAD, class Emit>
__device__ __forceinline__ void route_tokens(const RouteParams& p, const float* logits, int tokens,
                                             unsigned* group_keys, Emit&& emit) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  int id;
  float weight;
  if constexpr (QUAD) {
    const int step = warps * kQuadTokens;
    const auto row = [&](int t) { return logits + static_cast<int64_t>(t) * p.desc.experts; };
    const auto there = [&](int t) { return min(tokens - t, kQuadTokens); };
    for (int t = warp * kQuadTokens; t < tokens; t += step) {
      float l[4 * PER];
      load_quad(p.desc, row(t), there(t), l);
      if (p.select_bias == nullptr) {
        route_quad<false>(p, row(t), there(t), l, id, weight);
      } else {
        route_quad<true>(p, row(t), there(t), l, id, weight);
      }
      const int own = t + (lane >> 3), j = lane & 7;
      if (own < tokens && j < p.desc.top_k) emit(own, j, id, weight);
    }
  } else {
    for (int t = warp; t < tokens; t += warps) {
      route_token<PER>(p, logits + static_cast<int64_t>(t) * p.desc.experts, group_keys + warp * p.desc.groups, id,
                       weight);
      if (lane < p.desc.top_k) emit(t, lane, id, weight);
    }
  }
}

}  // namespace nexus::cuda
