// Every CUDA call goes through check(): a failure becomes nexus::Error with CUDA's own name of it, and the thread's
// "last error" is cleared, so that a later check_launch() does not blame a kernel for somebody else's failure.
#pragma once
#include <cuda_runtime.h>

#include <string>

#include "nexus/error.h"

namespace nexus::cuda {

inline ErrorCode code_of(cudaError_t status) {
  if (status == cudaErrorMemoryAllocation) return ErrorCode::kOutOfMemory;
  // 900 … 908, and nothing else in between.
  if (status >= cudaErrorStreamCaptureUnsupported && status <= cudaErrorStreamCaptureWrongThread)
    return ErrorCode::kGraphCapture;
  return ErrorCode::kDevice;
}

/// `what` names the call or the operation: "cudaMemcpyAsync", "route".
[[noreturn]] inline void fail(cudaError_t status, const char* what) {
  (void)cudaGetLastError();
  Error error(code_of(status), std::string(what) + ": " + cudaGetErrorName(status) + ": " + cudaGetErrorString(status));
  error.native = cudaGetErrorName(status);
  throw error;
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) [[unlikely]]
    fail(status, what);
}

/// After <<<>>>: the launch itself failed (bad configuration, no kernel image), or an earlier one broke the context.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace nexus::cuda
