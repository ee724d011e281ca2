// Long weight rows of one expert on their way to a warp's registers: two that follow one another in memory, read as the
// one stream that they are, AHEAD chunks ahead of the sums, across the end of a row and on into the next item; and the
// ways of reading that a decode kernel chooses from.
//
// Where WeightRows (decode_rows.cuh) reads rows side by side, a chip's warps read from as many times more places, 512
// bytes of each at a time. In order the memory gives 5 % more of rows of 8 KiB and more (docs/kernels/log.md, entry
// 12).
#pragma once
#include "data/cuda/decode.h"
#include "data/cuda/decode_rows.cuh"

namespace nexus::cuda {

template <class T, int ROWS, int AHEAD>
class StreamRows {
  static constexpr int kVec = kChunk<T>, kSpan = 32 * kVec;

 public:
  using Places = RowPlaces<T, false>;
  /// ROWS rows of k elements each, one behind the other from `first` on. k: whole rounds, AHEAD chunks of all lanes. A
  /// condition on each load, for rows that are not, costs a third of the rate.
  __device__ __forceinline__ StreamRows(const T* first, int, const Places& places)
      : next_(first), k_(places.k), rounds_(ROWS * (places.k / (AHEAD * kSpan))) {
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) load(a);
    advance();
  }

  /// acc[r] += row r · input.
  __device__ __forceinline__ void sum(const T* input, float (&acc)[ROWS]) {
    sum(input, acc, [] { return static_cast<const T*>(nullptr); });
  }
  /// The same; the last round asks for the first one of the item at following(), unless that is null.
  template <class Following>
  __device__ __forceinline__ void sum(const T* input, float (&acc)[ROWS], Following following) {
    input += lane() * kVec;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float own[1] = {acc[r]};
#pragma unroll 1
      for (int at = 0; at < k_; at += AHEAD * kSpan) {
        if (rounds_ == 0)
          if (const T* const first = following()) next_ = first, rounds_ = ROWS * (k_ / (AHEAD * kSpan));
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
          add_chunk_in_place<T, 1>(chunk_[a], load_pack<kVec>(input + at + a * kSpan), own);
          if (rounds_ > 0) load(a);
        }
        advance();
      }
      acc[r] = own[0];
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }
  __device__ __forceinline__ void load(int a) { chunk_[a][0] = load_stream<T, kVec>(next_ + a * kSpan); }
  __device__ __forceinline__ void advance() { next_ += AHEAD * kSpan, --rounds_; }

  const T* next_;
  Pack<T, kVec> chunk_[AHEAD][1];
  const int k_;
  int rounds_;  // not yet asked for
};

/// How a decode kernel reads: rows of a warp's item, and blocks on an SM.
template <class T, int ROWS_, bool PANELS>
struct SideBySide {
  static constexpr bool STREAMED = false, RUNS_ON = false;
  static constexpr int ROWS = ROWS_, BLOCKS = kDecodeBlocks;
  using Rows = WeightRows<T, ROWS, kDecodeLoads / ROWS, PANELS>;
};
/// Side by side, and on into the warp's next item. Only of whole items.
template <class T, int ROWS, bool PANELS>
struct RunOn : SideBySide<T, ROWS, PANELS> {
  static constexpr bool RUNS_ON = true;
};
template <class T, int AHEAD, int BLOCKS_>
struct Streamed {
  static constexpr bool STREAMED = true, RUNS_ON = false;
  static constexpr int ROWS = 2, BLOCKS = BLOCKS_;
  using Rows = StreamRows<T, ROWS, AHEAD>;
};

/// Bytes of rows that are long: 8 KiB, of decode_hidden's 4 KiB, too, of which rounds of eight chunks are whole rows.
constexpr int64_t kLongBytes = 8192, kLongHiddenBytes = 4096;
/// Whether a layer's rows are read as streams, `ahead` chunks ahead: long rows, in whole items of whole rounds. In
/// panels neighbouring warps read neighbouring rows of a few panels anyway; there it is enough to run on.
constexpr bool is_streamed(DType dtype, const DecodeLinear& l, int ahead, int64_t long_bytes = kLongBytes) {
  const int64_t bytes = l.k * static_cast<int64_t>(size_of(dtype));
  return !l.in_panels && bytes >= long_bytes && bytes % (ahead * 512) == 0 && l.n % 2 == 0;
}
/// Calls f(std::bool_constant): whether the layer's weights are in panels, which those of a type T may be.
template <class T, class F>
void with_panels(const DecodeLinear& l, F&& f) {
  if constexpr (sizeof(T) == 2)
    if (l.in_panels) return f(std::true_type{});
  f(std::false_type{});
}

}  // namespace nexus::cuda
