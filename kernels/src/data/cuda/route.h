// The two ways of routing: one block for few tokens, and three launches for many. See route_small.cu and
// route_large.cu.
#pragma once
#include <type_traits>

#include "data/cuda/route_token.cuh"

namespace nexus::cuda {

constexpr int kSmallRouteTokens = 128;
constexpr int kRouteWarps = 8;  // warps that rank slots, and that route tokens in the large path

/// Whether the one-block path takes this many tokens (a fixed rule of the descriptor; no attribute of the device).
bool small_route_fits(const RouterDesc& desc, int64_t tokens);
void launch_route_small(const RouteParams& params, int device, cudaStream_t stream);
void launch_route_large(const RouteParams& params, int blocks, int device, cudaStream_t stream);

/// Calls f with the register count per lane as a compile-time constant.
template <class F>
void with_per_lane(int experts, F&& f) {
  if (experts <= 32) return f(std::integral_constant<int, 1>{});
  if (experts <= 64) return f(std::integral_constant<int, 2>{});
  if (experts <= 128) return f(std::integral_constant<int, 4>{});
  if (experts <= 256) return f(std::integral_constant<int, 8>{});
  if (experts <= 512) return f(std::integral_constant<int, 16>{});
  f(std::integral_constant<int, 32>{});
}

}  // namespace nexus::cuda
