// What all grouped kernels share: which tile a block owns, which rows it reads and writes, and the epilogue that takes
// a finished float32 tile from shared memory to global memory.
//
// The host knows only an upper bound of the rows, so the grid is sized for the worst split over the experts and each
// block finds its own tile from the device's offsets: blocks past the last tile leave at once. Order of tiles: expert
// by expert; within an expert in groups of up to 8 row tiles, all row tiles of a group before the next column tile. So
// blocks that run at the same time share a weight tile (read from HBM once), and the group's input rows stay in L2
// while the weights stream by.
#pragma once
#include "data/cuda/activation.cuh"
#include "data/cuda/convert.cuh"
#include "data/cuda/grouped.h"

namespace nexus::cuda {

struct Tile {
  int expert;
  int row;     // first row, in expert-sorted order
  int rows;    // rows from `row` to the expert's end, at least 1
  int column;  // first column of the weight's n
};

/// Every lane of every warp calls it and gets the same answer. False: this block has no tile.
template <int BM, int BN>
__device__ __forceinline__ bool find_tile(const GroupedParams& p, Tile& tile) {
  constexpr int kGroup = 8;
  const int block = blockIdx.x;
  const int wanted = block / p.n_tiles;  // the how-maniest row tile's share of blocks this one falls in
  int expert = 0, first_tile = 0, begin = 0, rows = 0;
  if (p.offsets == nullptr) {
    rows = static_cast<int>(p.max_rows);
    if (wanted >= (rows + BM - 1) / BM) return false;
  } else {
    const int lane = threadIdx.x & 31;
    const int per_lane = (p.experts + 31) / 32;
    const int first = min(lane * per_lane, p.experts);
    const int last = min(first + per_lane, p.experts);
    const int lane_begin = p.offsets[first];
    int tiles = 0, previous = lane_begin;
#pragma unroll 4
    for (int e = first; e < last; ++e) {
      const int next = p.offsets[e + 1];
      tiles += (next - previous + BM - 1) / BM;
      previous = next;
    }
    int through = tiles;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int left = __shfl_up_sync(0xffffffffu, through, d);
      if (lane >= d) through += left;
    }
    const bool mine = wanted >= through - tiles && wanted < through;
    const unsigned owners = __ballot_sync(0xffffffffu, mine);
    if (owners == 0) return false;
    if (mine) {
      first_tile = through - tiles;
      begin = lane_begin;
      for (expert = first; expert < last; ++expert) {
        const int next = p.offsets[expert + 1];
        rows = next - begin;
        const int count = (rows + BM - 1) / BM;
        if (wanted < first_tile + count) break;
        first_tile += count;
        begin = next;
      }
    }
    const int owner = __ffs(owners) - 1;
    expert = __shfl_sync(0xffffffffu, expert, owner);
    first_tile = __shfl_sync(0xffffffffu, first_tile, owner);
    begin = __shfl_sync(0xffffffffu, begin, owner);
    rows = __shfl_sync(0xffffffffu, rows, owner);
  }
  const int tiles = (rows + BM - 1) / BM;
  const int local = block - first_tile * p.n_tiles;  // in [0, tiles * n_tiles)
  const int group = local / (kGroup * p.n_tiles);
  const int in_group = min(kGroup, tiles - group * kGroup);
  const int within = local - group * kGroup * p.n_tiles;
  const int row_tile = group * kGroup + within % in_group;
  tile.expert = expert;
  tile.row = begin + row_tile * BM;
  tile.rows = rows - row_tile * BM;
  tile.column = within / in_group * BN;
  return true;
}

/// Per-row facts of a tile, in shared memory. input = -1 marks a row past the expert's end.
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
      const int slot = p.order ? p.order[row] : row;
      input = p.gather ? slot / p.rows_per_input : row;
      output = p.scatter ? slot : row;
      if (p.row_scale) scale = p.row_scale[slot];
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
      v[j] *= scale;
      if (bias && j < valid) v[j] += __ldg(bias + column + j);
    }
    apply_epilogue(epilogue, p.limit, p.alpha, v);
    const int64_t at = static_cast<int64_t>(out_row) * out_width + (p.gated ? column / 2 : column);
    if (p.output_f32) {
      store_columns<float, 8>(p, static_cast<float*>(p.output) + at, v, valid);
    } else if (p.gated) {
      store_columns<T, 4>(p, static_cast<T*>(p.output) + at, v, valid / 2);
    } else {
      store_columns<T, 8>(p, static_cast<T*>(p.output) + at, v, valid);
    }
  }
}

}  // namespace nexus::cuda
