// Grouped linear layer for a handful of rows (decoding one or two tokens), on the CUDA cores: a matrix-vector product
// per row.
//
//   out[r, :] = epilogue(scale[r] · W[e] · x[in(r), :] + bias[e])
//   bytes: the touched experts' n·k weights once; 2·rows·n·k flop, far below what the memory allows.
//
// With so few rows each expert has about one, so nothing is shared between rows and a tensor-core tile would be 15/16
// padding. A warp owns eight weight rows of one expert for one input row: each lane reads every 32nd 16-byte chunk of
// all eight, eight or sixteen independent loads in flight, and one butterfly per row ends the sum in a fixed order.
// Eight rows because a gated layer's pairs then lie in one lane and the results are one 16-byte store. Blocks of two
// warps, so that the last wave is fine-grained.
//
// `settled` says that the offsets are older than the kernel before this one (a layer after the first): then the first
// weights are fetched while that kernel still runs.
#include <algorithm>
#include <type_traits>

#include "data/cuda/decode_rows.cuh"
#include "data/cuda/gemv.h"
#include "data/cuda/gemv_sum.cuh"
#include "data/cuda/grouped_tile.cuh"
#include "data/cuda/launch.h"

namespace nexus::cuda {
namespace {

constexpr int kColumns = 8, kThreads = 64, kWarps = kThreads / 32;

/// The expert of sorted row `row`, by the whole warp; -1 past the last row. Offsets come past L1: another kernel wrote
/// them.
__device__ __forceinline__ int expert_of(const GroupedParams& p, int row) {
  if (p.offsets == nullptr) return 0;
  const int lane = threadIdx.x & 31;
  for (int base = 0; base < p.experts; base += 32) {
    const int e = base + lane;
    const int end = e < p.experts ? __ldcg(p.offsets + e + 1) : 0x7fffffff;
    const unsigned past = __ballot_sync(0xffffffffu, row < end);
    if (past != 0) {
      const int found = base + __ffs(past) - 1;
      return found < p.experts ? found : -1;
    }
  }
  return -1;
}

/// The first chunks of the eight weight rows of one expert, and what reads on from there. PANELS: they lie in panels,
/// so that a lane's next chunk of a row is four panels on.
template <class T, bool PANELS>
struct Weights {
  static constexpr int VEC = kChunk<T>;
  const T* row[kColumns];
  Pack<T, VEC> ahead[kColumns];
  bool first;  // this lane has a chunk ahead

  __device__ __forceinline__ Weights(const GroupedParams& p, int expert, int column) {
    const int k = static_cast<int>(p.k), n = static_cast<int>(p.n), lane = threadIdx.x & 31;
    first = expert >= 0 && lane * VEC < k;
    const RowPlaces<T, PANELS> places{k, n, p.gated};
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      // Past the end: read the last row again, the result is not stored.
      row[i] = places.first(p.weight, max(expert, 0), min(column + i, n - 1));
      if (first) ahead[i] = load_stream<T, VEC>(row[i]);
    }
  }
};

/// Columns `column` to `column` + 7 of sorted row `row`, by one warp.
template <class T, bool PANELS>
__device__ __forceinline__ void gemv_tile(const GroupedParams& p, const Weights<T, PANELS>& weights,
                                          const void* input_rows, int expert, int row, int column) {
  constexpr int kVec = Weights<T, PANELS>::VEC;
  const int lane = threadIdx.x & 31;
  const int k = static_cast<int>(p.k), n = static_cast<int>(p.n);
  const int slot = slot_at(p, row);
  if (slot < 0) return;
  const int input = p.gather ? slot / p.rows_per_input : row;
  const T* x = static_cast<const T*>(input_rows) + static_cast<int64_t>(input) * k + lane * kVec;
  float acc[kColumns] = {};
  if (weights.first) {
    const Pack<T, kVec> v = load_pack<kVec>(x);
    add_chunk<T>(weights.ahead, v, acc);
  }
#pragma unroll 2
  for (int at = 32 * kVec; at + lane * kVec < k; at += 32 * kVec) {
    const Pack<T, kVec> v = load_pack<kVec>(x + at);
    Pack<T, kVec> w[kColumns];
    const int64_t along = PANELS ? static_cast<int64_t>(at) * n : at;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) w[i] = load_stream<T, kVec>(weights.row[i] + along);
    add_chunk<T>(w, v, acc);
  }
  float v[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) v[i] = warp_sum(acc[i]);
  if (lane != 0) return;

