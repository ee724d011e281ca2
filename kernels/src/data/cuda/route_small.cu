// Routing of up to 128 tokens in one launch of one block: decode is bound by latency, and a second launch would cost as
// much as the whole routing. Warps route tokens; eight of them then count and place the slots in shared memory
// (route_rank.cuh). Bytes: tokens·experts·4 in, tokens·top_k·12 out; flop: about 5 per logit. With a step the launch is
// that of the bound, and the tokens and logits are read here. A ring of counts is filled while the slots are placed.
#include <algorithm>

#include "data/cuda/check.h"
#include "data/cuda/launch.h"
#include "data/cuda/route.h"
#include "data/cuda/route_rank.cuh"

namespace nexus::cuda {
namespace {

constexpr int small_threads(int per) { return per <= 4 ? 1024 : per <= 8 ? 512 : 256; }
/// Up to eight tokens keep no more than the ranking warps busy, and barriers of eight warps are quicker than of 32.
int threads_for(int per, int64_t tokens) { return tokens <= kRouteWarps ? kRouteWarps * 32 : small_threads(per); }

size_t small_shared(const RouterDesc& d, int64_t tokens, int warps) {
  const size_t groups = d.groups > 1 ? static_cast<size_t>(warps) * d.groups : 0;
  const size_t scratch = std::max(groups, static_cast<size_t>(kRouteWarps) * d.experts);
  return (static_cast<size_t>(tokens) * d.top_k + 2 * d.experts + 1 + scratch) * 4;
}

template <int PER>
__global__ void __launch_bounds__(small_threads(PER), 1) route_small_kernel(const RouteParams p) {
  // ids [tokens·k] | counts [E] | offsets [E + 1] | scratch: group keys [warps][groups], later histograms [8][E]
  extern __shared__ int words[];
  wait_for_previous();
  release_next();
  const RouteInput input(p);
  const RingSlot ring(p.ring);
  const int experts = p.desc.experts, k = p.desc.top_k;
  const int tokens = static_cast<int>(input.tokens), slots = tokens * k;
  int* ids = words;
  int* counts = ids + slots;
  int* offsets = counts + experts;
  int* scratch = offsets + experts + 1;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int warps = blockDim.x >> 5;
  const bool keeper = threadIdx.x == blockDim.x - 1;  // of the ring: a thread of the warp that has the least to do

  unsigned* group_key = reinterpret_cast<unsigned*>(scratch) + warp * p.desc.groups;  // not touched where groups == 1
  for (int t = warp; t < tokens; t += warps) {
    int id;
    float weight;
    route_token<PER>(p, input.logits + static_cast<int64_t>(t) * experts, group_key, id, weight);
    if (lane < k) {
      ids[t * k + lane] = id;
      p.expert_ids[t * k + lane] = id;
      p.weights[t * k + lane] = weight;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRouteWarps * experts; i += blockDim.x) scratch[i] = 0;
  __syncthreads();
  int first = 0, last = 0;
  if (warp < kRouteWarps) {
    run_of<kRouteWarps>(warp, slots, first, last);
    count_run(ids, first, last, scratch + warp * experts);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x) {
    int sum = 0;
    for (int w = 0; w < kRouteWarps; ++w) sum += scratch[w * experts + e];
    counts[e] = sum;
    p.counts[e] = sum;
  }
  __syncthreads();
  if (warp == 0) exclusive_scan(counts, experts, offsets);
  ring.fill(tokens, counts, experts);
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x) {
    int cursor = offsets[e];
    p.offsets[e] = cursor;
    for (int w = 0; w < kRouteWarps; ++w) {
      const int count = scratch[w * experts + e];
      scratch[w * experts + e] = cursor;
      cursor += count;
    }
  }
  if (threadIdx.x == 0) p.offsets[experts] = slots;
  __syncthreads();
  if (keeper) ring.close(p.ring.counter);
  if (warp < kRouteWarps) place_run(ids, first, last, 0, scratch + warp * experts, p.order);
}

}  // namespace

bool small_route_fits(const RouterDesc& d, int64_t tokens) {
  if (tokens > kSmallRouteTokens) return false;
  bool fits = false;
  with_per_lane(d.experts, [&](auto per) { fits = small_shared(d, tokens, small_threads(per) / 32) <= 48 * 1024; });
  return fits;
}

void launch_route_small(const RouteParams& params, int device, cudaStream_t stream) {
  with_per_lane(params.desc.experts, [&](auto per) {
    constexpr int kPer = decltype(per)::value;
    const int threads = threads_for(kPer, params.tokens);
    const size_t shared = small_shared(params.desc, params.tokens, threads / 32);
    launch("route_small", &route_small_kernel<kPer>, 1, threads, shared, device, stream, params);
  });
}

}  // namespace nexus::cuda
