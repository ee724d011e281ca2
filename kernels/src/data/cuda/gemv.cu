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
#include "data/cuda/gemv.h"
#include "data/cuda/grouped_tile.cuh"
#include "data/cuda/launch.h"

namespace nexus::cuda {
namespace {

constexpr int kColumns = 8, kThreads = 64;

/// Weights are read once: they need not stay in L1.
template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_stream(const T* p) {
  static_assert(sizeof(Pack<T, N>) == 16);
  uint4 word;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(p));
  return *reinterpret_cast<Pack<T, N>*>(&word);
}

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

template <class T>
__global__ void __launch_bounds__(kThreads) grouped_gemv_kernel(const GroupedParams p) {
  constexpr int kVec = 16 / sizeof(T);
  const int lane = threadIdx.x & 31;
  const int tile = blockIdx.x * (kThreads / 32) + (threadIdx.x >> 5);
  const int row = tile / p.n_tiles, column = tile % p.n_tiles * kColumns;
  const int k = static_cast<int>(p.k), n = static_cast<int>(p.n);
  if (!p.settled) wait_for_previous();
  const int expert = row < p.max_rows ? expert_of(p, row) : -1;

  const T* weight[kColumns];
  Pack<T, kVec> ahead[kColumns];
  const bool first = expert >= 0 && lane * kVec < k;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int at = min(column + i, n - 1);  // past the end: read the last row again, the result is not stored
    weight[i] = static_cast<const T*>(p.weight) + (static_cast<int64_t>(max(expert, 0)) * n + at) * k + lane * kVec;
    if (first) ahead[i] = load_stream<T, kVec>(weight[i]);
  }
  if (p.settled) wait_for_previous();
  release_next();
  if (expert < 0) return;

  const int slot = slot_at(p, row);
  if (slot < 0) return;
  const int input = p.gather ? slot / p.rows_per_input : row;
  const T* x = static_cast<const T*>(p.input) + static_cast<int64_t>(input) * k + lane * kVec;
  float acc[kColumns] = {};
  if (first) {
    const Pack<T, kVec> v = load_pack<kVec>(x);
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
#pragma unroll
      for (int c = 0; c < kVec; ++c) acc[i] = fmaf(to_float(ahead[i].v[c]), to_float(v.v[c]), acc[i]);
  }
#pragma unroll 2
  for (int at = 32 * kVec; at + lane * kVec < k; at += 32 * kVec) {
    const Pack<T, kVec> v = load_pack<kVec>(x + at);
    Pack<T, kVec> w[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) w[i] = load_stream<T, kVec>(weight[i] + at);
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
#pragma unroll
      for (int c = 0; c < kVec; ++c) acc[i] = fmaf(to_float(w[i].v[c]), to_float(v.v[c]), acc[i]);
  }
  float v[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) v[i] = warp_sum(acc[i]);
  if (lane != 0) return;

  const float scale = p.row_scale ? p.row_scale[slot] : 1.f;
  const int valid = min(kColumns, n - column);
  const float* bias = p.bias ? p.bias + static_cast<int64_t>(expert) * n + column : nullptr;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    v[i] *= scale;
    if (bias && i < valid) v[i] += __ldg(bias + i);
  }
  apply_epilogue(static_cast<Epilogue>(p.epilogue), p.limit, p.alpha, v);
  const int64_t out_row = p.scatter ? slot : row;
  if (p.gated) {
    T* out = static_cast<T*>(p.output) + out_row * (p.n / 2) + column / 2;
    store_columns<T, 4>(p, out, v, valid / 2);
  } else {
    store_columns<T, 8>(p, static_cast<T*>(p.output) + out_row * p.n + column, v, valid);
  }
}

}  // namespace

void launch_gemv(DType dtype, GroupedParams params, int device, cudaStream_t stream) {
  params.n_tiles = static_cast<int>((params.n + kColumns - 1) / kColumns);
  constexpr int kWarps = kThreads / 32;
  const unsigned blocks = grid_for(params.n_tiles * params.max_rows, kWarps);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    launch("grouped_gemv", &grouped_gemv_kernel<T>, blocks, kThreads, 0, device, stream, params);
  });
}

}  // namespace nexus::cuda
