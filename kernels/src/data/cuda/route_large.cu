// Routing of many tokens in two launches, three for over kWideExperts experts, none of which waits for the host:
//   1. tokens   a block routes a chunk of tokens, and writes its histogram over experts
//   2. scan     (many experts) per expert, exclusive sums of the histograms over the chunks, and the totals: counts
//   3. sort     each block adds up the histograms to counts and to what lies before its chunk, scans the counts to
//               offsets, and writes its chunk's slots to their places: a stable counting sort (route_sort.cuh); or,
//      place    of longer chunks or behind a scan, the same by passes of tokens
// Bytes: tokens·experts·4 in, tokens·top_k·(4 + 4 + 4 + 4) of ids, weights and order; and chunks²·experts counts of
// histograms from L2, where every block reads the same ones at the same time: hence a byte each, as long as a chunk has
// no more tokens than a byte holds, and at most kMaxChunks chunks. That is about as many as SMs, a fixed number because
// the workspace is stated before a device is known. Below that a chunk has 16 tokens: a warp by fours for each of an
// SM's four schedulers, since a warp is bound by issue.
//
// With a step the grid is that of the bound; a block past the last token leaves a histogram of zeros. A ring of counts
// is filled by the first block of the last launch, which has all counts in shared memory.
#include <algorithm>
#include <atomic>

#include "data/backend.h"
#include "data/cuda/arch.h"
#include "data/cuda/check.h"
#include "data/cuda/launch.h"
#include "data/cuda/route.h"
#include "data/cuda/route_rank.cuh"
#include "data/cuda/route_sort.cuh"

