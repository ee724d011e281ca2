// Routing of many tokens in three launches, none of which waits for the host:
//   1. tokens   a block routes a contiguous run of tokens, a warp per token, and writes its histogram over experts
//   2. scan     per expert, exclusive sums of the histograms over the blocks (in place), and the totals: counts
//   3. place    each block scans the counts (at most 1024) to offsets, and places its run's slots: a stable counting
//   sort
// Bytes: tokens·experts·4 in, tokens·top_k·(4 + 4 + 4 + 4) of ids, weights and order, blocks·experts·4 three times. At
// most kMaxBlocks blocks, so that the histograms stay in L2.
//
// With a step the grid is that of the bound; a block past the last token leaves a histogram of zeros. A ring of counts
// is filled by the first block of the third launch, which has all counts in shared memory.
#include "data/backend.h"
#include "data/cuda/check.h"
#include "data/cuda/launch.h"
#include "data/cuda/route.h"
#include "data/cuda/route_rank.cuh"

namespace nexus::cuda {
namespace {

constexpr int kMaxBlocks = 512;
constexpr int kThreads = kRouteWarps * 32;

int64_t tokens_per_block(int64_t tokens) {
  const int64_t even = (tokens + kMaxBlocks - 1) / kMaxBlocks;
  return (even + kRouteWarps - 1) / kRouteWarps * kRouteWarps;
}

template <int PER>
__global__ void __launch_bounds__(kThreads, 1) route_tokens_kernel(const RouteParams p) {
  // histogram [E] | group keys [warps][groups]
  extern __shared__ int words[];
  wait_for_previous();
  release_next();
  const int experts = p.desc.experts, k = p.desc.top_k;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int e = threadIdx.x; e < experts; e += kThreads) words[e] = 0;
  __syncthreads();
  unsigned* group_key = reinterpret_cast<unsigned*>(words + experts) + warp * p.desc.groups;
  const RouteInput input(p);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * p.tokens_per_block;
  const int64_t last = min(first + p.tokens_per_block, input.tokens);
  for (int64_t t = first + warp; t < last; t += kRouteWarps) {
    int id;
    float weight;
    route_token<PER>(p, input.logits + t * experts, group_key, id, weight);
    if (lane < k) {
      p.expert_ids[t * k + lane] = id;
      p.weights[t * k + lane] = weight;
      atomicAdd(words + id, 1);
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += kThreads)
    p.workspace[static_cast<int64_t>(blockIdx.x) * experts + e] = words[e];
}

/// One block per 32 experts: lane = expert, and each of 16 warps a contiguous run of at most kScanRun histograms, which
/// it keeps in registers between reading and writing back.
constexpr int kScanWarps = 16, kScanRun = kMaxBlocks / kScanWarps;
__global__ void __launch_bounds__(kScanWarps * 32)
    route_scan_kernel(int32_t* histograms, int blocks, int experts, int32_t* counts) {
  __shared__ int part[kScanWarps][32];
  wait_for_previous();
  release_next();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int expert = blockIdx.x * 32 + lane;
  int first, last;
  run_of<kScanWarps>(warp, blocks, first, last);
  int32_t* run = histograms + first * experts + expert;  // at most kMaxBlocks * kMaxExperts words
  int count[kScanRun], sum = 0;
#pragma unroll
  for (int i = 0; i < kScanRun; ++i) count[i] = expert < experts && first + i < last ? run[i * experts] : 0;
#pragma unroll
  for (int i = 0; i < kScanRun; ++i) sum += count[i];
  part[warp][lane] = sum;
  __syncthreads();
  int running = 0;
  for (int w = 0; w < warp; ++w) running += part[w][lane];
  if (expert >= experts) return;  // no barrier follows
#pragma unroll
  for (int i = 0; i < kScanRun; ++i) {
    if (first + i < last) run[i * experts] = running;
    running += count[i];
  }
  if (warp == kScanWarps - 1) counts[expert] = running;
}

__global__ void __launch_bounds__(kThreads) route_place_kernel(const RouteParams p) {
  // offsets [E + 1] | counts, then nothing [E] | cursors [8][E]
  extern __shared__ int words[];
  wait_for_previous();
  release_next();
  const int experts = p.desc.experts, k = p.desc.top_k;
  int* offsets = words;
  int* counts = offsets + experts + 1;
  int* cursors = counts + experts;
  const int warp = threadIdx.x >> 5;
  const bool keeper = blockIdx.x == 0 && threadIdx.x == kThreads - 1;  // of the ring
  for (int e = threadIdx.x; e < experts; e += kThreads) counts[e] = p.counts[e];
  for (int i = threadIdx.x; i < kRouteWarps * experts; i += kThreads) cursors[i] = 0;
  __syncthreads();
  // A run is at most tokens_per_block·top_k slots; slot numbers are below 2^31 by contract.
  const int64_t first_token = static_cast<int64_t>(blockIdx.x) * p.tokens_per_block;
  const int64_t last_token = min(first_token + p.tokens_per_block, step_tokens(p.step, p.tokens));
  const int slots = max(static_cast<int>(last_token - first_token), 0) * k;  // none past a step's last token
  const int first_slot = static_cast<int>(first_token * k);
  const int32_t* ids = p.expert_ids + first_slot;
  int first, last;
  run_of<kRouteWarps>(warp, slots, first, last);
  if (warp == 0) exclusive_scan(counts, experts, offsets);
  count_run(ids, first, last, cursors + warp * experts);
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += kThreads) {
    int cursor = offsets[e] + p.workspace[static_cast<int64_t>(blockIdx.x) * experts + e];
    for (int w = 0; w < kRouteWarps; ++w) {
      const int count = cursors[w * experts + e];
      cursors[w * experts + e] = cursor;
      cursor += count;
    }
  }
  if (blockIdx.x == 0) {
    for (int e = threadIdx.x; e <= experts; e += kThreads) p.offsets[e] = offsets[e];
    RingSlot(p.ring).fill(step_tokens(p.step, p.tokens), counts, experts);
  }
  __syncthreads();
  if (keeper) RingSlot(p.ring).close(p.ring.counter);
  place_run(ids, first, last, first_slot, cursors + warp * experts, p.order);
}

int blocks_for(int64_t tokens) {
  const int64_t per_block = tokens_per_block(tokens);
  return tokens == 0 ? 0 : static_cast<int>((tokens + per_block - 1) / per_block);
}

}  // namespace

