// Finished rows by way of shared memory: what a warpgroup computed leaves as 16 bytes a thread, whole 128-byte lines of
// a row, where Finish (hopper_tile.cuh) stores 16 or 32 bytes of a row at a time. For the two epilogues of the usual
// experts, without a row scale; the same operations on the same values, so the same bits.
//
// Four KiB at a time: packed, transposed on the way in by stmatrix, read back in rows. One barrier among the warpgroup
// for each, since there are two buffers: while some warps still read one, others fill the other.
#pragma once
#include "data/cuda/hopper_shape.h"
#include "data/cuda/hopper_tile.cuh"
#include "data/cuda/mma.cuh"

namespace nexus::cuda::hopper {

/// Whether finish_staged() can do a launch's epilogue. The same answer in all threads.
__device__ __forceinline__ bool stages(const GroupedParams& p) {
  const Epilogue epilogue = static_cast<Epilogue>(p.epilogue);
  if (p.row_scale || !p.vector_store) return false;
  return epilogue == Epilogue::kIdentity || epilogue == Epilogue::kSwiglu;
}

template <class T, int BLOCKS_, bool GATED>
struct Staged {
  static constexpr int BLOCKS = BLOCKS_;                         // of 64 columns, of a warpgroup
  static constexpr int UNITS = GATED ? 4 * BLOCKS : 8 * BLOCKS;  // of 16 bytes, in a warpgroup's part of an output row
  static constexpr int ROWS = staged_rows(UNITS);
  static constexpr int BUFFER = ROWS * UNITS * 16;
  static constexpr int PASSES = ROWS * UNITS / 128;            // units that a thread carries out
  static constexpr int STEP = GATED && BLOCKS == 1 ? 32 : 16;  // rows that are written together
  static_assert(BUFFER <= kStagedBytes);
  const GroupedParams& p;
  const int* output;  // of the tile's rows, shared memory
  uint32_t staging;
  int barrier, thread;  // of the warpgroup

  /// STEP rows, from group j of eight on, into rows `to` … of a buffer.
  template <int SIZE>
  __device__ __forceinline__ void write_step(int j, uint32_t buffer, int to, const float (&bias)[BLOCKS][2],
                                             const float (&acc)[BLOCKS][SIZE]) const {
    const int lane = thread & 31, warp = thread / 32;
    float x[BLOCKS][STEP / 8][4];  // of columns 64·h and rows 8·g, as in Finish
#pragma unroll
    for (int h = 0; h < BLOCKS; ++h)
#pragma unroll
      for (int g = 0; g < STEP / 8; ++g)
#pragma unroll
        for (int c = 0; c < 4; ++c) x[h][g][c] = acc[h][(j + g) * 4 + c] + bias[h][c >> 1];
    if constexpr (GATED) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float(&v)[4] = x[i % BLOCKS][i / BLOCKS];
        word[i] = pack_two<T>(fast_silu(v[0]) * v[2], fast_silu(v[1]) * v[3]);
      }
      const int row = to + staged_row_gated(lane, BLOCKS), unit = staged_unit_gated(lane, warp, BLOCKS);
      store_transposed(buffer + staged_offset(row, unit, UNITS), word[0], word[1], word[2], word[3]);
    } else {
#pragma unroll
      for (int h = 0; h < BLOCKS; ++h)
        store_transposed(buffer + staged_offset(to + staged_row(lane), staged_unit(lane, warp, h), UNITS),
                         pack_two<T>(x[h][0][0], x[h][0][1]), pack_two<T>(x[h][0][2], x[h][0][3]),
                         pack_two<T>(x[h][1][0], x[h][1][1]), pack_two<T>(x[h][1][2], x[h][1][3]));
    }
  }

  /// Rows ROWS·chunk … into their buffer, as far as the tile has any.
  template <int SIZE>
  __device__ __forceinline__ void write(int chunk, int padded, const float (&bias)[BLOCKS][2],
                                        const float (&acc)[BLOCKS][SIZE]) const {
    const uint32_t buffer = staging + chunk % kStagedBuffers * BUFFER;
#pragma unroll
    for (int r = 0; r < ROWS; r += STEP)
      if (r == 0 || chunk * ROWS + r < padded) write_step(chunk * (ROWS / 8) + r / 8, buffer, r, bias, acc);
  }

  /// A thread's units of a chunk, and the rows they go to (-1: nowhere).
  __device__ __forceinline__ void read(int chunk, uint4 (&unit)[PASSES], int (&to)[PASSES]) const {
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const int row = thread / UNITS + i * (128 / UNITS);
      unit[i] = load16_shared(staging + chunk % kStagedBuffers * BUFFER + staged_offset(row, thread % UNITS, UNITS));
      to[i] = output[chunk * ROWS + row];
    }
  }

  /// `column`: the warpgroup's first, of the layer's n.
  template <int SIZE>
  __device__ __forceinline__ void operator()(int padded, int column, const float (&bias)[BLOCKS][2],
                                             const float (&acc)[BLOCKS][SIZE]) const {
    const int width = static_cast<int>(GATED ? p.n / 2 : p.n);
    const int first = (GATED ? column / 2 : column) + thread % UNITS * 8;
    T* const out = static_cast<T*>(p.output) + first;
    const bool inside = first < width;  // width is a multiple of 8
    constexpr int CHUNKS = SIZE * 2 / ROWS;
    write(0, padded, bias, acc);
    named_barrier(barrier, 128);
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      if (chunk * ROWS >= padded) break;
      uint4 unit[PASSES];
      int to[PASSES];
      read(chunk, unit, to);
      const bool more = (chunk + 1) * ROWS < padded;
      if (chunk + 1 < CHUNKS && more) write(chunk + 1, padded, bias, acc);
#pragma unroll
      for (int i = 0; i < PASSES; ++i)
        if (inside && to[i] >= 0) *reinterpret_cast<uint4*>(out + static_cast<int64_t>(to[i]) * width) = unit[i];
      if (more) named_barrier(barrier, 128);
    }
  }
};

/// Finishes a warpgroup's part of a tile: 64 or 128 columns from `column` on. Where stages() says so.
template <class T, int BLOCKS, bool ROLLED, int SIZE>
__device__ __forceinline__ void finish_staged(const Finish<T, BLOCKS, ROLLED>& finish, uint32_t staging, int barrier,
                                              const Tile& tile, int column, const float (&acc)[BLOCKS][SIZE]) {
  static_assert(SIZE % 16 == 0, "up to 32 rows at a time");
  const int thread = thread_anew() & 127;
  float bias[BLOCKS][2];
  finish.load_bias(bias, tile, column + thread / 32 * 16);
  if (finish.p.gated)
    Staged<T, BLOCKS, true>{finish.p, finish.output, staging, barrier, thread}(tile.padded, column, bias, acc);
  else
    Staged<T, BLOCKS, false>{finish.p, finish.output, staging, barrier, thread}(tile.padded, column, bias, acc);
}

}  // namespace nexus::cuda::hopper
