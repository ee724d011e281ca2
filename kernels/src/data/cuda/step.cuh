// A step's block and its ring of counts on the device. Both are read and written only behind wait_for_previous(), or
// by a kernel that knows that they are settled (decode.h).
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

/// One step's slot of the ring, written by one block once its counts are known. Every word says of which step it is
/// (ring_word), so nothing has to be ordered: a fence over the bus takes about a microsecond, which a step of the
/// smallest layers would notice. Without a ring: nothing.
struct RingSlot {
  uint64_t* slot;
  uint64_t step;

  __device__ __forceinline__ explicit RingSlot(const CountRingView& ring) : slot(nullptr), step(0) {
    if (ring.slots == nullptr) return;
    step = __ldcg(reinterpret_cast<const unsigned long long*>(ring.counter));
    slot = ring.slots + step % static_cast<uint32_t>(ring.capacity) * ring.stride;
  }
  /// By all threads of the block; count_of(e): of expert e.
  template <class F>
  __device__ __forceinline__ void fill(int64_t tokens, int experts, F&& count_of) const {
    if (slot == nullptr) return;
    volatile uint64_t* const to = slot;
    if (threadIdx.x == 0) to[0] = ring_word(step, static_cast<uint32_t>(step >> 32));
    if (threadIdx.x == 0) to[1] = ring_word(step, static_cast<uint32_t>(tokens));
    for (int e = threadIdx.x; e < experts; e += blockDim.x)
      to[2 + e] = ring_word(step, static_cast<uint32_t>(count_of(e)));
  }
  __device__ __forceinline__ void fill(int64_t tokens, const int* counts, int experts) const {
    fill(tokens, experts, [counts](int e) { return counts[e]; });
  }
  /// By one thread, a barrier behind the constructor of all.
  __device__ __forceinline__ void close(uint64_t* counter) const {
    if (slot != nullptr) *counter = step + 1;
  }
};

}  // namespace nexus::cuda