size_t route_workspace_bytes(const RouterDesc& desc, int64_t tokens) {
  return small_route_fits(desc, tokens) ? 0 : static_cast<size_t>(blocks_for(tokens)) * desc.experts * sizeof(int32_t);
}

void launch_route_large(const RouteParams& params, int blocks, int device, cudaStream_t stream) {
  const RouterDesc& d = params.desc;
  with_per_lane(d.experts, [&](auto per) {
    const size_t shared = (d.experts + (d.groups > 1 ? kRouteWarps * d.groups : 0)) * sizeof(int32_t);
    launch("route_tokens", &route_tokens_kernel<decltype(per)::value>, blocks, kThreads, shared, device, stream,
           params);
  });
  launch("route_scan", &route_scan_kernel, (d.experts + 31) / 32, kScanWarps * 32, 0, device, stream, params.workspace,
         blocks, d.experts, params.counts);
  const size_t shared = (2 * d.experts + 1 + kRouteWarps * d.experts) * sizeof(int32_t);
  launch("route_place", &route_place_kernel, blocks, kThreads, shared, device, stream, params);
}

void route(Stream& stream, const RouterDesc& desc, const RouteArgs& args) {
  RouteParams p{};
  p.desc = desc;
  p.logits = args.logits, p.select_bias = args.select_bias, p.tokens = args.tokens;
  p.step = args.step, p.ring = args.ring;
  p.expert_ids = args.expert_ids, p.weights = args.weights;
  p.counts = args.counts, p.offsets = args.offsets, p.order = args.order;
  p.workspace = static_cast<int32_t*>(args.workspace);
  const cudaStream_t s = handle(stream);
  if (small_route_fits(desc, args.tokens)) return launch_route_small(p, stream.device().index, s);
  p.tokens_per_block = static_cast<int>(tokens_per_block(args.tokens));
  launch_route_large(p, blocks_for(args.tokens), stream.device().index, s);
}

}  // namespace nexus::cuda
