// NVIDIA's management library, opened at run time. Its ABI is declared here by hand: the header is not needed to build
// and the library is not needed to run. Only functions that read are declared; nothing of a device is ever changed.
#pragma once
#include <string>

namespace nexus::telemetry {

/// nvmlReturn_t values that we tell apart.
enum : int { kNvmlSuccess = 0, kNvmlNotSupported = 3 };

struct NvmlApi {
  using Device = struct nvmlDevice_st*;
  int (*init)() = nullptr;                                     // nvmlInit_v2
  int (*shutdown)() = nullptr;                                 // nvmlShutdown
  const char* (*error_string)(int) = nullptr;                  // nvmlErrorString
  int (*driver_version)(char*, unsigned) = nullptr;            // nvmlSystemGetDriverVersion
  int (*device_count)(unsigned*) = nullptr;                    // nvmlDeviceGetCount_v2
  int (*device_by_index)(unsigned, Device*) = nullptr;         // nvmlDeviceGetHandleByIndex_v2
  int (*mig_mode)(Device, unsigned*, unsigned*) = nullptr;     // nvmlDeviceGetMigMode: current, pending
  int (*total_energy)(Device, unsigned long long*) = nullptr;  // nvmlDeviceGetTotalEnergyConsumption: mJ
};

/// The library, initialised for as long as this object lives. Not copyable: the destructor shuts NVML down (it counts
/// its users).
class Nvml {
 public:
  /// NEXUS_NVML_PATH, or libnvidia-ml.so.1. Check available().
  Nvml();
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  bool available() const { return initialised_; }
  const std::string& library() const { return library_; }  ///< what was opened, or tried
  const std::string& why_not() const { return why_not_; }
  const NvmlApi& api() const { return api_; }
  /// "Not Supported (3)"
  std::string explain(int status) const;

 private:
  std::string library_, why_not_;
  NvmlApi api_;
  void* handle_ = nullptr;
  bool initialised_ = false;
};

}  // namespace nexus::telemetry