namespace nexus::cuda {
namespace {

constexpr int kMaxChunks = 128, kMaxWideChunks = 512;
/// Of shared memory, for a first launch that holds its results back.
constexpr size_t kAheadBytes = 24 * 1024;
constexpr int kPlaceThreads = 512, kPlaceGroups = 16;
/// Threads that share an SM's registers. 704 have 88 each: a block of 512 that routes by fours then leaves room for one
/// of the last launch to take its place beside it.
constexpr int register_threads(int per, bool quad) { return quad ? 704 : route_threads(per); }

std::atomic<RoutePath> forced{RoutePath::kAuto};
std::atomic<bool> quads{true};

bool wide(const RouterDesc& d) { return d.experts > kWideExperts; }

/// Rows of the narrow histograms are read by fours.
__host__ __device__ constexpr int histogram_stride(int experts) {
  return experts > kWideExperts ? experts : (experts + 3) / 4 * 4;
}

int64_t chunk_tokens(const RouterDesc& d, int64_t tokens) {
  const int64_t most = wide(d) ? kMaxWideChunks : kMaxChunks, at_once = wide(d) ? 8 : 16;
  return ((tokens + most - 1) / most + at_once - 1) / at_once * at_once;
}
int chunks_of(const RouterDesc& d, int64_t tokens) {
  const int64_t each = chunk_tokens(d, tokens);
  return tokens == 0 ? 0 : static_cast<int>((tokens + each - 1) / each);
}

/// Words of shared memory of the first launch: histogram [stride] | group keys [warps][groups] | and, where it begins
/// ahead of the kernel before it, which may still read what it writes, ids [slots] | weights [slots].
size_t tokens_words(const RouteParams& p, int threads) {
  const size_t groups = p.desc.groups > 1 ? static_cast<size_t>(threads / 32) * p.desc.groups : 0;
  const size_t slots = static_cast<size_t>(p.chunk_tokens) * p.desc.top_k;
  return static_cast<size_t>(histogram_stride(p.desc.experts)) + groups + (p.settled ? 2 * slots : 0);
}

/// How the counts of a chunk are kept.
enum class Histograms {
  kBytes,    ///< one byte each; 128 chunks of at most 255 tokens have counts that 16 bits hold
  kWords,    ///< 32 bits each
  kScanned,  ///< 32 bits each, and a launch adds them up
};
__host__ __device__ constexpr Histograms histograms_of(const RouterDesc& d, int chunk_tokens) {
  if (d.experts > kWideExperts) return Histograms::kScanned;
  const size_t words = sort_words(histogram_stride(d.experts), words_of(chunk_tokens), chunk_tokens * d.top_k);
  return chunk_tokens <= 255 && words * 4 <= 48 * 1024 ? Histograms::kBytes : Histograms::kWords;
}
static_assert(kMaxChunks * 255 < 1 << 16);

template <int PER, bool QUAD>
__global__ void __launch_bounds__(register_threads(PER, QUAD), 1) route_tokens_kernel(const RouteParams p) {
  extern __shared__ __align__(16) int words[];  // see tokens_words()
  const int experts = p.desc.experts, k = p.desc.top_k, stride = histogram_stride(experts);
  for (int e = threadIdx.x; e < stride; e += blockDim.x) words[e] = 0;
  read_here(p.desc.experts, p.tokens, reinterpret_cast<int64_t>(p.logits), reinterpret_cast<int64_t>(p.weights),
            reinterpret_cast<int64_t>(p.workspace), p.per_top_k);
  if (!p.settled) wait_for_previous();
  release_next();
  __syncthreads();
  const RouteInput input(p);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * p.chunk_tokens;
  const int tokens = static_cast<int>(min(input.tokens - first, static_cast<int64_t>(p.chunk_tokens)));
  const int groups = p.desc.groups > 1 ? static_cast<int>(blockDim.x / 32) * p.desc.groups : 0;
  int* const ids = words + stride + groups;
  float* const weights = reinterpret_cast<float*>(ids + p.chunk_tokens * k);
  route_tokens<PER, QUAD>(p, input.logits + first * experts, tokens, reinterpret_cast<unsigned*>(words + stride),
                          [&](int token, int j, int id, float weight) {
                            const int near = token * k + j;
                            const int64_t slot = first * k + near;
                            (p.settled ? ids + near : p.expert_ids + slot)[0] = id;
                            (p.settled ? weights + near : p.weights + slot)[0] = weight;
                            atomicAdd(words + id, 1);
                          });
  __syncthreads();
  if (p.settled) {
    wait_for_previous();
    for (int i = threadIdx.x; i < tokens * k; i += blockDim.x) {
      p.expert_ids[first * k + i] = ids[i];
      p.weights[first * k + i] = weights[i];
    }
  }
  if (histograms_of(p.desc, p.chunk_tokens) == Histograms::kBytes) {
    const int fours = stride / 4;
    for (int i = threadIdx.x; i < fours; i += blockDim.x) {
      const int4 count = reinterpret_cast<const int4*>(words)[i];
      p.workspace[blockIdx.x * fours + i] = count.x | count.y << 8 | count.z << 16 | count.w << 24;
    }
  } else {
    for (int e = threadIdx.x; e < stride; e += blockDim.x)
      p.workspace[static_cast<int64_t>(blockIdx.x) * stride + e] = words[e];
  }
}

/// One block per 32 experts: lane = expert, and each of 16 warps a contiguous run of at most kScanRun histograms, which
/// it keeps in registers between reading and writing back.
constexpr int kScanWarps = 16, kScanRun = kMaxWideChunks / kScanWarps;
__global__ void __launch_bounds__(kScanWarps * 32)
    route_scan_kernel(int32_t* histograms, int chunks, int experts, int32_t* counts) {
  __shared__ int part[kScanWarps][32];
  wait_for_previous();
  release_next();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int expert = blockIdx.x * 32 + lane;
  const int per_warp = (chunks + kScanWarps - 1) / kScanWarps;
  const int first = min(warp * per_warp, chunks), last = min(first + per_warp, chunks);
  int32_t* run = histograms + first * experts + expert;  // at most kMaxWideChunks * kMaxExperts words
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

int place_groups(int experts) { return std::min(kPlaceGroups, kPlaceThreads / (histogram_stride(experts) / 4)); }

/// groups: threads that share the histograms of four experts; each takes every groups-th. kScanned: a launch before has
/// added them up.
template <bool kScanned>
__global__ void __launch_bounds__(kPlaceThreads, kScanned ? 3 : 2) route_place_kernel(const RouteParams p, int groups) {
  // sums of all chunks and of those before [groups][2][stride] (narrow) | marks [words][E] | cursors [words][E] |
  // counts [E] | place of the next slot [E] | scan [32]
  extern __shared__ __align__(16) int shared_words[];
  const int experts = p.desc.experts, k = p.desc.top_k, stride = histogram_stride(experts);
  const int pass = min(p.chunk_tokens, kPassTokens), words = words_of(pass);
  int* const added = shared_words;
  unsigned* const marks = reinterpret_cast<unsigned*>(added + groups * 2 * stride);
  for (int i = threadIdx.x; i < words * experts; i += kPlaceThreads) marks[i] = 0;
  wait_for_previous();
  release_next();
  const int64_t all = step_tokens(p.step, p.tokens), first_token = static_cast<int64_t>(blockIdx.x) * p.chunk_tokens;
  if (blockIdx.x > 0 && first_token >= all) return;
  // A chunk's slots, and slot numbers, are below 2^31 by contract.
  const int tokens = static_cast<int>(min(all - first_token, static_cast<int64_t>(p.chunk_tokens)));
  const int first_slot = static_cast<int>(first_token * k);
  int* const cursors = reinterpret_cast<int*>(marks) + words * experts;
  int* const counts = cursors + words * experts;
  int* const next = counts + experts;
  int* const sums = next + experts;
  const int32_t* ids = p.expert_ids + first_slot;
  CountRingView ring_view{};
  if (blockIdx.x == 0) ring_view = p.ring;
  const RingSlot ring(ring_view);

  // The first two slots of each thread are under way while it adds up histograms.
  int slots = min(tokens, pass) * k;
  constexpr int kEarly = 2;
  int early[kEarly];
#pragma unroll
  for (int i = 0; i < kEarly; ++i) {
    const int slot = threadIdx.x + i * kPlaceThreads;
    early[i] = slot < slots ? ids[slot] : 0;
  }
  if constexpr (!kScanned) {
    const int fours = stride / 4, group = threadIdx.x / fours, four = threadIdx.x - group * fours;
    const int chunks = static_cast<int>((all + p.chunk_tokens - 1) / p.chunk_tokens);
    if (group < groups) {
      int4 total{0, 0, 0, 0}, before{0, 0, 0, 0};
#pragma unroll 8
      for (int c = group; c < chunks; c += groups) {
        const int4 h = reinterpret_cast<const int4*>(p.workspace)[c * fours + four];
        total = total + h;
        if (c < static_cast<int>(blockIdx.x)) before = before + h;
      }
      int4* const to = reinterpret_cast<int4*>(added + group * 2 * stride) + four;
      to[0] = total;
      to[fours] = before;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEarly; ++i) {
    const int slot = threadIdx.x + i * kPlaceThreads;
    if (slot < slots) mark(marks, experts, token_of(p, slot), early[i]);
  }
  for (int i = threadIdx.x + kEarly * kPlaceThreads; i < slots; i += kPlaceThreads)
    mark(marks, experts, token_of(p, i), ids[i]);

  int before = 0;  // slots of the thread's expert in earlier chunks
  scan_experts(
      experts, sums,
      [&](int e) {
        int total = 0;
        if constexpr (kScanned) {
          total = p.counts[e];
          before = p.workspace[static_cast<int64_t>(blockIdx.x) * experts + e];
        } else {
          before = 0;
#pragma unroll
          for (int g = 0; g < kPlaceGroups; ++g)
            if (g < groups) total += added[g * 2 * stride + e], before += added[(g * 2 + 1) * stride + e];
        }
        counts[e] = total;
        return total;
      },
      [&](int e, int offset) {  // behind a barrier: all slots are marked
        next[e] = set_cursors(marks, experts, words, e, offset + before, cursors);
        if (blockIdx.x != 0) return;
        p.offsets[e] = offset;
        if (!kScanned) p.counts[e] = counts[e];
      });
  if (blockIdx.x == 0 && threadIdx.x == 0) p.offsets[experts] = static_cast<int>(all * k);
  __syncthreads();
  ring.fill(all, counts, experts);
  if (threadIdx.x == kPlaceThreads - 1) ring.close(p.ring.counter);
  place_slots(p, ids, slots, first_slot, marks, cursors);

  for (int done = pass; done < tokens; done += pass) {
    ids = p.expert_ids + first_slot + done * k;
    slots = min(tokens - done, pass) * k;
    __syncthreads();  // the last pass is placed
    for (int i = threadIdx.x; i < words * experts; i += kPlaceThreads) marks[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < slots; i += kPlaceThreads) mark(marks, experts, token_of(p, i), ids[i]);
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += kPlaceThreads)
      next[e] = set_cursors(marks, experts, words, e, next[e], cursors);
    __syncthreads();
    place_slots(p, ids, slots, first_slot + done * k, marks, cursors);
  }
}

/// Has an SM divide its memory for both launches alike, in percent of shared memory: blocks of the second could not
/// take their place beside the first's where the first had left them too little.
template <auto KERNEL>
void divide_alike(int device) {
  static PerDevice<int> divided;
  divided.get(device, [] {
    const void* const kernel = reinterpret_cast<const void*>(KERNEL);
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 28),
          "cudaFuncSetAttribute(PreferredSharedMemoryCarveout)");
    return 1;
  });
}

void launch_route_grid(RouteParams p, int device, cudaStream_t stream) {
  const RouterDesc& d = p.desc;
  const size_t experts = static_cast<size_t>(d.experts), stride = static_cast<size_t>(histogram_stride(d.experts));
  with_router(d, [&](auto per, auto quad) {
    const int warps = (p.chunk_tokens + warp_tokens(quad) - 1) / warp_tokens(quad);
    const int threads = std::min(warps * 32, route_threads(per));
    p.settled = p.settled && tokens_words(p, threads) * 4 <= kAheadBytes;
    divide_alike<&route_tokens_kernel<decltype(per)::value, decltype(quad)::value>>(device);
    launch("route_tokens", &route_tokens_kernel<decltype(per)::value, decltype(quad)::value>, p.chunks, threads,
           tokens_words(p, threads) * 4, device, stream, p);
  });
  const size_t words = static_cast<size_t>(words_of(std::min(p.chunk_tokens, kPassTokens)));
  const size_t shared = ((2 * words + 2) * experts + 32) * 4;
  const auto place = [&](auto* kernel, int groups) {
    launch("route_place", kernel, p.chunks, kPlaceThreads, shared + groups * 2 * stride * 4, device, stream, p, groups);
  };
  switch (histograms_of(d, p.chunk_tokens)) {
    case Histograms::kBytes: {
      divide_alike<&route_sort_kernel>(device);
      const int chunk_words = words_of(p.chunk_tokens), all_slots = p.chunk_tokens * d.top_k;
      return launch("route_sort", &route_sort_kernel, p.chunks, kSortThreads,
                    sort_words(histogram_stride(d.experts), chunk_words, all_slots) * 4, device, stream, p,
                    histogram_stride(d.experts) / 4, chunk_words);
    }
    case Histograms::kWords:
      return place(&route_place_kernel<false>, place_groups(d.experts));
    case Histograms::kScanned:
      launch("route_scan", &route_scan_kernel, (d.experts + 31) / 32, kScanWarps * 32, 0, device, stream, p.workspace,
             p.chunks, d.experts, p.counts);
      return place(&route_place_kernel<true>, 0);
  }
}

RoutePath path_for(const RouterDesc& d, int64_t tokens, bool clusters) {
  const RoutePath wanted = forced.load(std::memory_order_relaxed);
  if (wanted == RoutePath::kBlock && block_fits(d, tokens)) return wanted;
  if (wanted == RoutePath::kCluster && clusters && cluster_fits(d, tokens)) return wanted;
  if (wanted == RoutePath::kGrid && tokens > 0) return wanted;
  const bool quad = by_fours(d);
  const int64_t from = quad ? kClusterFromQuad : kClusterFromWarp;
  const int64_t to = quad ? cluster_to_quad(d.experts) : kClusterToWarp;
  if (clusters && tokens > from && tokens <= to && cluster_fits(d, tokens)) return RoutePath::kCluster;
  return block_fits(d, tokens) ? RoutePath::kBlock : RoutePath::kGrid;
}

constexpr size_t kAlign = 16;  // of the histograms, wherever the workspace begins

}  // namespace

