// Weight rows of one expert on their way to a warp's registers: a few rows side by side, the chunks of each a few ahead
// of the sums. Loads are plain ones past L1: with some thirty warps on an SM they keep as much under way as copies
// through shared memory, and leave the order of work to the hardware (docs/kernels/log.md, entry 7).
#pragma once
#include <type_traits>

#include "data/cuda/gemv_sum.cuh"

namespace nexus::cuda {

/// Weights are read once: they need not stay in L1. Not promoted to 256 bytes in L2, which costs 2 to 8 % of the rate.
template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_stream(const T* p) {
  static_assert(sizeof(Pack<T, N>) == 16);
  uint4 word;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(p));
  return *reinterpret_cast<Pack<T, N>*>(&word);
}

/// Two elements as floats. Volatile: left to itself the compiler widens chunks long before they are added, and spills;
/// so it keeps their place between the loads.
template <class T>
__device__ __forceinline__ void widen_in_place(uint32_t word, float& low, float& high) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile("shl.b32 %0, %1, 16;" : "=f"(low) : "r"(word));
    asm volatile("and.b32 %0, %1, 0xffff0000;" : "=f"(high) : "r"(word));
  } else {
    asm volatile("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
                 : "=f"(low), "=f"(high)
                 : "r"(word));
  }
}

/// add_chunk(), bit for bit.
template <class T, int ROWS>
__device__ __forceinline__ void add_chunk_in_place(const Pack<T, kChunk<T>> (&w)[ROWS], const Pack<T, kChunk<T>>& x,
                                                   float (&acc)[ROWS]) {
  if constexpr (sizeof(T) == 4) {
    add_chunk<T>(w, x, acc);
  } else {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      const auto& words = reinterpret_cast<const uint32_t(&)[4]>(w[i]);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float low, high;
        widen_in_place<T>(words[c], low, high);
        acc[i] = fmaf(low, to_float(x.v[2 * c]), acc[i]);
        acc[i] = fmaf(high, to_float(x.v[2 * c + 1]), acc[i]);
      }
    }
  }
}

template <class T, int ROWS, int AHEAD>
class WeightRows {
  static constexpr int kVec = kChunk<T>, kSpan = 32 * kVec;

 public:
  /// Row r begins at `first` + min(r, last) · k, of k elements: rows past the last one are that one again.
  __device__ __forceinline__ WeightRows(const T* first, int last, int k)
      : first_(first + lane() * kVec), k_(k), left_(k - lane() * kVec) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) row_[r] = static_cast<unsigned>(min(r, last) * k);
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) load(a, a * kSpan);
  }

  /// acc[r] += row r · input.
  __device__ __forceinline__ void sum(const T* input, float (&acc)[ROWS]) {
    sum(input, acc, [] { return static_cast<const T*>(nullptr); });
  }
  /// The same; the last chunks ask for the first ones of the item at following(), of as many rows, unless that is null.
  template <class Following>
  __device__ __forceinline__ void sum(const T* input, float (&acc)[ROWS], Following following) {
    input += lane() * kVec;
#pragma unroll 1
    for (int at = 0; at < k_; at += AHEAD * kSpan) {
      int ahead = at + AHEAD * kSpan;
      if (ahead >= k_)
        if (const T* const first = following()) first_ = first + lane() * kVec, ahead = 0;
#pragma unroll
      for (int a = 0; a < AHEAD; ++a) {
        const int here = at + a * kSpan;
        if (here < left_) add_chunk_in_place<T>(chunk_[a], load_pack<kVec>(input + here), acc);
        load(a, ahead + a * kSpan);
      }
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }
  __device__ __forceinline__ void load(int a, int at) {
    if (at >= left_) return;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) chunk_[a][r] = load_stream<T, kVec>(first_ + (row_[r] + at));
  }

  const T* first_;
  unsigned row_[ROWS];  // elements from there
  Pack<T, kVec> chunk_[AHEAD][ROWS];
  const int k_, left_;  // elements of a row, and from this lane's first on
};

}  // namespace nexus::cuda
