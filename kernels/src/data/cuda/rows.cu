// The small unfused operations of the per-expert baseline: gather rows, activate, weighted index-add. All bound by
// memory: one read and one write per element (index_add: two reads), 16-byte words where widths and addresses allow,
// one element at a time otherwise.
#include "data/backend.h"
#include "data/cuda/activation.cuh"
#include "data/cuda/check.h"
#include "data/cuda/convert.cuh"

namespace nexus::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t item() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }

/// A pure copy: Word is 16 bytes, or one element's size.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Word* __restrict__ x, const int32_t* __restrict__ order, int64_t n, int32_t rows_per_input,
                  int64_t words, Word* __restrict__ out) {
  const int64_t i = item();
  if (i >= n * words) return;
  const int64_t row = divide(i, words);
  out[i] = x[static_cast<int64_t>(order[row] / rows_per_input) * words + (i - row * words)];
}

/// VEC outputs a thread. Not __restrict__: in and out may be one buffer (then every thread writes only what it alone
/// has read).
template <class T, int VEC, bool GATED>
__global__ void __launch_bounds__(kThreads)
    activate_kernel(const T* in, int64_t items, Epilogue epilogue, EpilogueParams params, T* out) {
  const int64_t i = item();
  if (i >= items) return;
  constexpr int kIn = GATED ? 2 * VEC : VEC;
  float v[kIn];
  if constexpr (VEC > 1) {
    const Pack<T, kIn> source = load_pack<kIn>(in + i * kIn);
#pragma unroll
    for (int c = 0; c < kIn; ++c) v[c] = to_float(source.v[c]);
  } else {  // a (gate, up) pair need not be aligned to its own size
#pragma unroll
    for (int c = 0; c < kIn; ++c) v[c] = to_float(in[i * kIn + c]);
  }
  apply_epilogue(epilogue, params.limit, params.alpha, v);
  Pack<T, VEC> target;
#pragma unroll
  for (int c = 0; c < VEC; ++c) target.v[c] = from_float<T>(v[c]);
  store_pack<VEC>(out + i * VEC, target);
}

template <class T, int VEC>
__global__ void __launch_bounds__(kThreads)
    index_add_kernel(const T* __restrict__ rows, const float* __restrict__ weights, const int32_t* __restrict__ order,
                     int64_t n, int32_t top_k, int64_t width, float* __restrict__ acc) {
  const int64_t columns = width / VEC, i = item();
  if (i >= n * columns) return;
  const int64_t row = divide(i, columns), column = (i - row * columns) * VEC;
  const int slot = order[row];
  const float w = weights ? weights[slot] : 1.f;
  const Pack<T, VEC> v = load_pack<VEC>(rows + row * width + column);
  float* at = acc + static_cast<int64_t>(slot / top_k) * width + column;
  Pack<float, VEC> sum = load_pack<VEC>(at);
#pragma unroll
  for (int c = 0; c < VEC; ++c) sum.v[c] = fmaf(w, to_float(v.v[c]), sum.v[c]);
  store_pack<VEC>(at, sum);
}

template <class T, int VEC, bool GATED>
void launch_activate(Epilogue epilogue, const EpilogueParams& params, const void* in, int64_t count, void* out,
                     cudaStream_t stream) {
  const int64_t items = count / VEC;
  activate_kernel<T, VEC, GATED><<<grid_for(items, kThreads), kThreads, 0, stream>>>(
      static_cast<const T*>(in), items, epilogue, params, static_cast<T*>(out));
  check_launch("activate");
}

template <class Word>
void launch_gather(const void* x, const int32_t* order, int64_t n, int32_t rows_per_input, int64_t words, void* out,
                   cudaStream_t s) {
  gather_kernel<Word><<<grid_for(n * words, kThreads), kThreads, 0, s>>>(
      static_cast<const Word*>(x), order, n, rows_per_input, words, static_cast<Word*>(out));
  check_launch("gather_rows");
}

}  // namespace

void gather_rows(Stream& s, DType dtype, const void* x, const int32_t* order, int64_t first, int64_t n,
                 int32_t rows_per_input, int64_t width, void* out) {
  if (n == 0 || width == 0) return;
  const cudaStream_t stream = handle(s);
  const int64_t bytes = width * static_cast<int64_t>(size_of(dtype));
  if (bytes % 16 == 0 && aligned16(x) && aligned16(out))
    launch_gather<uint4>(x, order + first, n, rows_per_input, bytes / 16, out, stream);
  else if (size_of(dtype) == 4)
    launch_gather<uint32_t>(x, order + first, n, rows_per_input, width, out, stream);
  else
    launch_gather<uint16_t>(x, order + first, n, rows_per_input, width, out, stream);
}

void activate(Stream& s, DType dtype, Epilogue epilogue, const EpilogueParams& params, const void* in, int64_t n,
              int64_t width, void* out) {
  const int64_t count = n * width;
  if (count == 0) return;
  const cudaStream_t stream = handle(s);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / sizeof(T);
    const bool whole = count % kVec == 0 && aligned16(in) && aligned16(out);
    if (is_gated(epilogue))
      whole ? launch_activate<T, kVec, true>(epilogue, params, in, count, out, stream)
            : launch_activate<T, 1, true>(epilogue, params, in, count, out, stream);
    else
      whole ? launch_activate<T, kVec, false>(epilogue, params, in, count, out, stream)
            : launch_activate<T, 1, false>(epilogue, params, in, count, out, stream);
  });
}

void index_add(Stream& s, DType dtype, const void* rows, const float* weights, const int32_t* order, int64_t first,
               int64_t n, int32_t top_k, int64_t width, float* acc) {
  if (n == 0 || width == 0) return;
  const cudaStream_t stream = handle(s);
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto* source = static_cast<const T*>(rows);
    if (width % 4 == 0 && aligned16(rows) && aligned16(acc))
      index_add_kernel<T, 4><<<grid_for(n * width / 4, kThreads), kThreads, 0, stream>>>(source, weights, order + first,
                                                                                         n, top_k, width, acc);
    else
      index_add_kernel<T, 1><<<grid_for(n * width, kThreads), kThreads, 0, stream>>>(source, weights, order + first, n,
                                                                                     top_k, width, acc);
    check_launch("index_add");
  });
}

}  // namespace nexus::cuda
