// Which tile a cluster of the Hopper path works on, and what happens to a finished one.
//
// An expert's rows are cut into as few tiles as fit, of about equal size (row_share() in hopper_shape.h): 272 rows are
// two blocks of 136 rather than one of 160 and one of 112. The order of tiles is that of tile_order.cuh.
#pragma once
#include "data/cuda/activation.cuh"
#include "data/cuda/convert.cuh"
#include "data/cuda/grouped.h"
#include "data/cuda/hopper_ptx.cuh"
#include "data/cuda/hopper_shape.h"
#include "data/cuda/tile_order.cuh"

namespace nexus::cuda::hopper {

struct Tile {
  int expert;
  int row;     // first row, in expert-sorted order; where there are no rows, some row of the expert
  int column;  // first column of the weight's n
  int rows;    // rows from `row` on that belong to the tile, may be 0
  int padded;  // rows that the products run over, a multiple of 8; 0: there is no tile
  int once;    // its weights are read by no other tile
  int alone;   // of a pair's block: its weights are its own, the other block has other columns
};

constexpr int kOnceDepth = 2048;  // see give_up_first() in hopper_grouped.cuh

/// A tile that is found before its turn, with the rows of the input that its rows are. Its barriers come first.
template <int ROWS>
struct NextTile {
  uint64_t found, placed, taken;
  Tile tile;
  uint32_t rows[ROWS];  // see input_rows()
};

/// What consumers need of the tile in a slot of the ring between producer and them: by all lanes of a warp. One lane
/// reads it, the one that gives this block's buffers back, so that the slot's next write is ordered behind its reads by
/// that lane's own arrivals. Were others to read it as well, the order would go by way of barriers among them, which
/// racecheck does not follow.
template <class S, class T>
__device__ __forceinline__ T read_slot(const T& slot) {
  const int reader = S::CLUSTER > 1 ? static_cast<int>(cluster_rank()) : 0;
  const bool reads = static_cast<int>(threadIdx.x & 31) == reader;
  const auto pass = [&](const int& word) { return __shfl_sync(0xffffffffu, reads ? word : 0, reader); };
  T tile{};
  tile.expert = pass(slot.expert), tile.row = pass(slot.row), tile.column = pass(slot.column);
  tile.rows = pass(slot.rows), tile.padded = pass(slot.padded);
  if constexpr (requires { tile.layer; }) tile.layer = pass(slot.layer), tile.count = pass(slot.count);
  return tile;
}

/// What a pair of blocks does at turn `index` of an expert's, as one of its blocks sees it: see PairTurn in
/// hopper_shape.h. `begin`, `rows`, `shares`: the expert's.
template <int COLUMNS>
__device__ __forceinline__ void place_pair_tile(int expert, int begin, int rows, int shares, int n_tiles, int index,
                                                Tile& tile) {
  const int rank = static_cast<int>(cluster_rank());  // asked for here: a register less to keep
  const PairTurn turn = pair_turn(index, rows, shares, n_tiles, rank);
  tile.expert = expert;
  tile.rows = max(0, min(turn.rows.padded, rows - turn.rows.from));
  tile.row = tile.rows > 0 ? begin + turn.rows.from : begin;
  tile.column = turn.column * COLUMNS;
  tile.padded = turn.rows.padded;
  tile.alone = turn.alone;
}

/// What a pair of blocks does at its turn `index` of all experts'. All lanes of a warp call it and get the same answer.
/// False: no more turns.
template <int SPAN, int COLUMNS, bool LANES>
__device__ __forceinline__ bool find_pair_tile(const GroupedParams& p, int index, Tile& tile, int only) {
  const auto shares_of = [](int rows) { return (rows + SPAN - 1) / SPAN; };
  ExpertPlace at;
  const bool found =
      find_expert<LANES>(p, index, only, at, [&](int rows) { return pair_turns(shares_of(rows), p.n_tiles); });
  if (!found) return false;
  place_pair_tile<COLUMNS>(at.expert, at.begin, at.rows, shares_of(at.rows), p.n_tiles, index - at.first, tile);
  return true;
}

/// Tile `index` of a cluster of CLUSTER blocks with up to SPAN rows each, as block `rank` sees it. All lanes of a warp
/// call it and get the same answer. False: no more tiles. LANES, only: see find_place.
template <int SPAN, int CLUSTER, int COLUMNS, bool LANES>
__device__ __forceinline__ bool find_tile(const GroupedParams& p, int index, int rank, Tile& tile, int only) {
  TilePlace place;
  if (!find_place<SPAN * CLUSTER, LANES>(p, index, place, only)) return false;
  const RowShare share = row_share(place.rows, place.tiles * CLUSTER, place.row_tile * CLUSTER + rank);
  tile.expert = place.expert;
  tile.rows = max(0, min(share.padded, place.rows - share.from));
  tile.row = tile.rows > 0 ? place.begin + share.from : place.begin;
  tile.column = place.column_tile * COLUMNS;
  tile.padded = share.padded;
  if constexpr (SPAN <= 64 && CLUSTER == 1) tile.once = place.tiles == 1;
  return true;
}

/// A tile's first row of weights, as their map counts rows.
__device__ __forceinline__ int weights_row(const GroupedParams& p, const Tile& tile) {
  return tile.expert * p.expert_rows + tile.column;
}
/// The coordinates of a box that begins in row `row` and panel `panel` of k. DEEP: of a map for several panels.
template <bool DEEP>
__device__ __forceinline__ WeightsAt weights_at(const GroupedParams& p, int row, int panel) {
  if (p.in_panels || (DEEP && !p.gated)) return {0, 0, panel, row / 8, 0};
  const int x = DEEP ? 0 : panel * static_cast<int>(kPanelColumns), deep = DEEP ? panel : 0;
  return p.gated ? WeightsAt{x, 0, deep, 0, row / 16} : WeightsAt{x, row, 0, 0, 0};
}

/// silu by the hardware's exponential and reciprocal: about 1e-6 relative, far below the rounding of the 16-bit result,
/// at a fifth of the instructions. Below -88 it is 0, where silu is less than 1e-36.
__device__ __forceinline__ float fast_silu(float x) {
  constexpr float kLog2E = 1.4426950408889634f;
  float power, part;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -kLog2E));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(part) : "f"(1.f + power));
  return x * part;
}

