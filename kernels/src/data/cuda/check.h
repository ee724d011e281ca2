// Host-side helpers shared by all CUDA launches: every status is checked, and a launch that wants more than 48 KiB of
// shared memory raises the kernel's limit once per device. Nothing here synchronises or allocates device memory.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "nexus/runtime.h"

namespace nexus::cuda {

/// Throws nexus::Error (kDevice, `native` = cudaGetErrorName) unless `status` is cudaSuccess.
void check(cudaError_t status, const char* what);
/// To be called straight after a <<<>>> launch.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

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
