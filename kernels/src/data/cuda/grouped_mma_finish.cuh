// What a warp of grouped_mma_wide.cuh does with its sums: row scale, bias, activation, conversion, (scattered) stores.
//
// The sums lie in a warp's registers as mma.sync leaves them, two columns of a row in a thread. The usual experts'
// epilogues are computed there, and only the finished 16-bit results go through shared memory, 16 rows at a time, so
// that they leave in 16-byte words, whole 128-byte lines where n columns come out. Anything else, whatever the
// epilogue, width or output, goes through shared memory as float32. A warp has a buffer of its own: no barrier of the
// block. The same operations on the same values as store_tile()'s, so the same bits.
#pragma once
#include "data/cuda/grouped_tile.cuh"
#include "data/cuda/mma.cuh"

namespace nexus::cuda::wide {

__device__ __forceinline__ float load4_shared(uint32_t at) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];\n" : "=f"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ void store4_shared(uint32_t at, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;\n" ::"r"(at), "r"(word) : "memory");
}
__device__ __forceinline__ void store2_shared(uint32_t at, uint32_t half) {
  asm volatile("st.shared.b16 [%0], %1;\n" ::"r"(at), "h"(static_cast<unsigned short>(half)) : "memory");
}
template <class T>
__device__ __forceinline__ uint32_t bits_of(float v) {
  const T t = from_float<T>(v);
  return *reinterpret_cast<const unsigned short*>(&t);
}

/// acc[i][4 j + 2 h + c]: row 16 i + 8 h + lane / 4, column 8 j + 2 (lane % 4) + c of the warp's.
template <class S, int UNITS>
struct Finish {
  using T = typename S::Element;
  static constexpr int N = S::NT * 4;
  using Sums = float[UNITS][N];
  const GroupedParams& p;
  const RowMap<S::BM>& map;
  int first_row, column;  // the warp's, in the tile and of n
  int width, lane;
  uint32_t staging;  // S::STAGING bytes

  __device__ __forceinline__ void scale(Sums& acc) const {
#pragma unroll
    for (int i = 0; i < UNITS; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float by = map.scale[first_row + i * 16 + h * 8 + (lane >> 2)];
#pragma unroll
        for (int j = 0; j < N; ++j)
          if ((j >> 1 & 1) == h) acc[i][j] = __fmul_rn(acc[i][j], by);
      }
  }

  __device__ __forceinline__ void add(const float* bias, Sums& acc) const {
#pragma unroll
    for (int j = 0; j < S::NT; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int at = column + j * 8 + (lane & 3) * 2 + c;
        if (at >= static_cast<int>(p.n)) continue;
        const float value = __ldg(bias + at);
#pragma unroll
        for (int i = 0; i < UNITS; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h) acc[i][j * 4 + h * 2 + c] = __fadd_rn(acc[i][j * 4 + h * 2 + c], value);
      }
  }

  /// Eight results of a row, from shared memory.
  __device__ __forceinline__ void store(int row, int at, uint32_t from) const {
    const int to = map.output[first_row + row];
    const uint4 unit = load16_shared(from);
    if (to >= 0 && at < width)
      *reinterpret_cast<uint4*>(static_cast<T*>(p.output) + static_cast<int64_t>(to) * width + at) = unit;
  }

  /// Rows of 128 bytes; 16-byte unit u of row r lies at place u ^ (r % 8), as in the pipeline's buffers.
  __device__ __forceinline__ void identity(const Sums& acc) const {
    const uint32_t put = staging + (lane >> 2) * 128 + (lane & 3) * 4, swizzle = (lane >> 2) * 16;
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
      __syncwarp();
#pragma unroll
      for (int j = 0; j < S::NT; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          store4_shared(put + h * 1024 + ((j * 16) ^ swizzle),
                        bits_of<T>(acc[i][j * 4 + h * 2]) | bits_of<T>(acc[i][j * 4 + h * 2 + 1]) << 16);
      __syncwarp();
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const int row = t * 4 + lane / 8;
        store(i * 16 + row, column + lane % 8 * 8, staging + row * 128 + ((lane % 8 ^ (row & 7)) * 16));
      }
    }
  }

  /// Rows of 64 bytes, half as many columns; unit u of row r lies at place u ^ (r / 2 % 4).
  __device__ __forceinline__ void swiglu(const Sums& acc) const {
    const uint32_t put = staging + (lane >> 2) * 64 + (lane & 3) * 2, swizzle = (lane >> 3 & 3) * 16;
    const uint32_t get = staging + (lane >> 2) * 64 + ((lane % 4 ^ (lane >> 3 & 3)) * 16);
#pragma unroll
    for (int i = 0; i < UNITS; ++i) {
      __syncwarp();
#pragma unroll
      for (int j = 0; j < S::NT; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          store2_shared(put + h * 512 + (((j >> 1) * 16) ^ swizzle) + (j & 1) * 8,
                        bits_of<T>(quick_silu(acc[i][j * 4 + h * 2]) * acc[i][j * 4 + h * 2 + 1]));
      __syncwarp();
#pragma unroll
      for (int t = 0; t < 2; ++t) store(i * 16 + t * 8 + lane / 4, column / 2 + lane % 4 * 8, get + t * 512);
    }
  }

  /// Eight columns of n at a time.
  __device__ __forceinline__ void any(const Sums& acc) const {
    const Epilogue epilogue = static_cast<Epilogue>(p.epilogue);
    constexpr int kAcross = S::WN / 8;
#pragma unroll 1
    for (int i = 0; i < UNITS; ++i) {
      __syncwarp();
#pragma unroll
      for (int c = 0; c < UNITS; ++c)
        if (i == c) {  // registers have no index
#pragma unroll
          for (int j = 0; j < N; ++j)
            store4_shared(
                staging + ((lane >> 2) + (j >> 1 & 1) * 8) * (S::WN * 4) + (j / 4 * 8 + (lane & 3) * 2 + (j & 1)) * 4,
                __float_as_uint(acc[c][j]));
        }
      __syncwarp();
#pragma unroll 1
      for (int unit = lane; unit < 16 * kAcross; unit += 32) {
        const int to = map.output[first_row + i * 16 + unit / kAcross], at = column + unit % kAcross * 8;
        const int valid = min(8, static_cast<int>(p.n) - at);
        if (to < 0 || valid <= 0) continue;
        float v[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] = load4_shared(staging + unit * 32 + j * 4);
        finish_columns<T>(p, epilogue, v);
        store_row<T>(p, static_cast<int64_t>(to) * width, at, v, valid);
      }
    }
  }

  __device__ __forceinline__ void operator()(const float* bias, Sums& acc) const {
    if (p.row_scale) scale(acc);
    if (bias) add(bias, acc);
    const Epilogue epilogue = static_cast<Epilogue>(p.epilogue);
    const bool words = !p.output_f32 && p.vector_store && width % 8 == 0;
    if (words && epilogue == Epilogue::kIdentity)
      identity(acc);
    else if (words && epilogue == Epilogue::kSwiglu)
      swiglu(acc);
    else
      any(acc);
  }
};

}  // namespace nexus::cuda::wide
