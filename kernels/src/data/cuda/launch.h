// Launches with programmatic dependent launch (compute 9.0 and later): a kernel's blocks may take their place on the
// chip while the kernel before it in the stream drains, which hides the launch gap between the short kernels of a
// decode step.
//
// The rule that keeps it safe: EVERY kernel launched through here calls wait_for_previous() in every thread before it
// reads or writes anything that an earlier kernel touches, and release_next() only after that. So a kernel that has
// passed its wait knows that all kernels before the previous one are complete, too. Four make more of that: the decode
// kernels (decode.h says why they may), the matrix-vector kernel of a layer behind another one, which reads offsets
// that are older than the kernel before it (gemv.cu), the kernel for two layers, which asks for the tokens, to L2
// (hopper_mlp.cuh), and combine, which fills the ring from such counts and reads the router's weights.
//
// Two go on ahead of their wait, so that a step's routing runs beside the sum of the step before. Combine, where only
// its own step reads what the kernel before it writes, lets the next one in at once. Route, behind such a combine and
// where what it reads is settled (Stream::settle_but), routes its tokens before it waits, and writes when it has.
#pragma once
#include <cuda_runtime.h>

#include <utility>

#include "data/cuda/check.h"

namespace nexus::cuda {

/// Until all earlier kernels of the stream are complete and their writes are visible.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Lets the next kernel's blocks start as soon as all blocks of this one have said so (or left).
__device__ __forceinline__ void release_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), unsigned blocks, unsigned threads, size_t shared_bytes,
            int device, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = device_facts(device).dependent_launch ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...), name);
}

}  // namespace nexus::cuda
