// The CUDA halves of exec/step.h in a build without CUDA: each function says so.
#include "exec/step.h"

namespace nexus::cuda {
namespace {
[[noreturn]] void no_cuda(const char* what) { throw_unsupported(std::string(what) + ": this build has no CUDA"); }
}  // namespace

std::unique_ptr<RingMemory> ring_memory(DeviceId, size_t) { no_cuda("CountRing::create"); }
void begin_step(Stream&, const StepBlock&, StepBlock*) { no_cuda("begin_step"); }
const void* begin_step_kernel() { no_cuda("begin_step_kernel"); }

}  // namespace nexus::cuda
