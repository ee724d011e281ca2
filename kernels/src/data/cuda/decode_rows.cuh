// Weight rows of one expert on their way to a warp's registers: a few rows side by side, the chunks of each a few ahead
// of the sums. Loads are plain ones past L1: with some thirty warps on an SM they keep as much under way as copies
// through shared memory, and leave the order of work to the hardware (docs/kernels/log.md, entry 7).
#pragma once
#include <type_traits>

#include "data/cuda/gemv_sum.cuh"
#include "nexus/weight_panels.h"

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

/// Where the rows of a warp's item lie, in rows or (PANELS) in panels of 64 elements of k of n rows each. What a lane
/// reads next of a row is kSpan elements of k on: four panels. So it adds up the same elements in the same order.
template <class T, bool PANELS>
struct RowPlaces {
  static constexpr int kVec = kChunk<T>;
  int k, n;
  bool gated;

  /// This lane's first chunk of an expert's row.
  __device__ __forceinline__ const T* first(const void* weight, int expert, int row) const {
    const int chunk = (static_cast<int>(threadIdx.x) & 31) * kVec;
    const T* const own = static_cast<const T*>(weight) + static_cast<int64_t>(expert) * n * k;
    return own + (PANELS ? panel_element(row, chunk, n, gated) : static_cast<int64_t>(row) * k + chunk);
  }
  /// From an item's first row to its row r, in elements: items are of whole pairs, and none goes across a sixteen.
  __device__ __forceinline__ unsigned row(int r) const {
    return PANELS ? static_cast<unsigned>(panel_row(r, gated)) * kPanelColumns : static_cast<unsigned>(r * k);
  }
  /// From an element of k to another, a multiple of 64.
  __device__ __forceinline__ unsigned along(int at) const {
    return PANELS ? static_cast<unsigned>(at) * static_cast<unsigned>(n) : static_cast<unsigned>(at);
  }
};

template <class T, int ROWS, int AHEAD, bool PANELS_ = false>
class WeightRows {
  static constexpr int kVec = kChunk<T>, kSpan = 32 * kVec;

 public:
  using Places = RowPlaces<T, PANELS_>;
  /// Rows r from the one at `first` on; those past the last one are that one again.
  __device__ __forceinline__ WeightRows(const T* first, int last, const Places& places)
      : first_(first), places_(places), left_(places.k - lane() * kVec) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) row_[r] = places.row(min(r, last));
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
    for (int at = 0; at < places_.k; at += AHEAD * kSpan) {
      int ahead = at + AHEAD * kSpan;
      if (ahead >= places_.k)
        if (const T* const first = following()) first_ = first, ahead = 0;
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
    for (int r = 0; r < ROWS; ++r) chunk_[a][r] = load_stream<T, kVec>(first_ + (row_[r] + places_.along(at)));
  }

  const T* first_;
  unsigned row_[ROWS];  // elements from there
  Pack<T, kVec> chunk_[AHEAD][ROWS];
  const Places places_;
  const int left_;  // elements of a row from this lane's first on
};

}  // namespace nexus::cuda