/// Per-row facts of a tile, in shared memory; output = -1 marks a row that does not exist. SCALE: with room for scales.
template <int ROWS, bool SCALE = true>
struct OutputRows {
  int output[ROWS];
  float scale[ROWS];
};
template <int ROWS>
struct OutputRows<ROWS, false> {
  int output[ROWS];
};

template <class T>
__device__ __forceinline__ uint32_t pack_two(float low, float high) {
  const Pack<T, 2> pack{{from_float<T>(low), from_float<T>(high)}};
  return *reinterpret_cast<const uint32_t*>(&pack);
}

/// Two elements of a word to consecutive columns from `column`, as far as they exist.
template <class T>
__device__ __forceinline__ void store_word(T* row, int column, int width, uint32_t word) {
  const Pack<T, 2> pack = *reinterpret_cast<const Pack<T, 2>*>(&word);
  if (column < width) row[column] = pack.v[0];
  if (column + 1 < width) row[column + 1] = pack.v[1];
}

/// What one warp needs to finish its part of a tile: 16 columns from `column` in each of the accumulator's BLOCKS
/// blocks. ROLLED: all epilogues are loops, a third of the code.
template <class T, int BLOCKS = 2, bool ROLLED = false>
struct Finish {
  static constexpr int AT_ONCE = 4;  // 8 × 8 blocks, at most
  const GroupedParams& p;
  const int* output;  // of the tile's rows, shared memory
  const float* scale;

  /// Groups of eight rows that a store() finishes.
  template <int SIZE>
  static constexpr int GROUPS = AT_ONCE / BLOCKS < SIZE / 4 ? AT_ONCE / BLOCKS : SIZE / 4;

