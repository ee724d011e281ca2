// What a step's small machinery gives and needs behind its public header: the device halves of begin_step and of the
// ring of counts. A build without CUDA takes the cuda:: ones from step_none.cpp, which throw kUnsupported.
#pragma once
#include "nexus/step.h"

namespace nexus {

/// The block as every step sees it: `dense` follows from the tokens, whoever filled the rest in.
inline StepBlock completed(StepBlock block) {
  block.dense[0] = 0;
  block.dense[1] = block.tokens;
  return block;
}

/// 64-bit words of a ring's slot: the step's upper half, tokens, counts; a multiple of 64 bytes.
constexpr int32_t ring_stride(int experts) { return (2 + experts + 7) / 8 * 8; }
/// What a slot holds that was never written: of no step, since no step has such an upper half.
constexpr uint64_t kEmptyRingWord = ~uint64_t{0};

/// Slots of kEmptyRingWord that the host reads and the device writes, and the zeroed counter. Freeing may block: the
/// ring does it on the background helper.
class RingMemory {
 public:
  virtual ~RingMemory() = default;
  uint64_t* host = nullptr;     ///< the slots as the host sees them
  uint64_t* slots = nullptr;    ///< the same as the device sees them
  uint64_t* counter = nullptr;  ///< the device's
};

namespace cpu {
std::unique_ptr<RingMemory> ring_memory(size_t slot_words);
/// What the router's last block does on a device: one step into its slot, then the counter. `counts`: [experts].
void write_counts(const CountRingView& ring, int experts, int32_t tokens, const int32_t* counts);
}  // namespace cpu

namespace cuda {
std::unique_ptr<RingMemory> ring_memory(DeviceId device, size_t slot_words);

void begin_step(Stream& stream, const StepBlock& block, StepBlock* current);
/// The kernel behind it, as cudaGraphKernelNodeGetParams names it in `func`, so that its node in a recorded graph can
/// be told from the others. Its parameters: kernelParams[0] points to a StepBlock (to be exchanged at a launch),
/// kernelParams[1] to a StepBlock* (`current`, to be kept). The kernel itself completes the block (completed()).
const void* begin_step_kernel();
}  // namespace cuda

}  // namespace nexus
