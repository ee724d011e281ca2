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
  if (stream.device().is_cpu()) return cpu::enqueue_begin_step(stream, completed(block), current);
  if (!stream.in_slice() || !stream.capturing()) return cuda::begin_step(stream, block, current);
  // The node whose arguments change at every launch must be of the device's own context: CUDA refuses new arguments for
  // a kernel of a green context (cudaErrorInvalidValue, also with the context named, driver 580). So it is recorded on
  // a stream of the whole device, between two points of the slice's.
  const auto whole = Stream::create(stream.device());
  const auto before = Event::create(stream.device()), after = Event::create(stream.device());
  before->record(stream);
  whole->wait(*before);
  cuda::begin_step(*whole, block, current);
  after->record(*whole);
  stream.wait(*after);
}

}  // namespace nexus
