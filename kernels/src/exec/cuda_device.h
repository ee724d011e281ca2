// The CUDA devices of this process, found once, on first use. No driver and no device are answers, not errors.
#pragma once
#include <cuda_runtime.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "exec/cuda_check.h"
#include "nexus/runtime.h"

namespace nexus::cuda {

struct Availability {
  int devices = 0;
  std::string status;  ///< "ok", or one sentence why CUDA cannot be used
  std::string error;   ///< the runtime's own name of the error, or empty
  int runtime_version = 0, driver_version = 0;
};
const Availability& availability();

/// cudaSetDevice, as make_current() does it where the device is not current yet.
void bind_device(int device);

/// Makes the device current on this thread. Cheap where it already is; but a thread's first call always binds the
/// device's context (cudaGetDevice answers 0 on a thread that has none yet, and driver calls need one).
inline void make_current(int device) {
  thread_local int bound = -1;
  int current = -1;
  if (bound == device && cudaGetDevice(&current) == cudaSuccess && current == device) return;
  bind_device(device);
  bound = device;
}

/// A driver API function by name, as it was in `cuda_version` (12040 = 12.4); null where this driver has none.
/// The library is never linked against libcuda, so this is the only way to it.
void* driver_function(const char* name, unsigned cuda_version);

/// Recycled events without timing: for dependencies and completions. Given back when the handle goes; an event may be
/// recorded again while streams still wait for its earlier recording, because a wait takes the recording that it found.
class PooledEvent {
 public:
  explicit PooledEvent(int device);
  ~PooledEvent();
  PooledEvent(const PooledEvent&) = delete;
  PooledEvent& operator=(const PooledEvent&) = delete;
  cudaEvent_t get() const { return event_; }

 private:
  int device_;
  cudaEvent_t event_ = nullptr;
};

}  // namespace nexus::cuda
