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
// where what it reads is settled (Stream::settle_but), routes its tokens before it waits, and writes when it has; or,
// with a word to say so by (RouteArgs::ready), writes at once, says so, and waits before it ends. The first layer of
// the experts, let in by route, looks at that word instead of waiting, and reads; all that it writes waits.
//
// Why that is safe. Steps take turns with two copies of what route writes, of the word and of the experts' counters.
// - Of the steps before, only the last is still under way when a route begins: it was let in by that one's sum, this by
//   that one's experts, whose writing threads had waited for the end of that one's route, which is behind all before
//   it. So nobody else looks at this copy.
// - Who looks at the word has been let in by all of route's blocks: they are on the chip and wait for nobody before
//   they say so. And the word was cleared before the first of them let anybody in: what it said to an earlier step is
//   gone, whatever has run since.
// - x is as settled as the logits, or the logits are not settled and route waits before it lets anybody in.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
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

// ---- the word by which route says that its results are written ------------------------------------------------------

/// What it holds then. Each block adds its part.
constexpr int kReady = 8;
/// By one thread of one block, before any block lets the next kernel in, whose look it must not miss.
__device__ __forceinline__ void clear_ready(int32_t* word) {
  *static_cast<volatile int32_t*>(word) = 0;
  __threadfence();
}
/// By one thread, behind a barrier with those that wrote.
__device__ __forceinline__ void say_ready(int32_t* word, int part) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(word), "r"(part) : "memory");
}
__device__ __forceinline__ void await_ready(const int32_t* word) {
  int said;
  do asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(said) : "l"(word) : "memory");
  while (said < kReady);
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
