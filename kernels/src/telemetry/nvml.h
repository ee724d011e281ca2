// NVIDIA's management library, opened at run time. Its ABI is declared here by hand: the header is not needed to build
// and the library is not needed to run. Only functions that read are declared; nothing of a device is ever changed.
#pragma once
#include <string>

namespace nexus::telemetry {

/// nvmlReturn_t values that we tell apart.
enum : int {
  kNvmlSuccess = 0,
  kNvmlUninitialized = 1,
  kNvmlNotSupported = 3,
  kNvmlNoPermission = 4,
  kNvmlNotFound = 6,
  kNvmlFunctionNotFound = 13,
  kNvmlGpuIsLost = 15
};

/// nvmlUtilization_t: percent.
struct NvmlUtilization {
  unsigned gpu = 0, memory = 0;
};
/// nvmlMemory_t: bytes.
struct NvmlMemory {
  unsigned long long total = 0, free = 0, used = 0;
};
/// nvmlValue_t.
union NvmlValue {
  double f64;
  int i32;
  unsigned u32;
  unsigned long ulong;
  unsigned long long u64;
  long long i64;
  unsigned short u16;
};
/// nvmlFieldValue_t. Each field has its own status.
struct NvmlFieldValue {
  unsigned field = 0, scope = 0;
  long long timestamp_us = 0, latency_us = 0;
  int type = 0;  ///< nvmlValueType_t: 0 double, 1 unsigned, 2 unsigned long, 3 u64, 4 i64, 5 int, 6 u16
  int status = 0;
  NvmlValue value{};
};
static_assert(sizeof(NvmlFieldValue) == 40);
enum : unsigned { kFieldPowerAverage = 185, kFieldPowerInstant = 186 };  // mW
enum : unsigned { kScopeGpu = 0, kScopeModule = 1, kScopeMemory = 2 };
/// nvmlDeviceAttributes_t.
struct NvmlAttributes {
  unsigned multiprocessors = 0, copy_engines = 0, decoders = 0, encoders = 0, jpeg = 0, ofa = 0;
  unsigned gpu_instance_slices = 0, compute_instance_slices = 0;
  unsigned long long memory_mib = 0;
};
static_assert(sizeof(NvmlAttributes) == 40);

/// nvmlGpmSupport_t, version 1.
struct NvmlGpmSupport {
  unsigned version = 1, supported = 0;
};
/// nvmlGpmMetric_t.
struct NvmlGpmMetric {
  unsigned id = 0;
  int status = 0;
  double value = 0;
  const char *short_name = nullptr, *long_name = nullptr, *unit = nullptr;
};
static_assert(sizeof(NvmlGpmMetric) == 40);
/// nvmlGpmMetricsGet_t, version 1. The header's array grew from 98 to 333 entries; the library reads `count` of them.
struct NvmlGpmMetrics {
  unsigned version = 1, count = 0;
  void *sample1 = nullptr, *sample2 = nullptr;
  NvmlGpmMetric metrics[333];
};
enum : unsigned { kGpmSmUtil = 2, kGpmSmOccupancy = 3, kGpmAnyTensor = 5, kGpmDramBandwidth = 10 };  // percent

struct NvmlApi {
  using Device = struct nvmlDevice_st*;
  using GpmSample = void*;
  int (*init)() = nullptr;                              // nvmlInit_v2
  int (*shutdown)() = nullptr;                          // nvmlShutdown
  const char* (*error_string)(int) = nullptr;           // nvmlErrorString
  int (*driver_version)(char*, unsigned) = nullptr;     // nvmlSystemGetDriverVersion
  int (*device_count)(unsigned*) = nullptr;             // nvmlDeviceGetCount_v2
  int (*device_by_index)(unsigned, Device*) = nullptr;  // nvmlDeviceGetHandleByIndex_v2
  // The rest may be null: an older driver, or another's implementation.
  int (*mig_mode)(Device, unsigned*, unsigned*) = nullptr;       // nvmlDeviceGetMigMode: current, pending
  int (*total_energy)(Device, unsigned long long*) = nullptr;    // nvmlDeviceGetTotalEnergyConsumption: mJ
  int (*uuid)(Device, char*, unsigned) = nullptr;                // nvmlDeviceGetUUID
  int (*name)(Device, char*, unsigned) = nullptr;                // nvmlDeviceGetName
  int (*memory)(Device, NvmlMemory*) = nullptr;                  // nvmlDeviceGetMemoryInfo
  int (*power_usage)(Device, unsigned*) = nullptr;               // nvmlDeviceGetPowerUsage: mW
  int (*fields)(Device, int, NvmlFieldValue*) = nullptr;         // nvmlDeviceGetFieldValues
  int (*utilisation)(Device, NvmlUtilization*) = nullptr;        // nvmlDeviceGetUtilizationRates
  int (*throttle)(Device, unsigned long long*) = nullptr;        // nvmlDeviceGetCurrentClocks{Event,Throttle}Reasons
  int (*mig_count)(Device, unsigned*) = nullptr;                 // nvmlDeviceGetMaxMigDeviceCount
  int (*mig_by_index)(Device, unsigned, Device*) = nullptr;      // nvmlDeviceGetMigDeviceHandleByIndex
  int (*gpu_instance)(Device, unsigned*) = nullptr;              // nvmlDeviceGetGpuInstanceId
  int (*compute_instance)(Device, unsigned*) = nullptr;          // nvmlDeviceGetComputeInstanceId
  int (*attributes)(Device, NvmlAttributes*) = nullptr;          // nvmlDeviceGetAttributes_v2
  int (*gpm_support)(Device, NvmlGpmSupport*) = nullptr;         // nvmlGpmQueryDeviceSupport
  int (*gpm_alloc)(GpmSample*) = nullptr;                        // nvmlGpmSampleAlloc
  int (*gpm_free)(GpmSample) = nullptr;                          // nvmlGpmSampleFree
  int (*gpm_sample)(Device, GpmSample) = nullptr;                // nvmlGpmSampleGet
  int (*gpm_mig_sample)(Device, unsigned, GpmSample) = nullptr;  // nvmlGpmMigSampleGet: GPU, its instance
  int (*gpm_metrics)(NvmlGpmMetrics*) = nullptr;                 // nvmlGpmMetricsGet
};

/// The library, initialised for as long as this object lives. Not copyable: the destructor shuts NVML down (it counts
/// its users).
class Nvml {
 public:
  /// NEXUS_NVML_PATH, or libnvidia-ml.so.1.
  static std::string default_path();
  /// Check available().
  explicit Nvml(std::string path = default_path());
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

/// A UUID's digits without its prefix and in lower case: "GPU-ABCD-…" and "MIG-abcd-…" may be one instance.
std::string uuid_digits(const std::string& uuid);

}  // namespace nexus::telemetry
