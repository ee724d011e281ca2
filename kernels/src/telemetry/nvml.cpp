#include "telemetry/nvml.h"

#include <dlfcn.h>

#include <cstdlib>

namespace nexus::telemetry {
namespace {

template <class Function>
bool resolve(void* library, const char* name, Function& out) {
  out = reinterpret_cast<Function>(dlsym(library, name));
  return out != nullptr;
}

}  // namespace

Nvml::Nvml() {
  const char* path = std::getenv("NEXUS_NVML_PATH");
  library_ = path != nullptr && *path != '\0' ? path : "libnvidia-ml.so.1";
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

}  // namespace nexus::telemetry
