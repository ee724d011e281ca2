// Host-side helpers shared by all CUDA launches: every status is checked (exec/cuda_check.h), and a launch that wants
// more than 48 KiB of shared memory raises the kernel's limit once per device. Nothing here synchronises or allocates
// device memory.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "exec/cuda_check.h"
#include "nexus/runtime.h"

namespace nexus::cuda {

/// Makes `kernel` launchable with `bytes` of dynamic shared memory on `device` (thread-safe, one attribute call per
/// device).
void allow_shared_memory(const void* kernel, int device, size_t bytes);
/// The most dynamic shared memory a block may have on `device` (cached).
size_t shared_memory_limit(int device);

/// Whether kernels of `device` may be launched ahead of the end of the one before (compute 9.0 and later; cached).
bool has_dependent_launch(int device);

/// The stream's handle, with its device made current on this thread.
inline cudaStream_t handle(Stream& stream) { return static_cast<cudaStream_t>(stream.cuda_stream()); }

inline bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

/// Blocks of `threads` that cover n items; throws kUnsupported past CUDA's grid limit.
unsigned grid_for(int64_t n, int threads);

}  // namespace nexus::cuda
