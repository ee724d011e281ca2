// Asks the runtime about its devices without making a context on any of them.
#include <cstdio>

#include "exec/cuda_device.h"
#include "telemetry/cuda_probe.h"

namespace nexus::telemetry {
namespace {

/// As nvidia-smi prints it.
std::string uuid_text(const cudaUUID_t& uuid) {
  std::string text = "GPU";
  for (int i = 0; i < 16; ++i) {
    char hex[4];
    std::snprintf(hex, sizeof hex, "%02x", static_cast<unsigned char>(uuid.bytes[i]));
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += hex;
  }
  return text;
}

CudaDeviceInfo describe(int index) {
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  CudaDeviceInfo device;
  device.index = index;
  device.name = properties.name;
  device.uuid = uuid_text(properties.uuid);
  device.compute_major = properties.major;
  device.compute_minor = properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  device.l2_bytes = properties.l2CacheSize;
  device.shared_memory_per_block_optin = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  device.memory_pools = properties.memoryPoolsSupported != 0;
  return device;
}

}  // namespace

void probe_cuda(SystemInfo& info) {
  const cuda::Availability& found = cuda::availability();
  info.cuda_compiled = true;
  info.cuda_status = found.status;
  info.cuda_error = found.error;
  info.cuda_runtime_version = found.runtime_version;
  info.cuda_driver_version = found.driver_version;
  info.green_contexts = cuda::driver_function("cuGreenCtxCreate", 12040) != nullptr &&
                        cuda::driver_function("cuDevSmResourceSplitByCount", 12040) != nullptr;
  info.tensor_maps = cuda::driver_function("cuTensorMapEncodeTiled", 12000) != nullptr;
  for (int i = 0; i < found.devices; ++i) {
    try {
      info.devices.push_back(describe(i));
    } catch (const Error& e) {
      info.cuda_status = "cuda:" + std::to_string(i) + ": " + e.what();
      info.cuda_error = e.native;
    }
  }
}

}  // namespace nexus::telemetry
