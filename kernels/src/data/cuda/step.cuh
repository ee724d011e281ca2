// A step's block and its ring of counts on the device. Both are read and written only behind wait_for_previous().
#pragma once
#include <cstdint>

#include "nexus/step.h"

namespace nexus::cuda {

/// The true number of tokens, never more than the launch was laid out for.
__device__ __forceinline__ int64_t step_tokens(const StepBlock* step, int64_t bound) {
  if (step == nullptr) return bound;
  const int64_t tokens = step->tokens;
  return tokens < 0 ? 0 : tokens < bound ? tokens : bound;
}

/// One step's slot of the ring, written by one block. The stores go over the bus, where a fence takes about a
/// microsecond; so they are spread over the block's work:
///   open     one thread, early: the slot is no longer a finished one
///   settle   the same thread, later: that is so for everybody before anything of what follows is
///   fill     all threads, once the counts are known and a barrier lies behind settle
///   close    the thread of open, a barrier behind fill: the slot is whole
/// The fences of that one thread order the others' stores, too, because barriers lie between. Without a ring: nothing.
struct RingSlot {
  uint64_t* slot;
  uint64_t step;

  __device__ __forceinline__ explicit RingSlot(const CountRingView& ring) : slot(nullptr), step(0) {
    if (ring.slots == nullptr) return;
    step = *ring.counter;
    slot = ring.slots + step % static_cast<uint32_t>(ring.capacity) * ring.stride;
  }
  __device__ __forceinline__ void open() const {
    if (slot != nullptr) *static_cast<volatile uint64_t*>(slot) = 0;
  }
  __device__ __forceinline__ void settle() const {
    if (slot != nullptr) __threadfence_system();
  }
  __device__ __forceinline__ void fill(int64_t tokens, const int* counts, int experts) const {
    if (slot == nullptr) return;
    if (threadIdx.x == 0) slot[1] = static_cast<uint64_t>(tokens);
    auto* to = reinterpret_cast<int32_t*>(slot + 2);
    for (int e = threadIdx.x; e < experts; e += blockDim.x) to[e] = counts[e];
  }
  __device__ __forceinline__ void close(uint64_t* counter) const {
    if (slot == nullptr) return;
    __threadfence_system();
    *static_cast<volatile uint64_t*>(slot) = step + 1;
    *counter = step + 1;
  }
};

}  // namespace nexus::cuda
