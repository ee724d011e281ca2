// See check.h.
#include <algorithm>

#include "data/cuda/check.h"
#include "data/cuda/hopper.h"
#include "exec/cuda_device.h"

namespace nexus::cuda {
namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

DeviceFacts ask(int device) {
  DeviceFacts facts;
  facts.shared_memory_limit = static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  facts.dependent_launch = major >= 9;
  if (major == 9 && attribute(cudaDevAttrComputeCapabilityMinor, device) == 0) {
    int before = 0;  // which code is loaded is a question about the current device
    check(cudaGetDevice(&before), "cudaGetDevice");
    make_current(device);
    facts.wgmma = wgmma_loaded();
    make_current(before);
  }
  return facts;
}

}  // namespace

const DeviceFacts& device_facts(int device) {
  static PerDevice<const DeviceFacts*> known;
  return *known.get(device, [device] {
    // Kept for the process: of racing threads, each one's copy of the same facts may be in use.
    return static_cast<const DeviceFacts*>(new DeviceFacts(ask(device)));
  });
}

int KernelFacts::blocks_per_multiprocessor(const void* kernel, int device, int threads, size_t shared_bytes,
                                           bool share_sm) {
  return blocks_.get(device, [&] {
    constexpr size_t kDefaultLimit = 48 * 1024;
    if (shared_bytes > kDefaultLimit)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
            "cudaFuncSetAttribute(MaxDynamicSharedMemorySize)");
    if (share_sm)
      check(
          cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          "cudaFuncSetAttribute(PreferredSharedMemoryCarveout)");
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    return std::max(1, blocks);
  });
}

unsigned grid_for(int64_t n, int threads) {
  const int64_t blocks = (n + threads - 1) / threads;
  if (blocks > 0x7fffffff) throw_unsupported("a launch over " + std::to_string(n) + " items exceeds CUDA's grid limit");
  return static_cast<unsigned>(blocks);
}

}  // namespace nexus::cuda