  /// Finishes the products of rows 8j … 8·(j + GROUPS) - 1 with this warp's BLOCKS × 16 columns (`column` on, and 64
  /// further on). Of an accumulator's four, v[0] and v[1] belong to column lane/4 and rows 2·(lane%4) + 0, 1, v[2] and
  /// v[3] to the column 8 further, or, GATED, to gate and up of pair lane/4: so are the weights loaded (hopper.h). The
  /// results are transposed inside the warp, so that each thread stores consecutive columns of row lane/4. The blocks
  /// go through each stage together: transposes and special functions take long, and overlap.
  template <bool GATED, int SIZE, class F>
  __device__ __forceinline__ void store(int j, int at, int column, const float (&bias)[BLOCKS][2],
                                        const float (&acc)[BLOCKS][SIZE], F&& activate) const {
    constexpr int groups = GROUPS<SIZE>, parts = groups * BLOCKS;
    const int lane = threadIdx.x & 31, t = lane & 3, width = static_cast<int>(GATED ? p.n / 2 : p.n);
    T* row[groups];
    float x[parts][4];  // of rows 8·(j + i / BLOCKS) and columns 64·(i % BLOCKS)
#pragma unroll
    for (int i = 0; i < parts; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c) x[i][c] = acc[i % BLOCKS][(at + i / BLOCKS) * 4 + c];
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      const int out = output[(j + g) * 8 + (lane >> 2)];
      row[g] = out < 0 ? nullptr : static_cast<T*>(p.output) + static_cast<int64_t>(out) * width;
      if (p.row_scale) {
        const float2 s = *reinterpret_cast<const float2*>(scale + (j + g) * 8 + t * 2);
#pragma unroll
        for (int i = g * BLOCKS; i < (g + 1) * BLOCKS; ++i)
          x[i][0] *= s.x, x[i][1] *= s.y, x[i][2] *= s.x, x[i][3] *= s.y;
      }
    }
#pragma unroll
    for (int i = 0; i < parts; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c) x[i][c] += bias[i % BLOCKS][c >> 1];
    if constexpr (GATED) {
      uint32_t word[parts];
#pragma unroll
      for (int i = 0; i < parts; ++i) word[i] = pack_two<T>(activate(x[i][0], x[i][2]), activate(x[i][1], x[i][3]));
#pragma unroll
      for (int i = 0; i < parts; ++i) word[i] = transpose_8x8(word[i]);
#pragma unroll
      for (int i = 0; i < parts; ++i) {
        T* const target = row[i / BLOCKS];
        const int to = (column + (i % BLOCKS) * 64) / 2 + t * 2;
        if (target == nullptr) continue;
        if (!p.vector_store)
          store_word(target, to, width, word[i]);
        else if (to < width)
          *reinterpret_cast<uint32_t*>(target + to) = word[i];
      }
    } else {
      uint32_t word[parts][2];
#pragma unroll
      for (int i = 0; i < parts; ++i)
#pragma unroll
        for (int c = 0; c < 2; ++c)
          word[i][c] = transpose_8x8(
              pack_two<T>(activate(x[i][2 * c], x[i][2 * c]), activate(x[i][2 * c + 1], x[i][2 * c + 1])));
      // Pairs of threads exchange words: four consecutive columns each.
      const bool odd = lane & 1;
#pragma unroll
      for (int i = 0; i < parts; ++i) {
        const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? word[i][0] : word[i][1], 1);
        word[i][0] = odd ? received : word[i][0];
        word[i][1] = odd ? word[i][1] : received;
      }
#pragma unroll
      for (int i = 0; i < parts; ++i) {
        T* const target = row[i / BLOCKS];
        const int to = column + (i % BLOCKS) * 64 + (t & 1) * 8 + (t >> 1) * 4;
        if (target == nullptr) continue;
        if (!p.vector_store) {
          store_word(target, to, width, word[i][0]);
          store_word(target, to + 2, width, word[i][1]);
        } else if (to < width) {
          *reinterpret_cast<uint2*>(target + to) = make_uint2(word[i][0], word[i][1]);
        }
      }
    }
  }

  // Rows from `padded` to the next multiple of 8·GROUPS are marked as not existing, and their accumulators are zeros.
  /// All of a warp's accumulators, unrolled: for the cheap and common activations.
  template <bool GATED, int SIZE, class F>
  __device__ __forceinline__ void unrolled(int padded, int column, const float (&bias)[BLOCKS][2],
                                           const float (&acc)[BLOCKS][SIZE], F&& activate) const {
#pragma unroll
    for (int j = 0; j < SIZE / 4; j += GROUPS<SIZE>)
      if (j * 8 < padded) store<GATED>(j, j, column, bias, acc, activate);
  }
  /// The same with one copy of the activation's code: the accumulators move down instead of the index moving up.
  template <bool GATED, int SIZE, class F>
  __device__ __forceinline__ void rolled(int padded, int column, const float (&bias)[BLOCKS][2],
                                         float (&acc)[BLOCKS][SIZE], F&& activate) const {
    constexpr int step = GROUPS<SIZE>;
#pragma unroll 1
    for (int j = 0; j * 8 < padded; j += step) {
      store<GATED>(j, 0, column, bias, acc, activate);
#pragma unroll
      for (int h = 0; h < BLOCKS; ++h)
#pragma unroll
        for (int i = 0; i < SIZE - step * 4; ++i) acc[h][i] = acc[h][i + step * 4];
    }
  }

  /// Of the warp's columns: a thread's two of each block.
  __device__ __forceinline__ void load_bias(float (&bias)[BLOCKS][2], const Tile& tile, int column) const {
    const int lane = threadIdx.x & 31, n = static_cast<int>(p.n);
    const int first = p.gated ? (lane >> 2) * 2 : lane >> 2, apart = p.gated ? 1 : 8;
#pragma unroll
    for (int h = 0; h < BLOCKS; ++h) bias[h][0] = bias[h][1] = 0.f;
    if (p.bias) {
      const float* from = p.bias + static_cast<int64_t>(tile.expert) * n;
#pragma unroll
      for (int h = 0; h < BLOCKS; ++h)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = column + h * 64 + first + i * apart;
          if (at < n) bias[h][i] = __ldg(from + at);
        }
    }
  }

  template <int SIZE>
  __device__ __forceinline__ void operator()(const Tile& tile, int column, float (&acc)[BLOCKS][SIZE]) const {
    float bias[BLOCKS][2];
    load_bias(bias, tile, column);
    const Epilogue epilogue = static_cast<Epilogue>(p.epilogue);
    if (epilogue == Epilogue::kIdentity || epilogue == Epilogue::kRelu) {
      const bool clip = epilogue == Epilogue::kRelu;
      const auto identity = [clip](float x, float) { return clip ? relu(x) : x; };
      if constexpr (ROLLED)
        rolled<false>(tile.padded, column, bias, acc, identity);
      else
        unrolled<false>(tile.padded, column, bias, acc, identity);
    } else if (epilogue == Epilogue::kSwiglu) {
      const auto swiglu = [](float gate, float up) { return fast_silu(gate) * up; };
      if constexpr (ROLLED)
        rolled<true>(tile.padded, column, bias, acc, swiglu);
      else
        unrolled<true>(tile.padded, column, bias, acc, swiglu);
    } else if (!p.gated) {
      rolled<false>(tile.padded, column, bias, acc, [epilogue](float x, float) {
        float v[1] = {x};
        apply_epilogue(epilogue, 0.f, 0.f, v);
        return v[0];
      });
    } else {
      const float limit = p.limit, alpha = p.alpha;
      rolled<true>(tile.padded, column, bias, acc, [epilogue, limit, alpha](float gate, float up) {
        float v[2] = {gate, up};
        apply_epilogue(epilogue, limit, alpha, v);
        return v[0];
      });
    }
  }
};

}  // namespace nexus::cuda::hopper
