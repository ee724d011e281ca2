#include "telemetry/nvml.h"

#include <dlfcn.h>

#include <cctype>
#include <cstdlib>
#include <utility>

namespace nexus::telemetry {
namespace {

template <class Function>
bool resolve(void* library, const char* name, Function& out) {
  out = reinterpret_cast<Function>(dlsym(library, name));
  return out != nullptr;
}

}  // namespace

std::string Nvml::default_path() {
  const char* path = std::getenv("NEXUS_NVML_PATH");
  return path != nullptr && *path != '\0' ? path : "libnvidia-ml.so.1";
}

Nvml::Nvml(std::string path) : library_(std::move(path)) {
  handle_ = dlopen(library_.c_str(), RTLD_LAZY | RTLD_LOCAL);
  if (handle_ == nullptr) {
    const char* reason = dlerror();
    why_not_ = reason != nullptr ? reason : "cannot open " + library_;
    return;
  }
  // These exist since NVML 11; without one of them it is something else under that name.
  const char* missing =
      !resolve(handle_, "nvmlInit_v2", api_.init)                                ? "nvmlInit_v2"
      : !resolve(handle_, "nvmlShutdown", api_.shutdown)                         ? "nvmlShutdown"
      : !resolve(handle_, "nvmlErrorString", api_.error_string)                  ? "nvmlErrorString"
      : !resolve(handle_, "nvmlSystemGetDriverVersion", api_.driver_version)     ? "nvmlSystemGetDriverVersion"
      : !resolve(handle_, "nvmlDeviceGetCount_v2", api_.device_count)            ? "nvmlDeviceGetCount_v2"
      : !resolve(handle_, "nvmlDeviceGetHandleByIndex_v2", api_.device_by_index) ? "nvmlDeviceGetHandleByIndex_v2"
                                                                                 : nullptr;
  if (missing != nullptr) {
    why_not_ = library_ + " has no function " + missing;
    return;
  }
  resolve(handle_, "nvmlDeviceGetMigMode", api_.mig_mode);
  resolve(handle_, "nvmlDeviceGetTotalEnergyConsumption", api_.total_energy);
  resolve(handle_, "nvmlDeviceGetUUID", api_.uuid);
  resolve(handle_, "nvmlDeviceGetName", api_.name);
  resolve(handle_, "nvmlDeviceGetMemoryInfo", api_.memory);
  resolve(handle_, "nvmlDeviceGetPowerUsage", api_.power_usage);
  resolve(handle_, "nvmlDeviceGetFieldValues", api_.fields);
  resolve(handle_, "nvmlDeviceGetUtilizationRates", api_.utilisation);
  if (!resolve(handle_, "nvmlDeviceGetCurrentClocksEventReasons", api_.throttle))
    resolve(handle_, "nvmlDeviceGetCurrentClocksThrottleReasons", api_.throttle);
  resolve(handle_, "nvmlDeviceGetMaxMigDeviceCount", api_.mig_count);
  resolve(handle_, "nvmlDeviceGetMigDeviceHandleByIndex", api_.mig_by_index);
  resolve(handle_, "nvmlDeviceGetGpuInstanceId", api_.gpu_instance);
  resolve(handle_, "nvmlDeviceGetComputeInstanceId", api_.compute_instance);
  resolve(handle_, "nvmlDeviceGetAttributes_v2", api_.attributes);
  resolve(handle_, "nvmlGpmQueryDeviceSupport", api_.gpm_support);
  resolve(handle_, "nvmlGpmSampleAlloc", api_.gpm_alloc);
  resolve(handle_, "nvmlGpmSampleFree", api_.gpm_free);
  resolve(handle_, "nvmlGpmSampleGet", api_.gpm_sample);
  resolve(handle_, "nvmlGpmMigSampleGet", api_.gpm_mig_sample);
  resolve(handle_, "nvmlGpmMetricsGet", api_.gpm_metrics);
  if (const int status = api_.init(); status != kNvmlSuccess) {
    why_not_ = "nvmlInit_v2: " + explain(status);
    return;
  }
  initialised_ = true;
}

Nvml::~Nvml() {
  if (initialised_) api_.shutdown();
  if (handle_ != nullptr) dlclose(handle_);
}

std::string Nvml::explain(int status) const {
  const char* text = api_.error_string != nullptr ? api_.error_string(status) : nullptr;
  return std::string(text != nullptr ? text : "unknown error") + " (" + std::to_string(status) + ")";
}

std::string uuid_digits(const std::string& uuid) {
  std::string digits = uuid.rfind("GPU-", 0) == 0 || uuid.rfind("MIG-", 0) == 0 ? uuid.substr(4) : uuid;
  for (char& c : digits) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return digits;
}

}  // namespace nexus::telemetry
