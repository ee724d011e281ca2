// logits = x · Wᵀ (+ bias) on tensor cores (mma.sync) for a product that is narrow: with a block for each tile of
// tokens × experts most SMs would idle while a few walk all of k. So k is cut into eight slices at multiples of 64, the
// same for every launch, and the eight blocks of a cluster have one slice each. They leave their partial sums in shared
// memory, and each adds up an eighth of the tile's rows in the order of the slices.
//
// Without clusters (compute capability 8.0, streams of a slice) one block walks the slices of its tile one after the
// other and adds the same numbers in the same order: the same bits.
//
// Bytes a tile: (BM + BN)·k·2 from L2. With a step, x and the number of tokens are read on the device, and the grid is
// that of the bound: a cluster past the last token leaves as one.
#include <algorithm>

#include "data/cuda/check.h"
#include "data/cuda/cluster.cuh"
#include "data/cuda/convert.cuh"
#include "data/cuda/launch.h"
#include "data/cuda/mma.cuh"
#include "data/cuda/router_split.h"
#include "data/cuda/router_split_shape.cuh"
#include "data/cuda/step.cuh"

namespace nexus::cuda {
namespace {

struct SplitParams {
  const void* x;
  const void* weight;
  const float* bias;
  float* logits;
  const StepBlock* step;
  int64_t tokens;
  int hidden, experts;
  int column_tiles;
  bool vector_store;  // 4 experts' logits may be stored as one aligned word
};

template <class S>
using Accumulators = float[S::MT][S::NT][4];

/// acc = the tile's sums over steps [from, to) of 64 k each. A barrier at the end: no thread reads the buffers any
/// more.
template <class S>
__device__ __forceinline__ void sum_steps(const SplitParams& p, const typename S::T* x, int tokens, int row, int column,
                                          int from, int to, uint32_t buffers, Accumulators<S>& acc) {
  using T = typename S::T;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int chunk = threadIdx.x % S::CHUNKS, copy_row = threadIdx.x / S::CHUNKS;
  const uint32_t copy_at = copy_row * (S::BK * 2) + ((chunk ^ (copy_row & 7)) * 16);
  constexpr int kPassBytes = S::ROWS_PER_PASS * S::BK * 2;
  const T* const a_row = x + static_cast<int64_t>(row + copy_row) * p.hidden + chunk * 8;
  const T* const b_row =
      static_cast<const T*>(p.weight) + static_cast<int64_t>(column + copy_row) * p.hidden + chunk * 8;
  const auto load = [&](int step, int stage) {
    const int at = step * S::BK;
    const bool inside = at + chunk * 8 < p.hidden;
    const uint32_t target = buffers + stage * S::STAGE_BYTES + copy_at;
#pragma unroll
    for (int i = 0; i < S::A_PASSES; ++i) {
      const bool valid = inside && row + copy_row + i * S::ROWS_PER_PASS < tokens;
      const T* const source = a_row + static_cast<int64_t>(i * S::ROWS_PER_PASS) * p.hidden + at;
      copy16_async(target + i * kPassBytes, valid ? static_cast<const void*>(source) : p.weight, valid);
    }
#pragma unroll
    for (int i = 0; i < S::B_PASSES; ++i) {
      const bool valid = inside && column + copy_row + i * S::ROWS_PER_PASS < p.experts;
      const T* const source = b_row + static_cast<int64_t>(i * S::ROWS_PER_PASS) * p.hidden + at;
      copy16_async(target + S::A_BYTES + i * kPassBytes, valid ? static_cast<const void*>(source) : p.weight, valid);
    }
  };

  // ldmatrix addresses of this lane, as in grouped_mma.cuh.
  const int warp_m = warp / 4 * 32, warp_n = warp % 4 * S::WN;
  const uint32_t a_lane = (warp_m + (lane & 15)) * (S::BK * 2);
  const uint32_t b_lane = S::A_BYTES + (warp_n + (lane & 7) + (lane >> 4) * 8) * (S::BK * 2);
#pragma unroll
  for (int i = 0; i < S::MT; ++i)
#pragma unroll
    for (int j = 0; j < S::NT; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[i][j][c] = 0.f;

  // All stages are on their way at once: a slice of up to 256 k is one round trip. Before step s, STAGES + s groups are
  // committed (some empty), and group s holds step s.
  const int steps = to - from;
#pragma unroll
  for (int s = 0; s < S::STAGES; ++s) {
    if (s < steps) load(from + s, s);
    commit_async();
  }
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    wait_async<S::STAGES - 1>();
    __syncthreads();
    const uint32_t stage = buffers + s % S::STAGES * S::STAGE_BYTES;
#pragma unroll
    for (int kk = 0; kk < S::BK / 16; ++kk) {
      uint32_t a[S::MT][4], b[S::NT][2];
#pragma unroll
      for (int i = 0; i < S::MT; ++i)
        load_matrix_x4(a[i], stage + a_lane + i * 16 * S::BK * 2 + (((kk * 2 + (lane >> 4)) ^ (lane & 7)) * 16));
#pragma unroll
      for (int j = 0; j < S::NT; j += 2) {
        uint32_t four[4];
        load_matrix_x4(four, stage + b_lane + j * 8 * S::BK * 2 + (((kk * 2 + (lane >> 3 & 1)) ^ (lane & 7)) * 16));
        b[j][0] = four[0], b[j][1] = four[1];
        b[j + 1][0] = four[2], b[j + 1][1] = four[3];
      }
#pragma unroll
      for (int i = 0; i < S::MT; ++i)
#pragma unroll
        for (int j = 0; j < S::NT; ++j) mma_16816<T>(acc[i][j], a[i], b[j]);
    }
    if (s + S::STAGES < steps) {
      __syncthreads();  // all have read the stage
      load(from + s + S::STAGES, s % S::STAGES);
    }
    commit_async();
  }
  wait_async<0>();
  __syncthreads();
}

template <class S, bool CLUSTER>
__global__ void __launch_bounds__(S::THREADS, 2) router_split_kernel(const SplitParams p) {
  constexpr bool kCluster = CLUSTER;
  if constexpr (CLUSTER && !kHasClusters) __trap();  // never launched: see hopper_path()
  extern __shared__ __align__(128) unsigned char shared[];
  wait_for_previous();
  release_next();
  const int rank = kCluster ? static_cast<int>(blockIdx.x % kSlices) : 0;
  const int tile = kCluster ? static_cast<int>(blockIdx.x / kSlices) : static_cast<int>(blockIdx.x);
  const int row = tile / p.column_tiles * S::BM, column = tile % p.column_tiles * S::BN;
  const int tokens = static_cast<int>(step_tokens(p.step, p.tokens));
  if (row >= tokens) return;  // the same for the whole cluster
  const auto* const x = static_cast<const typename S::T*>(p.step ? p.step->x : p.x);
  const int steps = (p.hidden + S::BK - 1) / S::BK, each = (steps + kSlices - 1) / kSlices;
  const uint32_t buffers = shared_address(shared);

  float sum[S::MT][S::NT][4];
  if constexpr (kCluster) {
    sum_steps<S>(p, x, tokens, row, column, min(rank * each, steps), min((rank + 1) * each, steps), buffers, sum);
  } else {
#pragma unroll 1
    for (int slice = 0; slice < kSlices; ++slice) {
      float part[S::MT][S::NT][4];
      sum_steps<S>(p, x, tokens, row, column, min(slice * each, steps), min((slice + 1) * each, steps), buffers, part);
#pragma unroll
      for (int i = 0; i < S::MT; ++i)
#pragma unroll
        for (int j = 0; j < S::NT; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) sum[i][j][c] = slice == 0 ? part[i][j][c] : sum[i][j][c] + part[i][j][c];
    }
  }

  float* const out = reinterpret_cast<float*>(shared);  // no thread reads the buffers any more
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int i = 0; i < S::MT; ++i)
#pragma unroll
    for (int j = 0; j < S::NT; ++j) {
      float* const at =
          out + (warp / 4 * 32 + i * 16 + (lane >> 2)) * S::STRIDE + warp % 4 * S::WN + j * 8 + (lane & 3) * 2;
      *reinterpret_cast<float2*>(at) = make_float2(sum[i][j][0], sum[i][j][1]);
      *reinterpret_cast<float2*>(at + 8 * S::STRIDE) = make_float2(sum[i][j][2], sum[i][j][3]);
    }
  if constexpr (kCluster) {
    cluster_arrive();
    cluster_wait();  // all slices' sums are there
  } else {
    __syncthreads();
  }

