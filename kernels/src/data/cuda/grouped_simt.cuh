// Grouped linear layer on CUDA cores: true float32 (no TF32), and float32 routers on half-precision tokens.
//
//   out[r, :] = epilogue(scale[r] · x[in(r), :] · W[e]ᵀ + bias[e]); 2·rows·n·k flop as FFMA; bytes as in
//   grouped_mma.cuh.
//
// A block owns a BM × BN tile, a thread TM × TN of it in registers. k is walked upwards in steps of BK through two
// shared buffers stored k-major, so that a thread reads its rows and columns as 16-byte words; the next step's elements
// wait in registers meanwhile. Loads are four elements wide where every row allows it, and guarded element loads
// otherwise.
#pragma once
#include "data/cuda/grouped_launch.cuh"
#include "data/cuda/grouped_tile.cuh"
#include "data/cuda/mma.cuh"

namespace nexus::cuda {

template <class TIn, class TW, int BM_, int BN_, int BK_, int TM_, int TN_, int MIN_BLOCKS_>
struct SimtShape {
  using Input = TIn;
  using Weight = TW;
  static constexpr int BM = BM_, BN = BN_, BK = BK_, TM = TM_, TN = TN_, MIN_BLOCKS = MIN_BLOCKS_;
  static constexpr int THREADS = (BM / TM) * (BN / TN);
  static constexpr bool STAYS = false;
  static constexpr int ROW_VECTOR = TM < 4 ? TM : 4;
  static constexpr int A_STRIDE = BM + 4, B_STRIDE = BN + 4;
  static constexpr int A_ITEMS = BM * BK / 4 / THREADS,
                       B_ITEMS = BN * BK / 4 / THREADS;      // of four elements, per thread
  static constexpr int BUFFER = BK * (A_STRIDE + B_STRIDE);  // floats
  static constexpr int TILE_BYTES = BM * (BN + 8) * 4;
  static constexpr int BODY_BYTES = 2 * BUFFER * 4 > TILE_BYTES ? 2 * BUFFER * 4 : TILE_BYTES;
  static constexpr int SHARED_BYTES = BODY_BYTES + static_cast<int>(sizeof(RowMap<BM>));
  static_assert(BM * BK / 4 % THREADS == 0 && BN * BK / 4 % THREADS == 0 && TN % 4 == 0 && TM % ROW_VECTOR == 0);
};

/// Elements [0, 4) of which `valid` exist, widened; `whole`: valid is <= 0 or >= 4 and the address fits a 4-element
/// load.
template <class T>
__device__ __forceinline__ float4 load_four(const T* source, int valid, bool whole) {
  float v[4] = {0.f, 0.f, 0.f, 0.f};
  if (whole) {
    if (valid > 0) {
      const Pack<T, 4> pack = load_pack<4>(source);
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = to_float(pack.v[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < valid) v[i] = to_float(source[i]);
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

template <int N>
__device__ __forceinline__ void read_vector(float* out, const float* source) {
  const Pack<float, N> pack = load_pack<N>(source);
#pragma unroll
  for (int i = 0; i < N; ++i) out[i] = pack.v[i];
}

/// One tile. `input_rows`: where the input lies. On return threads may still be reading shared memory.
template <class S>
__device__ __forceinline__ void simt_tile(const GroupedParams& p, const Tile& tile, const void* input_rows,
                                          unsigned char* shared) {
  float* buffers = reinterpret_cast<float*>(shared);
  RowMap<S::BM>& map = *reinterpret_cast<RowMap<S::BM>*>(shared + S::BODY_BYTES);
  fill_rows<S::BM, S::THREADS>(p, tile, map);
  __syncthreads();

  const int k = static_cast<int>(p.k), n = static_cast<int>(p.n);
  constexpr int kItemsPerRow = S::BK / 4, kRowsPerPass = S::THREADS / kItemsPerRow;
  static_assert(S::THREADS % kItemsPerRow == 0);
  const int thread = thread_anew();
  const int item_k = thread % kItemsPerRow * 4, item_row = thread / kItemsPerRow;
  const auto* input = static_cast<const typename S::Input*>(input_rows);
  const auto* weight = static_cast<const typename S::Weight*>(p.weight);
  const bool whole = k % 4 == 0 && reinterpret_cast<uintptr_t>(input) % (4 * sizeof(*input)) == 0 &&
                     reinterpret_cast<uintptr_t>(weight) % (4 * sizeof(*weight)) == 0;

  const typename S::Input* a_row[S::A_ITEMS];
  unsigned a_valid = 0, b_valid = 0;
#pragma unroll
  for (int i = 0; i < S::A_ITEMS; ++i) {
    const int row = map.input[item_row + i * kRowsPerPass];
    a_row[i] = input + static_cast<int64_t>(row < 0 ? 0 : row) * k + item_k;
    if (row >= 0) a_valid |= 1u << i;
  }
  const typename S::Weight* b_row =
      weight + (static_cast<int64_t>(tile.expert) * n + tile.column + item_row) * k + item_k;
#pragma unroll
  for (int i = 0; i < S::B_ITEMS; ++i)
    if (tile.column + item_row + i * kRowsPerPass < n) b_valid |= 1u << i;

  // Few addresses stay in registers, of many one walks; the other way about, either spills.
  constexpr bool kWalks = S::B_ITEMS > 4;
  float4 a_next[S::A_ITEMS], b_next[S::B_ITEMS];
  const auto fetch = [&](int step) {
    const int at = step * S::BK, left = k - at - item_k;
#pragma unroll
    for (int i = 0; i < S::A_ITEMS; ++i) a_next[i] = load_four(a_row[i] + at, a_valid >> i & 1 ? left : 0, whole);
    const typename S::Weight* b_at = b_row + at;
#pragma unroll
    for (int i = 0; i < S::B_ITEMS; ++i) {
      if (!kWalks) b_at = b_row + static_cast<int64_t>(i * kRowsPerPass) * k + at;
      b_next[i] = load_four(b_at, b_valid >> i & 1 ? left : 0, whole);
      if (kWalks) b_at += static_cast<int64_t>(kRowsPerPass) * k;
    }
  };
  const auto put = [&](int buffer) {
    float* as = buffers + buffer * S::BUFFER + item_k * S::A_STRIDE + item_row;
    float* bs = buffers + buffer * S::BUFFER + S::BK * S::A_STRIDE + item_k * S::B_STRIDE + item_row;
#pragma unroll
    for (int i = 0; i < S::A_ITEMS; ++i) {
      as[i * kRowsPerPass + 0 * S::A_STRIDE] = a_next[i].x;
      as[i * kRowsPerPass + 1 * S::A_STRIDE] = a_next[i].y;
      as[i * kRowsPerPass + 2 * S::A_STRIDE] = a_next[i].z;
      as[i * kRowsPerPass + 3 * S::A_STRIDE] = a_next[i].w;
    }
#pragma unroll
    for (int i = 0; i < S::B_ITEMS; ++i) {
      bs[i * kRowsPerPass + 0 * S::B_STRIDE] = b_next[i].x;
      bs[i * kRowsPerPass + 1 * S::B_STRIDE] = b_next[i].y;
      bs[i * kRowsPerPass + 2 * S::B_STRIDE] = b_next[i].z;
      bs[i * kRowsPerPass + 3 * S::B_STRIDE] = b_next[i].w;
    }
  };

  // A thread's columns are TN/4 runs of four, its rows TM/ROW_VECTOR runs, spread over the tile: neighbouring threads
  // read neighbouring words.
  constexpr int kAcross = S::BN / S::TN, kDown = S::BM / S::TM, kRow = S::ROW_VECTOR;
  const int tx = thread % kAcross, ty = thread / kAcross;
  float acc[S::TM][S::TN];
#pragma unroll
  for (int i = 0; i < S::TM; ++i)
#pragma unroll
    for (int j = 0; j < S::TN; ++j) acc[i][j] = 0.f;

  const int steps = (k + S::BK - 1) / S::BK;
  fetch(0);
  put(0);
  __syncthreads();
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    if (s + 1 < steps) fetch(s + 1);
    const float* as = buffers + (s & 1) * S::BUFFER;
    const float* bs = as + S::BK * S::A_STRIDE;
#pragma unroll
    for (int kk = 0; kk < S::BK; ++kk) {
      float a[S::TM], b[S::TN];
#pragma unroll
      for (int i = 0; i < S::TM; i += kRow) read_vector<kRow>(a + i, as + kk * S::A_STRIDE + i * kDown + ty * kRow);
#pragma unroll
      for (int j = 0; j < S::TN; j += 4) read_vector<4>(b + j, bs + kk * S::B_STRIDE + j * kAcross + tx * 4);
#pragma unroll
      for (int i = 0; i < S::TM; ++i)
#pragma unroll
        for (int j = 0; j < S::TN; ++j) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
    }
    // The other buffer was last read in step s - 1, before the barrier at that step's end.
    if (s + 1 < steps) put((s + 1) & 1);
    __syncthreads();
  }

  float* out = buffers;
#pragma unroll
  for (int i = 0; i < S::TM; ++i)
#pragma unroll
    for (int j = 0; j < S::TN; j += 4) {
      const int row = i / kRow * kRow * kDown + ty * kRow + i % kRow;
      *reinterpret_cast<float4*>(out + row * (S::BN + 8) + j * kAcross + tx * 4) =
          make_float4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]);
    }
  __syncthreads();
  store_tile<typename S::Input, S::BM, S::BN, S::THREADS>(p, tile, map, out);
}

template <class S, bool LANES>
__global__ void __launch_bounds__(S::THREADS, S::MIN_BLOCKS) grouped_simt_kernel(const GroupedParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  wait_for_previous();
  release_next();
  const void* const input_rows = input_of(p);
  for_each_tile<S::BM, S::BN, LANES>(p, [&](const Tile& tile) { simt_tile<S>(p, tile, input_rows, shared); });
}

template <class S>
void launch_simt_shape(const Variant& variant, const GroupedParams& params, const Target& target) {
  launch_tiles<S>(variant, params, target, &grouped_simt_kernel<S, false>, &grouped_simt_kernel<S, true>);
}

}  // namespace nexus::cuda
