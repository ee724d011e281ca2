// Routing by one cluster of eight blocks: see route_block.cuh.
#include "data/cuda/route_block.cuh"

namespace nexus::cuda {
namespace {

constexpr int kFewThreads = 256;

/// Tokens of a block: a multiple of what a warp takes at once.
int cluster_chunk(int64_t tokens, bool quad) {
  const int64_t each = (tokens + kClusterBlocks - 1) / kClusterBlocks, at_once = warp_tokens(quad);
  return static_cast<int>((each + at_once - 1) / at_once * at_once);
}

}  // namespace

bool cluster_fits(const RouterDesc& d, int64_t tokens) {
  if (tokens > kClusterBlocks * kPassTokens) return false;
  bool fits = false;
  with_router(d, [&](auto per, auto quad) {
    const int chunk = cluster_chunk(tokens, quad);
    fits = route_block_shared(d, chunk, true, route_block_threads(per, quad, chunk)) <= 48 * 1024;
  });
  return fits;
}

void launch_route_cluster(RouteParams p, cudaStream_t stream) {
  with_router(p.desc, [&](auto per, auto quad) {
    p.chunk_tokens = cluster_chunk(p.tokens, quad);
    // Eight blocks of 512 threads find no room while the experts' and the sum's blocks of the step before are there,
    // and its routing would begin when those have left: 512/1024/8/2 at 512 tokens takes 25 us instead of 23. Steps
    // whose experts fill every SM take 1 to 3 % longer with blocks of 256.
    const int most = p.few_weights ? kFewThreads : most_route_threads(p, per);
    const int threads = std::min(route_block_threads(per, quad, p.chunk_tokens), most);
    launch_clusters("route_cluster", &route_block_kernel<decltype(per)::value, decltype(quad)::value, true>,
                    kClusterBlocks, threads, route_block_shared(p.desc, p.chunk_tokens, true, threads), stream, p);
  });
}

}  // namespace nexus::cuda