  constexpr int kRows = kCluster ? S::BM / kSlices : S::BM;
  for (int i = threadIdx.x; i < kRows * S::VECTORS; i += S::THREADS) {
    const int r = (kCluster ? rank * kRows : 0) + i / S::VECTORS, c = i % S::VECTORS * 4;
    float* const at = out + r * S::STRIDE + c;
    float4 v;
    if constexpr (kCluster) {
      float4 part[kSlices];
#pragma unroll
      for (int s = 0; s < kSlices; ++s) part[s] = *reinterpret_cast<const float4*>(in_block(at, s));
      v = part[0];
#pragma unroll
      for (int s = 1; s < kSlices; ++s) v.x += part[s].x, v.y += part[s].y, v.z += part[s].z, v.w += part[s].w;
    } else {
      v = *reinterpret_cast<const float4*>(at);
    }
    const int token = row + r, expert = column + c;
    if (token >= tokens || expert >= p.experts) continue;
    const float values[4] = {v.x, v.y, v.z, v.w};
    float* const to = p.logits + static_cast<int64_t>(token) * p.experts + expert;
    Pack<float, 4> pack;
#pragma unroll
    for (int e = 0; e < 4; ++e) pack.v[e] = values[e] + (p.bias && expert + e < p.experts ? p.bias[expert + e] : 0.f);
    if (p.vector_store) {
      store_pack<4>(to, pack);
      continue;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (expert + e < p.experts) to[e] = pack.v[e];
  }
  if constexpr (kCluster) {
    cluster_arrive();
    cluster_wait();  // nobody reads this block's sums any more
  }
}

template <class S>
void launch_split_shape(SplitParams p, bool clusters, const Target& target) {
  static KernelFacts facts[2];
  const int64_t row_tiles = (p.tokens + S::BM - 1) / S::BM;
  p.column_tiles = (p.experts + S::BN - 1) / S::BN;
  const int64_t blocks = row_tiles * p.column_tiles * (clusters ? kSlices : 1);
  if (blocks > 0x7fffffff) throw_unsupported("tokens: " + std::to_string(blocks) + " tiles exceed CUDA's grid limit");
  const auto kernel = clusters ? &router_split_kernel<S, true> : &router_split_kernel<S, false>;
  facts[clusters].blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, S::THREADS,
                                            S::SHARED_BYTES);
  const auto grid = static_cast<unsigned>(blocks);
  if (clusters)
    launch_clusters("router_logits_split", kernel, grid, S::THREADS, S::SHARED_BYTES, target.stream, p);
  else
    launch("router_logits_split", kernel, grid, S::THREADS, S::SHARED_BYTES, target.device, target.stream, p);
}

template <class T>
void launch_split(const SplitParams& p, int64_t choice, bool clusters, const Target& target) {
  const bool few = choice <= kSplitFewRows;
  if (p.experts <= 64)
    few ? launch_split_shape<SplitShape<T, 32, 64>>(p, clusters, target)
        : launch_split_shape<SplitShape<T, 64, 64>>(p, clusters, target);
  else
    few ? launch_split_shape<SplitShape<T, 32, 128>>(p, clusters, target)
        : launch_split_shape<SplitShape<T, 64, 128>>(p, clusters, target);
}

}  // namespace

void launch_router_split(const RouterLogitsArgs& args, int64_t choice, bool clusters, const Target& target) {
  SplitParams p{};
  p.x = args.x, p.weight = args.weight, p.bias = args.bias, p.logits = args.logits;
  p.step = args.step, p.tokens = args.tokens;
  p.hidden = static_cast<int>(args.hidden), p.experts = args.experts;
  p.vector_store = args.experts % 4 == 0 && aligned16(args.logits);
  if (args.x_dtype == DType::kBF16)
    launch_split<__nv_bfloat16>(p, choice, clusters, target);
  else
    launch_split<__half>(p, choice, clusters, target);
}

}  // namespace nexus::cuda
