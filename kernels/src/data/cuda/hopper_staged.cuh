// Finished rows by way of shared memory: what a warpgroup computed leaves as 16 bytes a thread, whole 128-byte lines of
// a row, where Finish (hopper_tile.cuh) stores 16 or 32 bytes of a row at a time. For the two epilogues of the usual
// experts, without a row scale; the same operations on the same values, so the same bits.
//
// Sixteen rows at a time: packed, transposed on the way in by stmatrix, read back in rows. One barrier among the
// warpgroup for each, since there are two buffers: while some warps still read one, others fill the other.
#pragma once
#include "data/cuda/hopper_shape.h"
#include "data/cuda/hopper_tile.cuh"

namespace nexus::cuda::hopper {

/// Whether finish_staged() can do a launch's epilogue. The same answer in all threads.
__device__ __forceinline__ bool stages(const GroupedParams& p) {
  const Epilogue epilogue = static_cast<Epilogue>(p.epilogue);
  if (p.row_scale || !p.vector_store) return false;
  return epilogue == Epilogue::kIdentity || (epilogue == Epilogue::kSwiglu && p.n % 16 == 0);
}

template <class T, bool GATED>
struct Staged {
  static constexpr int UNITS = GATED ? 8 : 16;  // of 16 bytes, in a warpgroup's part of an output row
  static constexpr int BUFFER = kStagedRows * UNITS * 16;
  static constexpr int PASSES = kStagedRows * UNITS / 128;  // units that a thread carries out
  const GroupedParams& p;
  const int* output;  // of the tile's rows, shared memory
  uint32_t staging;
  int barrier, thread;  // of the warpgroup

  /// Rows 16·chunk … 16·chunk + 15 into their buffer.
  template <int SIZE>
  __device__ __forceinline__ void write(int chunk, const float (&bias)[2][2], const float (&acc)[2][SIZE]) const {
    const int lane = thread & 31, warp = thread / 32;
    const uint32_t buffer = staging + chunk % kStagedBuffers * BUFFER;
    float x[4][4];  // of rows 8·(i / 2) and columns 64·(i % 2), as in Finish
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c) x[i][c] = acc[i & 1][(chunk * 2 + (i >> 1)) * 4 + c] + bias[i & 1][c >> 1];
    if constexpr (GATED) {
      // As in Finish, even lane groups complete the columns of the first eight gates and ups, odd ones those of the
      // others. So the eight columns of a unit lie in the order 0 4 1 5 2 6 3 7, until read().
      const bool even = (lane & 4) == 0;
      float other[4][2];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int c = 0; c < 2; ++c) other[i][c] = __shfl_xor_sync(0xffffffffu, even ? x[i][2 + c] : x[i][c], 4);
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float v[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float gate = even ? x[i][c] : other[i][c], up = even ? other[i][c] : x[i][2 + c];
          v[c] = fast_silu(gate) * up;
        }
        word[i] = pack_two<T>(v[0], v[1]);
      }
      store_transposed(buffer + staged_offset(staged_row(lane), staged_unit_gated(lane, warp), UNITS), word[0], word[1],
                       word[2], word[3]);
    } else {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        store_transposed(buffer + staged_offset(staged_row(lane), staged_unit(lane, warp, h), UNITS),
                         pack_two<T>(x[h][0], x[h][1]), pack_two<T>(x[h][2], x[h][3]),
                         pack_two<T>(x[2 + h][0], x[2 + h][1]), pack_two<T>(x[2 + h][2], x[2 + h][3]));
    }
  }

  /// A thread's units of a chunk, and the rows they go to (-1: nowhere).
  __device__ __forceinline__ void read(int chunk, uint4 (&unit)[PASSES], int (&to)[PASSES]) const {
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const int row = thread / UNITS + i * (128 / UNITS);
      const uint4 v =
          load_shared(staging + chunk % kStagedBuffers * BUFFER + staged_offset(row, thread % UNITS, UNITS));
      unit[i] = !GATED ? v
                       : make_uint4(__byte_perm(v.x, v.y, 0x5410), __byte_perm(v.z, v.w, 0x5410),
                                    __byte_perm(v.x, v.y, 0x7632), __byte_perm(v.z, v.w, 0x7632));
      to[i] = output[chunk * kStagedRows + row];
    }
  }

  /// `column`: the warpgroup's first, of the layer's n.
  template <int SIZE>
  __device__ __forceinline__ void operator()(int padded, int column, const float (&bias)[2][2],
                                             const float (&acc)[2][SIZE]) const {
    const int width = static_cast<int>(GATED ? p.n / 2 : p.n);
    const int first = (GATED ? column / 2 : column) + thread % UNITS * 8;
    T* const out = static_cast<T*>(p.output) + first;
    const bool inside = first < width;  // width is a multiple of 8
    write(0, bias, acc);
    named_barrier(barrier, 128);
#pragma unroll
    for (int chunk = 0; chunk < SIZE / 8; ++chunk) {
      if (chunk * kStagedRows >= padded) break;
      uint4 unit[PASSES];
      int to[PASSES];
      read(chunk, unit, to);
      const bool more = (chunk + 1) * kStagedRows < padded;
      if (chunk + 1 < SIZE / 8 && more) write(chunk + 1, bias, acc);
#pragma unroll
      for (int i = 0; i < PASSES; ++i)
        if (inside && to[i] >= 0) *reinterpret_cast<uint4*>(out + static_cast<int64_t>(to[i]) * width) = unit[i];
      if (more) named_barrier(barrier, 128);
    }
  }
};

/// Finishes a warpgroup's part of a tile: 128 columns from `column` on. Where stages() says so.
template <class T, int SIZE>
__device__ __forceinline__ void finish_staged(const Finish<T>& finish, uint32_t staging, int barrier, const Tile& tile,
                                              int column, const float (&acc)[2][SIZE]) {
  static_assert(SIZE % 8 == 0, "sixteen rows at a time");
  const int thread = thread_again() & 127;
  float bias[2][2];
  finish.load_bias(bias, tile, column + thread / 32 * 16);
  if (finish.p.gated)
    Staged<T, true>{finish.p, finish.output, staging, barrier, thread}(tile.padded, column, bias, acc);
  else
    Staged<T, false>{finish.p, finish.output, staging, barrier, thread}(tile.padded, column, bias, acc);
}

}  // namespace nexus::cuda::hopper
