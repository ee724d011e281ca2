// The arithmetic of a matrix-vector product by one warp, for all kernels that have one: which lane adds what in which
// order, and what becomes of a finished sum. Kernels differ in how weights reach them, never in a bit of the result.
//
// Lane l adds the 16-byte chunks l, l + 32, l + 64, … of a row, upwards within a chunk; one butterfly ends the sum.
#pragma once
#include "data/cuda/activation.cuh"
#include "data/cuda/convert.cuh"

namespace nexus::cuda {

/// Elements of a chunk.
template <class T>
constexpr int kChunk = 16 / sizeof(T);

/// acc[i] += w[i] · x over one chunk of each of ROWS weight rows.
template <class T, int ROWS>
__device__ __forceinline__ void add_chunk(const Pack<T, kChunk<T>> (&w)[ROWS], const Pack<T, kChunk<T>>& x,
                                          float (&acc)[ROWS]) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
#pragma unroll
    for (int c = 0; c < kChunk<T>; ++c) acc[i] = fmaf(to_float(w[i].v[c]), to_float(x.v[c]), acc[i]);
}

/// Sums of the warp to results: scale, bias (0 where there is none), activation. Multiplied and added as two operations
/// in every kernel, whatever the compiler makes of its surroundings.
template <int ROWS>
__device__ __forceinline__ void finish_sums(float scale, bool biased, const float (&bias)[ROWS], Epilogue epilogue,
                                            float limit, float alpha, float (&v)[ROWS]) {
#pragma unroll
  for (int i = 0; i < ROWS; ++i) {
    v[i] = __fmul_rn(v[i], scale);
    if (biased) v[i] = __fadd_rn(v[i], bias[i]);
  }
  apply_epilogue(epilogue, limit, alpha, v);
}

}  // namespace nexus::cuda
