// Elementwise fills and conversions: cast between f32, bf16 and f16, and normal random numbers by Philox
// (data/philox.h, the same code as the CPU's; the transcendental part in float64, rounded once). Bound by memory (cast)
// and by float64 arithmetic (normal).
#include "data/backend.h"
#include "data/cuda/check.h"
#include "data/cuda/convert.cuh"
#include "data/philox.h"

namespace nexus::cuda {
namespace {

constexpr int kThreads = 256;

template <class From, class To, int VEC>
__global__ void __launch_bounds__(kThreads)
    cast_kernel(const From* __restrict__ src, To* __restrict__ dst, int64_t items) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= items) return;
  const Pack<From, VEC> in = load_pack<VEC>(src + i * VEC);
  Pack<To, VEC> out;
#pragma unroll
  for (int c = 0; c < VEC; ++c) out.v[c] = from_float<To>(to_float(in.v[c]));
  store_pack<VEC>(dst + i * VEC, out);
}

template <class From, class To>
void launch_cast(const From* src, To* dst, int64_t n, cudaStream_t stream) {
  constexpr int kVec = 8;
  const int64_t packs = aligned16(src) && aligned16(dst) ? n / kVec : 0, rest = n - packs * kVec;
  if (packs > 0) {
    cast_kernel<From, To, kVec><<<grid_for(packs, kThreads), kThreads, 0, stream>>>(src, dst, packs);
    check_launch("cast");
  }
  if (rest > 0) {
    cast_kernel<From, To, 1>
        <<<grid_for(rest, kThreads), kThreads, 0, stream>>>(src + packs * kVec, dst + packs * kVec, rest);
    check_launch("cast");
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) fill_normal_kernel(T* dst, int64_t n, uint64_t seed, double scale) {
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (block * 4 >= n) return;
  float v[4];
  philox_normal4(seed, static_cast<uint64_t>(block), scale, v);
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (block * 4 + c < n) dst[block * 4 + c] = from_float<T>(v[c]);
}

}  // namespace

void cast(Stream& s, const void* src, DType from, void* dst, DType to, int64_t n) {
  if (n == 0) return;
  const cudaStream_t stream = handle(s);
  if (from == to) {
    check(cudaMemcpyAsync(dst, src, static_cast<size_t>(n) * size_of(from), cudaMemcpyDeviceToDevice, stream),
          "cast: cudaMemcpyAsync");
    return;
  }
  with_type(from, [&](auto a) {
    with_type(to, [&](auto b) {
      using From = decltype(a);
      using To = decltype(b);
      if constexpr (!std::is_same_v<From, To>)
        launch_cast(static_cast<const From*>(src), static_cast<To*>(dst), n, stream);
    });
  });
}

void fill_normal(Stream& s, void* dst, DType dtype, int64_t n, uint64_t seed, float scale) {
  if (n == 0) return;
  const cudaStream_t stream = handle(s);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    fill_normal_kernel<T><<<grid_for((n + 3) / 4, kThreads), kThreads, 0, stream>>>(static_cast<T*>(dst), n, seed,
                                                                                    static_cast<double>(scale));
    check_launch("fill_normal");
  });
}

}  // namespace nexus::cuda
