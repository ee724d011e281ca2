// Routing by one block: see route_block.cuh.
#include "data/cuda/route_block.cuh"

namespace nexus::cuda {

bool block_fits(const RouterDesc& d, int64_t tokens) {
  if (tokens > kBlockTokens) return false;
  bool fits = false;
  with_router(d, [&](auto per, auto quad) {
    const int threads = route_block_threads(per, quad, static_cast<int>(tokens));
    fits = route_block_shared(d, static_cast<int>(tokens), false, threads) <= 48 * 1024;
  });
  return fits;
}

void launch_route_block(const RouteParams& params, int device, cudaStream_t stream) {
  RouteParams p = params;
  p.chunk_tokens = static_cast<int>(p.tokens);
  with_router(p.desc, [&](auto per, auto quad) {
    const int threads = std::min(route_block_threads(per, quad, p.chunk_tokens), most_route_threads(p, per));
    launch("route_block", &route_block_kernel<decltype(per)::value, decltype(quad)::value, false>, 1, threads,
           route_block_shared(p.desc, p.chunk_tokens, false, threads), device, stream, p);
  });
}

}  // namespace nexus::cuda
