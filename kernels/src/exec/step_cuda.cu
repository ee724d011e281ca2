// begin_step on CUDA. The block travels by value as a kernel argument, so the launch (or the graph's node, whose
// argument is set anew at every launch) keeps its own copy and nothing has to stay alive on the host. One warp, one
// write of 40 bytes; launched like every kernel of a step, so that the first of them takes its place while this one
// drains.
#include "data/cuda/launch.h"
#include "exec/step.h"

namespace nexus::cuda {
namespace {

__global__ void __launch_bounds__(32, 1)
    write_step_kernel(const __grid_constant__ StepBlock block, StepBlock* __restrict__ current) {
  wait_for_previous();  // the step before may still read its block
  release_next();
  if (threadIdx.x != 0) return;
  StepBlock whole = block;
  whole.dense[0] = 0;
  whole.dense[1] = block.tokens;
  *current = whole;
}

}  // namespace

void begin_step(Stream& stream, const StepBlock& block, StepBlock* current) {
  const cudaStream_t s = handle(stream);
  launch("begin_step", &write_step_kernel, 1, 32, 0, stream.device().index, s, block, current);
}

const void* begin_step_kernel() { return reinterpret_cast<const void*>(&write_step_kernel); }

}  // namespace nexus::cuda