bool by_fours(const RouterDesc& d) { return quad_fits(d) && quads.load(std::memory_order_relaxed); }

void set_route_quads(bool on) { quads.store(on, std::memory_order_relaxed); }

void set_route_path(RoutePath path) { forced.store(path, std::memory_order_relaxed); }

size_t route_workspace_bytes(const RouterDesc& d, int64_t tokens) {
  // What a stream without clusters needs, since the stream is not known yet.
  if (path_for(d, tokens, false) != RoutePath::kGrid) return 0;
  const bool bytes = histograms_of(d, static_cast<int>(chunk_tokens(d, tokens))) == Histograms::kBytes;
  return static_cast<size_t>(chunks_of(d, tokens)) * histogram_stride(d.experts) * (bytes ? 1 : sizeof(int32_t)) +
         kAlign;
}

bool route(Stream& stream, const RouterDesc& desc, const RouteArgs& args) {
  RouteParams p{};
  p.desc = desc;
  p.logits = args.logits, p.select_bias = args.select_bias, p.tokens = args.tokens;
  p.step = args.step, p.ring = args.ring, p.few_weights = args.few_weights;
  p.expert_ids = args.expert_ids, p.weights = args.weights;
  p.counts = args.counts, p.offsets = args.offsets, p.order = args.order;
  p.per_top_k = 0xffffffffu / static_cast<unsigned>(desc.top_k) + 1;  // 0 for 1
  const int device = stream.device().index;
  const size_t experts = static_cast<size_t>(desc.experts);
  p.settled = args.step == nullptr && args.ring.slots == nullptr &&
              stream.settled(args.logits, static_cast<size_t>(args.tokens) * experts * sizeof(float)) &&
              stream.settled(args.select_bias, args.select_bias == nullptr ? 0 : experts * sizeof(float));
  p.ready = args.ready;  // not the grid's: its launches wait for one another
  const cudaStream_t s = handle(stream);
  const bool clusters = hopper_path(device) && !stream.in_slice() && !stream.share_sm();
  switch (path_for(desc, args.tokens, clusters)) {
    case RoutePath::kBlock:
      launch_route_block(p, device, s);
      return p.ready != nullptr;
    case RoutePath::kCluster:
      launch_route_cluster(p, s);
      return p.ready != nullptr;
    default:
      break;
  }
  const uintptr_t at = (reinterpret_cast<uintptr_t>(args.workspace) + kAlign - 1) / kAlign * kAlign;
  p.workspace = reinterpret_cast<int32_t*>(at);
  p.chunk_tokens = static_cast<int>(chunk_tokens(desc, args.tokens));
  p.chunks = chunks_of(desc, args.tokens);
  launch_route_grid(p, device, s);
  return false;
}

}  // namespace nexus::cuda