  const float scale = p.row_scale ? p.row_scale[slot] : 1.f;
  const int valid = min(kColumns, n - column);
  float bias[kColumns] = {};
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    if (p.bias && i < valid) bias[i] = __ldg(p.bias + static_cast<int64_t>(expert) * n + column + i);
  finish_sums(scale, p.bias != nullptr, bias, static_cast<Epilogue>(p.epilogue), p.limit, p.alpha, v);
  const int64_t out_row = p.scatter ? slot : row;
  if (p.gated) {
    T* out = static_cast<T*>(p.output) + out_row * (p.n / 2) + column / 2;
    store_columns<T, 4>(p, out, v, valid / 2);
  } else {
    store_columns<T, 8>(p, static_cast<T*>(p.output) + out_row * p.n + column, v, valid);
  }
}

/// Blocks per SM: for bf16 the compiler, left to itself, aims for more and spills.
template <class T>
constexpr int kMinBlocks = std::is_same_v<T, __nv_bfloat16> ? 8 : 0;

template <class T, bool PANELS>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>) grouped_gemv_kernel(const GroupedParams p) {
  const int tile = blockIdx.x * kWarps + (threadIdx.x >> 5);
  const int row = tile / p.n_tiles, column = tile % p.n_tiles * kColumns;
  if (!p.settled) wait_for_previous();
  const int expert = row < p.max_rows ? expert_of(p, row) : -1;
  const Weights<T, PANELS> weights(p, expert, column);
  if (p.settled) wait_for_previous();
  release_next();
  if (expert >= 0) gemv_tile(p, weights, input_of(p), expert, row, column);
}

/// The same tiles as find_place() numbers them, one row each: those of a lane's experts, by the warps of its blocks.
template <class T, bool PANELS>
__global__ void __launch_bounds__(kThreads) grouped_gemv_lanes_kernel(const GroupedParams p) {
  if (!p.settled) wait_for_previous();
  const Walk walk = lanes_walk(p, blockIdx.x, gridDim.x);
  int index = walk.first * kWarps + (threadIdx.x >> 5);
  const void* input_rows = nullptr;
  bool started = false;
#pragma unroll 1
  for (;; index += walk.stride * kWarps) {
    TilePlace place;
    const bool found = find_place<1, true>(p, index, place, walk.lane);
    const Weights<T, PANELS> weights(p, found ? place.expert : -1, found ? place.column_tile * kColumns : 0);
    if (!started) {
      if (p.settled) wait_for_previous();
      release_next();
      input_rows = input_of(p);
      started = true;
    }
    if (!found) return;
    if ((threadIdx.x & 31) == 0) trace_tile(p, place.expert);
    gemv_tile(p, weights, input_rows, place.expert, place.begin + place.row_tile, place.column_tile * kColumns);
    if (!walks(p)) return;  // a warp for each tile
  }
}

template <class T, bool PANELS>
void launch_tiles(const GroupedParams& params, const Target& target) {
  unsigned blocks = grid_for(params.n_tiles * params.max_rows, kWarps);
  auto* kernel = &grouped_gemv_kernel<T, PANELS>;
  if (with_lanes(params)) {
    kernel = &grouped_gemv_lanes_kernel<T, PANELS>;
    if (walks(params)) {
      static KernelFacts facts;
      const int at_once =
          facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, kThreads, 0);
      blocks = std::min(blocks, static_cast<unsigned>(std::max(1, target.width) * at_once));
    }
  }
  launch("grouped_gemv", kernel, blocks, kThreads, 0, target.device, target.stream, params);
}

}  // namespace

void launch_gemv(DType dtype, GroupedParams params, const Target& target) {
  params.n_tiles = static_cast<int>((params.n + kColumns - 1) / kColumns);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2)
      if (params.in_panels) return launch_tiles<T, true>(params, target);
    launch_tiles<T, false>(params, target);
  });
}

}  // namespace nexus::cuda
