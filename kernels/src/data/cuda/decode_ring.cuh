// A warp's weights on their way: a ring in shared memory that bulk copies fill ahead of the sums.
//
// A warp takes items of four weight rows, each row in pieces of 1 KiB; a stage of the ring holds one piece of each row
// and has a barrier of its own, which the copies complete. One lane starts copies, all lanes read; the refill of a
// stage comes behind a __syncwarp after its last read. No warp waits for another.
#pragma once
#include "data/cuda/decode.h"
#include "data/cuda/gemv_sum.cuh"
#include "data/cuda/hopper_ptx.cuh"
#include "data/cuda/launch.h"

namespace nexus::cuda {

/// `bytes` (a multiple of 16) from aligned global memory to shared memory; completes on `barrier`.
__device__ __forceinline__ void copy_bulk(uint32_t target, const void* source, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
               "l"(source), "r"(bytes), "r"(barrier)
               : "memory");
}

/// The first threads set up the barriers of all warps. A barrier of the block must follow.
__device__ __forceinline__ void init_rings(unsigned char* shared) {
  if (threadIdx.x >= kDecodeWarps * kDecodeStages) return;
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  hopper::barrier_init(base + DecodeShared::kBarriers + threadIdx.x * 8, 1);
  hopper::barrier_init_fence();
}

/// Items: those of this warp are first, first + stride, … below count; locate(i, row, rows) tells where the rows of one
/// begin and how many there are.
template <class Items>
class WeightRing {
 public:
  __device__ __forceinline__ WeightRing(const Items& items, unsigned char* shared, int row_bytes)
      : items_(items), row_bytes_(row_bytes), pitch_(min(row_bytes, kDecodePiece)), item_(items.first) {
    const int warp = threadIdx.x >> 5;
    ring_ = shared + warp * (kDecodeStages * kDecodeStageBytes);
    slots_ = static_cast<uint32_t>(__cvta_generic_to_shared(ring_));
    barriers_ =
        static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + DecodeShared::kBarriers + warp * (kDecodeStages * 8);
    if (item_ < items_.count) items_.locate(item_, row_, rows_);
#pragma unroll 1  // little code: a kernel this short waits for its instructions, too
    for (int s = 0; s < kDecodeStages; ++s) copy(s);
  }

  /// acc[r] += row r of the next item · input. The input's chunks are asked for before the weights are waited for.
  template <class T>
  __device__ __forceinline__ void sum(const T* input, float (&acc)[kDecodeRows]) {
    constexpr int kVec = kChunk<T>, kChunks = kDecodePiece / 512;
    const int lane = threadIdx.x & 31;
#pragma unroll 1
    for (int at = 0; at < row_bytes_; at += kDecodePiece) {
      const int left = row_bytes_ - at - lane * 16;  // bytes of the row from this lane's first chunk on
      const unsigned char* const from = reinterpret_cast<const unsigned char*>(input) + at + lane * 16;
      Pack<T, kVec> x[kChunks];
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
        if (c * 512 < left) x[c] = load_pack<kVec>(reinterpret_cast<const T*>(from + c * 512));
      hopper::wait(barriers_ + stage_ * 8, parity_);
      const unsigned char* const piece = ring_ + stage_ * kDecodeStageBytes + lane * 16;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        if (c * 512 >= left) break;
        Pack<T, kVec> w[kDecodeRows];
#pragma unroll
        for (int r = 0; r < kDecodeRows; ++r)
          w[r] = load_pack<kVec>(reinterpret_cast<const T*>(piece + r * pitch_ + c * 512));
        add_chunk<T>(w, x[c], acc);
      }
      __syncwarp();
      copy(stage_);
      stage_ = stage_ == kDecodeStages - 1 ? 0 : stage_ + 1;
      parity_ ^= stage_ == 0;
    }
  }

 private:
  /// The next piece, if there is one, into a stage that nobody reads.
  __device__ __forceinline__ void copy(int stage) {
    if (item_ >= items_.count) return;
    const int bytes = min(kDecodePiece, row_bytes_ - at_);
    if ((threadIdx.x & 31) == 0) {
      const uint32_t slot = slots_ + stage * kDecodeStageBytes, barrier = barriers_ + stage * 8;
      hopper::arrive_expect(barrier, rows_ * bytes);
      if (bytes == row_bytes_) {  // the rows lie one behind the other
        copy_bulk(slot, row_, rows_ * bytes, barrier);
      } else {
#pragma unroll
        for (int r = 0; r < kDecodeRows; ++r)
          if (r < rows_)
            copy_bulk(slot + r * kDecodePiece, row_ + static_cast<int64_t>(r) * row_bytes_ + at_, bytes, barrier);
      }
    }
    at_ += bytes;
    if (at_ < row_bytes_) return;
    at_ = 0;
    item_ += items_.stride;
    if (item_ < items_.count) items_.locate(item_, row_, rows_);
  }

  const Items& items_;
  const int row_bytes_, pitch_;
  const unsigned char* ring_;
  uint32_t slots_, barriers_;
  int item_, at_ = 0, rows_ = 0;  // what is copied next
  const char* row_ = nullptr;
  int stage_ = 0;  // what is read next
  uint32_t parity_ = 0;
};

}  // namespace nexus::cuda
