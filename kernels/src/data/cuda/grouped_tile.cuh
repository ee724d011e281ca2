// What all grouped kernels share: which tile a block owns, which rows it reads and writes, and the epilogue that takes
// a finished float32 tile from shared memory to global memory.
//
// The host knows only an upper bound of the rows, so the grid is sized for the worst split over the experts and each
// block finds its own tile from the device's offsets (tile_order.cuh): blocks past the last tile leave at once.
#pragma once
#include "data/cuda/activation.cuh"
#include "data/cuda/convert.cuh"
#include "data/cuda/tile_order.cuh"

namespace nexus::cuda {

struct Tile {
  int expert;
  int row;     // first row, in expert-sorted order
  int rows;    // rows from `row` to the expert's end, at least 1
  int column;  // first column of the weight's n
};

/// Tile `index` of lane `only` (see find_place). Every lane of every warp calls it and gets the same answer. False:
/// there is no such tile.
template <int BM, int BN, bool LANES>
__device__ __forceinline__ bool find_tile(const GroupedParams& p, int index, Tile& tile, int only = -1) {
  TilePlace place;
  if (!find_place<BM, LANES>(p, index, place, only)) return false;
  tile.expert = place.expert;
  tile.row = place.begin + place.row_tile * BM;
  tile.rows = place.rows - place.row_tile * BM;
  tile.column = place.column_tile * BN;
  return true;
}

/// Runs `work(tile)` for every tile of this block: one in a plain launch, which has a block for each; those of its walk
/// where blocks are divided among lanes. Between two tiles stands a barrier: all threads have read from shared memory
/// what the next tile overwrites.
template <int BM, int BN, bool LANES, class F>
__device__ __forceinline__ void for_each_tile(const GroupedParams& p, F&& work) {
  Tile tile;
  if constexpr (!LANES) {
    if (find_tile<BM, BN, false>(p, blockIdx.x, tile)) work(tile);  // else the whole block leaves
  } else {
    const Walk walk = lanes_walk(p, blockIdx.x, gridDim.x);
#pragma unroll 1
    for (int index = walk.first;; index += walk.stride) {
      if (!find_tile<BM, BN, true>(p, index, tile, walk.lane)) return;
      if (threadIdx.x == 0) trace_tile(p, tile.expert);
      work(tile);
      if (!walks(p)) return;  // a block for each tile
      __syncthreads();
    }
  }
}

/// Per-row facts of a tile, in shared memory. input = -1 marks a row that is not there.
template <int BM>
struct RowMap {
  int input[BM];
  int output[BM];
  float scale[BM];
};

template <int BM, int THREADS>
__device__ __forceinline__ void fill_rows(const GroupedParams& p, const Tile& tile, RowMap<BM>& map) {
  for (int i = threadIdx.x; i < BM; i += THREADS) {
    int input = -1, output = -1;
    float scale = 1.f;
    if (i < tile.rows) {
      const int row = tile.row + i;
      const int slot = slot_at(p, row);
      if (slot >= 0) {
        input = p.gather ? slot / p.rows_per_input : row;
        output = p.scatter ? slot : row;
        if (p.row_scale) scale = p.row_scale[slot];
      }
    }
    map.input[i] = input;
    map.output[i] = output;
    map.scale[i] = scale;
  }
}

template <class T, int N>
__device__ __forceinline__ void store_columns(const GroupedParams& p, T* out, const float (&v)[8], int valid) {
  if (p.vector_store) {  // then valid is all of them
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(v[i]);
    store_pack<N>(out, pack);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i)
      if (i < valid) out[i] = from_float<T>(v[i]);
  }
}

/// silu by the hardware's exponential and division: about 1e-6 relative, far below the rounding of a 16-bit result, at
/// a third of the instructions.
__device__ __forceinline__ float quick_silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }

/// The activation of a kernel whose input is T.
template <class T>
__device__ __forceinline__ void finish_columns(const GroupedParams& p, Epilogue epilogue, float (&v)[8]) {
  if (!std::is_same_v<T, float> && epilogue == Epilogue::kSwiglu) {
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = quick_silu(v[2 * i]) * v[2 * i + 1];
  } else {
    apply_epilogue(epilogue, p.limit, p.alpha, v);
  }
}

/// The results of columns `column` … `column` + 7 of n, of which `valid` exist; `row`: where the output's row starts.
template <class T>
__device__ __forceinline__ void store_row(const GroupedParams& p, int64_t row, int column, const float (&v)[8],
                                          int valid) {
  const int64_t at = row + (p.gated ? column / 2 : column);
  if (p.output_f32) {
    store_columns<float, 8>(p, static_cast<float*>(p.output) + at, v, valid);
  } else if (p.gated) {
    store_columns<T, 4>(p, static_cast<T*>(p.output) + at, v, valid / 2);
  } else {
    store_columns<T, 8>(p, static_cast<T*>(p.output) + at, v, valid);
  }
}

/// acc: float32 [BM][BN + 8] in shared memory, written and synchronised. Row scale, bias, activation, conversion,
/// (scattered) store; eight columns a thread, neighbouring threads on neighbouring columns.
template <class T, int BM, int BN, int THREADS>
__device__ __forceinline__ void store_tile(const GroupedParams& p, const Tile& tile, const RowMap<BM>& map,
                                           const float* acc) {
  const Epilogue epilogue = static_cast<Epilogue>(p.epilogue);
  const int64_t out_width = p.gated ? p.n / 2 : p.n;
  const float* bias = p.bias ? p.bias + static_cast<int64_t>(tile.expert) * p.n : nullptr;
  const int n = static_cast<int>(p.n);
#pragma unroll 1
  for (int i = threadIdx.x; i < BM * (BN / 8); i += THREADS) {
    const int row = i / (BN / 8);
    const int local = i % (BN / 8) * 8;
    const int column = tile.column + local;
    const int out_row = map.output[row];
    if (out_row < 0 || column >= n) continue;
    const float scale = map.scale[row];
    float v[8];
    const float* source = acc + row * (BN + 8) + local;
    *reinterpret_cast<float4*>(v) = *reinterpret_cast<const float4*>(source);
    *reinterpret_cast<float4*>(v + 4) = *reinterpret_cast<const float4*>(source + 4);
    const int valid = min(8, n - column);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      v[j] = __fmul_rn(v[j], scale);
      if (bias && j < valid) v[j] = __fadd_rn(v[j], __ldg(bias + column + j));
    }
    finish_columns<T>(p, epilogue, v);
    store_row<T>(p, static_cast<int64_t>(out_row) * out_width, column, v, valid);
  }
}

}  // namespace nexus::cuda
