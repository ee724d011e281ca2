// The one exception type of the native library. Every failure carries a code that the
// TypeScript side turns into its typed error, so that no CUDA status is ever swallowed.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

namespace nexus {

enum class ErrorCode {
  kInvalidArgument,  ///< the caller's mistake; the message names the argument, what came and what was expected
  kOutOfMemory,      ///< `requested` and `free` are set, in bytes
  kDevice,           ///< a CUDA call failed; `native` is CUDA's own name of the error
  kUnsupported,      ///< this device, build or shape cannot do it
  kDisposed,         ///< used after it was released
  kGraphCapture,     ///< work could not be recorded; the message says what and why
  kInternal,         ///< a broken invariant of ours
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code(code) {}

  ErrorCode code;
  std::string native;      ///< e.g. "cudaErrorIllegalAddress"; empty when not from CUDA
  int64_t requested = -1;  ///< bytes, for kOutOfMemory
  int64_t available = -1;  ///< bytes free when it failed, for kOutOfMemory; -1 unknown
};

[[noreturn]] inline void throw_invalid(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}
[[noreturn]] inline void throw_unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupported, message);
}

}  // namespace nexus
