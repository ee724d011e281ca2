// begin_step: one block of parameters into device memory, in stream order.
#include "exec/step.h"

#include <string>

#include "exec/cpu_stream.h"
#include "exec/fault.h"

namespace nexus {

void begin_step(Stream& stream, const StepBlock& block, StepBlock* current) {
  if (block.tokens < 0) throw_invalid("block.tokens: expected at least 0, got " + std::to_string(block.tokens));
  if (current == nullptr) throw_invalid("current: expected memory, got null");
  fault_point("step.launch", stream);
  stream.device().is_cpu() ? cpu::enqueue_begin_step(stream, completed(block), current)
                           : cuda::begin_step(stream, block, current);
}

}  // namespace nexus
