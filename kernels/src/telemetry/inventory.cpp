// What could be metered: NVML's devices with their MIG instances, and RAPL's domains. Read only.
#include "telemetry/call_watch.h"
#include "telemetry/energy_source.h"

namespace nexus::telemetry {
namespace {

/// Asks for texts and numbers, and gathers what was refused.
class Asker {
 public:
  Asker(const Nvml& nvml, std::string& detail) : nvml_(nvml), detail_(detail) {}

  bool ok(int status, const char* call) {
    if (status == kNvmlSuccess) return true;
    detail_ += (detail_.empty() ? "" : "; ") + std::string(call) + ": " + nvml_.explain(status);
    return false;
  }
  template <class Function>
  std::string text(Function function, NvmlApi::Device device, const char* call) {
    char buffer[96] = "";
    return ok(watched(call, function, device, buffer, static_cast<unsigned>(sizeof buffer)), call) ? buffer : "";
  }
  template <class Function>
  int number(Function function, NvmlApi::Device device, const char* call) {
    unsigned value = 0;
    return ok(watched(call, function, device, &value), call) ? static_cast<int>(value) : -1;
  }

 private:
  const Nvml& nvml_;
  std::string& detail_;
};

MigInstance describe_instance(const Nvml& nvml, NvmlApi::Device device) {
  const NvmlApi& api = nvml.api();
  MigInstance instance;
  Asker ask(nvml, instance.detail);
  instance.uuid = ask.text(api.uuid, device, "nvmlDeviceGetUUID");
  instance.gpu_instance = ask.number(api.gpu_instance, device, "nvmlDeviceGetGpuInstanceId");
  instance.compute_instance = ask.number(api.compute_instance, device, "nvmlDeviceGetComputeInstanceId");
  NvmlAttributes attributes;
  constexpr const char* kAttributes = "nvmlDeviceGetAttributes_v2";
  if (ask.ok(watched(kAttributes, api.attributes, device, &attributes), kAttributes)) {
    instance.multiprocessors = static_cast<int>(attributes.multiprocessors);
    instance.memory_bytes = static_cast<int64_t>(attributes.memory_mib) << 20;
  }
  return instance;
}

GpuDevice describe_gpu(const Nvml& nvml, unsigned index) {
  const NvmlApi& api = nvml.api();
  GpuDevice gpu;
  gpu.index = static_cast<int>(index);
  Asker ask(nvml, gpu.detail);
  NvmlApi::Device device = nullptr;
  constexpr const char* kHandle = "nvmlDeviceGetHandleByIndex_v2";
  if (!ask.ok(watched(kHandle, api.device_by_index, index, &device), kHandle)) {
    gpu.mig_mode = gpu.detail;
    return gpu;
  }
  gpu.uuid = ask.text(api.uuid, device, "nvmlDeviceGetUUID");
  gpu.name = ask.text(api.name, device, "nvmlDeviceGetName");
  NvmlMemory memory;
  constexpr const char* kMemory = "nvmlDeviceGetMemoryInfo";
  if (ask.ok(watched(kMemory, api.memory, device, &memory), kMemory))
    gpu.memory_bytes = static_cast<int64_t>(memory.total);
  unsigned current = 0, pending = 0;
  const int status = watched("nvmlDeviceGetMigMode", api.mig_mode, device, &current, &pending);
  gpu.mig_mode = status == kNvmlSuccess ? (current != 0 ? "enabled" : "disabled")
                 : status == kNvmlNotSupported || status == kNvmlFunctionNotFound ? "unsupported"
                                                                                  : nvml.explain(status);
  if (status != kNvmlSuccess || current == 0) return gpu;
  const int most = ask.number(api.mig_count, device, "nvmlDeviceGetMaxMigDeviceCount");
  for (int k = 0; k < most; ++k) {
    NvmlApi::Device instance = nullptr;
    constexpr const char* kInstance = "nvmlDeviceGetMigDeviceHandleByIndex";
    const int answer = watched(kInstance, api.mig_by_index, device, static_cast<unsigned>(k), &instance);
    if (answer == kNvmlNotFound) continue;  // that many are possible, not made
    if (ask.ok(answer, kInstance)) gpu.mig.push_back(describe_instance(nvml, instance));
  }
  return gpu;
}

}  // namespace

EnergyInventory take_inventory(const Nvml& nvml, const Rapl& rapl) {
  EnergyInventory inventory;
  for (const auto& domain : rapl.domains) inventory.rapl_domains.push_back(domain.name);
  inventory.rapl_detail = rapl.detail;
  inventory.nvml_library = nvml.library();
  if (!nvml.available()) {
    inventory.nvml_detail = nvml.why_not();
    return inventory;
  }
  Asker ask(nvml, inventory.nvml_detail);
  unsigned count = 0;
  constexpr const char* kCount = "nvmlDeviceGetCount_v2";
  if (!ask.ok(watched(kCount, nvml.api().device_count, &count), kCount)) return inventory;
  inventory.nvml_available = true;
  char version[96] = "";
  constexpr const char* kVersion = "nvmlSystemGetDriverVersion";
  if (ask.ok(watched(kVersion, nvml.api().driver_version, version, static_cast<unsigned>(sizeof version)), kVersion))
    inventory.nvml_detail = version;
  for (unsigned i = 0; i < count; ++i) inventory.gpus.push_back(describe_gpu(nvml, i));
  return inventory;
}

}  // namespace nexus::telemetry
