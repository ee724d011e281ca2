// Host-side helpers shared by all CUDA launches: every status is checked (exec/cuda_check.h), and what a launch needs
// to know of its device or kernel is asked once and then read without a lock: many streams launch from many threads.
// Nothing here synchronises or allocates device memory.
#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "exec/cuda_check.h"
#include "nexus/runtime.h"

namespace nexus::cuda {

constexpr int kMaxDevices = 64;

/// One value per device, found by whoever asks first. Threads that race find the same value twice.
template <class T>
class PerDevice {
 public:
  /// `find` returns anything but T{}. When it throws, the next caller asks again.
  template <class F>
  T get(int device, F&& find) {
    if (device < 0 || device >= kMaxDevices)
      throw_unsupported("cuda:" + std::to_string(device) + ": expected a device below " + std::to_string(kMaxDevices));
    std::atomic<T>& known = values_[static_cast<size_t>(device)];
    T value = known.load(std::memory_order_acquire);
    if (value == T{}) [[unlikely]] {
      value = find();
      known.store(value, std::memory_order_release);
    }
    return value;
  }

 private:
  std::array<std::atomic<T>, kMaxDevices> values_{};
};

/// What launches ask of a device.
struct DeviceFacts {
  size_t shared_memory_limit = 0;  ///< the most dynamic shared memory a block may have
  bool dependent_launch = false;   ///< kernels may be launched ahead of the end of the one before (9.0 and later)
  bool wgmma = false;              ///< compute capability 9.0, and the loaded code is that for 9.0a
};
const DeviceFacts& device_facts(int device);

/// For one kernel, as a static beside its launch: makes it launchable with its dynamic shared memory, and says how many
/// of its blocks fit on an SM at once.
class KernelFacts {
 public:
  /// At least 1. Makes the attribute calls on the first call for a device, which must be current. `share_sm`: an SM
  /// that runs it has all of its shared memory set up, so that a neighbour's blocks find theirs there.
  int blocks_per_multiprocessor(const void* kernel, int device, int threads, size_t shared_bytes,
                                bool share_sm = false);

 private:
  PerDevice<int> blocks_;
};

/// The stream's handle, with its device made current on this thread.
inline cudaStream_t handle(Stream& stream) { return static_cast<cudaStream_t>(stream.cuda_stream()); }

inline bool aligned16(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

/// Blocks of `threads` that cover n items; throws kUnsupported past CUDA's grid limit.
unsigned grid_for(int64_t n, int threads);

}  // namespace nexus::cuda
