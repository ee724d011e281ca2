// A GPU's, or a MIG instance's, figures by NVML.
//
// Each call may be missing in the library, refused for this user, unsupported by the device, or fail because the device
// is gone: each costs its own columns and no others. What is refused or unsupported is not asked again; a device that
// is lost is looked for again, once a second.
#include <cmath>
#include <limits>
#include <utility>

#include "telemetry/call_watch.h"
#include "telemetry/energy_source.h"

namespace nexus::telemetry {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kLookAgainMs = 1000;
constexpr double kGpmLeastMs = 100;  ///< what NVIDIA asks for between two samples

double value_of(const NvmlFieldValue& field) {
  switch (field.type) {
    case 0:
      return field.value.f64;
    case 1:
      return field.value.u32;
    case 2:
      return static_cast<double>(field.value.ulong);
    case 3:
      return static_cast<double>(field.value.u64);
    case 4:
      return static_cast<double>(field.value.i64);
    case 5:
      return field.value.i32;
    case 6:
      return field.value.u16;
    default:
      return kNan;
  }
}

class GpuSource : public EnergySource {
 public:
  GpuSource(std::shared_ptr<const Nvml> nvml, std::string uuid) : nvml_(std::move(nvml)), uuid_(std::move(uuid)) {}
  ~GpuSource() override { free_gpm(); }

  void sample(EnergySample& out, EnergyReasons& reasons) override {
    out_ = &out;
    reasons_ = &reasons;
    out.fill(kNan);
    out[kEnergyTime] = telemetry_now_ms();
    if (device_ == nullptr) look_up(out[kEnergyTime]);
    if (device_ != nullptr) {
      reasons.fill("");
      const bool is_instance = parent_ != nullptr;
      if (is_instance)
        whole_gpu_only();
      else
        energy();
      if (device_ != nullptr && !is_instance) power();
      if (device_ != nullptr) utilisation();
      if (device_ != nullptr) activity();
    }
    if (device_ == nullptr) {  // never found, or lost on the way
      for (int c = kEnergyJoules; c < kEnergyColumns; ++c)
        if (std::isnan(out[c]) && reasons[c].empty()) reasons[c] = why_no_device_;
    }
    out[kEnergyResets] = static_cast<double>(energy_.resets);
    out[kEnergyTicks] = static_cast<double>(energy_.ticks);
    reasons[kEnergyTime] = reasons[kEnergyResets] = reasons[kEnergyTicks] = "";
  }

 private:
  using Device = NvmlApi::Device;
  const NvmlApi& api() const { return nvml_->api(); }

  void set(EnergyColumn column, double value) { (*out_)[column] = value; }
  void fail(EnergyColumn column, const std::string& reason) { (*reasons_)[column] = reason; }
  /// The reason for good: the call is not made again.
  bool given_up(EnergyColumn column) {
    if (for_good_[column].empty()) return false;
    fail(column, for_good_[column]);
    return true;
  }
  /// True for success; else notes the failure for `column`, and what it says about the device.
  bool succeeded(int status, const char* call, EnergyColumn column) {
    if (status == kNvmlSuccess) return true;
    const std::string reason = std::string(call) + ": " + nvml_->explain(status);
    fail(column, reason);
    if (status == kNvmlNotSupported || status == kNvmlNoPermission || status == kNvmlFunctionNotFound)
      for_good_[column] = reason;
    if (status == kNvmlGpuIsLost || status == kNvmlNotFound || status == kNvmlUninitialized) {
      device_ = parent_ = nullptr;
      why_no_device_ = reason;
      look_after_ = telemetry_now_ms() + kLookAgainMs;
    }
    return false;
  }

  // ---- which device
  // ---------------------------------------------------------------------------------------------------

  void look_up(double now) {
    if (!nvml_->available()) {
      why_no_device_ = nvml_->why_not();
      return;
    }
    if (now < look_after_) return;
    look_after_ = now + kLookAgainMs;
    const std::string wanted = uuid_digits(uuid_);
    unsigned count = 0;
    if (const int status = watched("nvmlDeviceGetCount_v2", api().device_count, &count); status != kNvmlSuccess) {
      why_no_device_ = "nvmlDeviceGetCount_v2: " + nvml_->explain(status);
      return;
    }
    std::string refused;  // a device that does not say who it is may be the one
    for (unsigned i = 0; i < count; ++i) {
      Device gpu = nullptr;
      int status = watched("nvmlDeviceGetHandleByIndex_v2", api().device_by_index, i, &gpu);
      std::string digits;
      if (status == kNvmlSuccess) status = digits_of(gpu, digits);
      if (status != kNvmlSuccess) {
        refused += "; NVML's device " + std::to_string(i) + ": " + nvml_->explain(status);
        continue;
      }
      if (digits == wanted) return found(gpu, nullptr);
      unsigned instances = 0;
      if (watched("nvmlDeviceGetMaxMigDeviceCount", api().mig_count, gpu, &instances) != kNvmlSuccess) continue;
      for (unsigned k = 0; k < instances; ++k) {
        Device instance = nullptr;
        if (watched("nvmlDeviceGetMigDeviceHandleByIndex", api().mig_by_index, gpu, k, &instance) != kNvmlSuccess)
          continue;
        if (digits_of(instance, digits) == kNvmlSuccess && digits == wanted) return found(instance, gpu);
      }
    }
    // After a loss, the loss says more than that the device is not in the list.
    if (why_no_device_.empty()) why_no_device_ = "NVML knows no device with UUID " + uuid_ + refused;
  }
  int digits_of(Device device, std::string& digits) {
    char text[96] = "";
    const int status = watched("nvmlDeviceGetUUID", api().uuid, device, text, static_cast<unsigned>(sizeof text));
    if (status == kNvmlSuccess) digits = uuid_digits(text);
    return status;
  }
  void found(Device device, Device parent) {
    device_ = device;
    parent_ = parent;
    why_no_device_.clear();
    gpm_filled_ = false;
    if (parent == nullptr) return;
    char text[96] = "";
    parent_uuid_ = watched("nvmlDeviceGetUUID", api().uuid, parent, text, static_cast<unsigned>(sizeof text)) == 0
                       ? text
                       : "unknown";
    has_instance_ = watched("nvmlDeviceGetGpuInstanceId", api().gpu_instance, device, &gpu_instance_) == kNvmlSuccess;
  }

  // ---- what it says
  // ---------------------------------------------------------------------------------------------------

  void whole_gpu_only() {
    const std::string reason =
        "a MIG instance has no energy counter or power sensor of its own: monitor its GPU, " + parent_uuid_;
    for (const auto column : {kEnergyJoules, kEnergyMemoryJoules, kPowerWatts, kPowerAverageWatts, kPowerMemoryWatts})
      fail(column, reason);
  }

  void energy() {
    fail(kEnergyMemoryJoules, "NVML counts no energy of the memory alone");
    if (given_up(kEnergyJoules)) return;
    unsigned long long millijoules = 0;
    const double before = telemetry_now_ms();
    const int status = watched("nvmlDeviceGetTotalEnergyConsumption", api().total_energy, device_, &millijoules);
    set(kEnergyTime, 0.5 * (before + telemetry_now_ms()));
    if (!succeeded(status, "nvmlDeviceGetTotalEnergyConsumption", kEnergyJoules)) return;
    energy_.add(static_cast<double>(millijoules));
    set(kEnergyJoules, energy_.total * 1e-3);
  }

  void power() {
    struct Wanted {
      EnergyColumn column;
      unsigned field, scope;
    };
    constexpr Wanted kWanted[] = {{kPowerWatts, kFieldPowerInstant, kScopeGpu},
                                  {kPowerAverageWatts, kFieldPowerAverage, kScopeGpu},
                                  {kPowerMemoryWatts, kFieldPowerAverage, kScopeMemory}};
    constexpr const char* kCall = "nvmlDeviceGetFieldValues";
    NvmlFieldValue fields[3];
    EnergyColumn columns[3];
    int count = 0;
    for (const auto& wanted : kWanted) {
      if (wanted.column == kPowerAverageWatts && !for_good_[wanted.column].empty()) continue;
      if (given_up(wanted.column)) continue;
      fields[count].field = wanted.field;
      fields[count].scope = wanted.scope;
      columns[count++] = wanted.column;
    }
    if (count > 0) {
      const int status = watched(kCall, api().fields, device_, count, fields);
      for (int i = 0; i < count && (i == 0 || device_ != nullptr); ++i) {
        const int own = status != kNvmlSuccess ? status : fields[i].status;
        const std::string call = std::string(kCall) + "(" + std::to_string(fields[i].field) +
                                 (fields[i].scope == kScopeMemory ? ", memory)" : ")");
        if (succeeded(own, call.c_str(), columns[i])) set(columns[i], value_of(fields[i]) * 1e-3);
      }
    }
    // Older drivers and devices have no fields; this one is the same average.
    if (device_ == nullptr || !std::isnan((*out_)[kPowerAverageWatts]) || no_power_usage_) {
      if (device_ != nullptr && std::isnan((*out_)[kPowerAverageWatts])) given_up(kPowerAverageWatts);
      return;
    }
    unsigned milliwatts = 0;
    if (succeeded(watched("nvmlDeviceGetPowerUsage", api().power_usage, device_, &milliwatts),
                  "nvmlDeviceGetPowerUsage", kPowerAverageWatts)) {
      fail(kPowerAverageWatts, "");
      set(kPowerAverageWatts, milliwatts * 1e-3);
    } else {
      no_power_usage_ = device_ != nullptr && !for_good_[kPowerAverageWatts].empty();
    }
  }

  void utilisation() {
    if (!given_up(kUtilisationGpu)) {
      NvmlUtilization rates;
      if (succeeded(watched("nvmlDeviceGetUtilizationRates", api().utilisation, device_, &rates),
                    "nvmlDeviceGetUtilizationRates", kUtilisationGpu)) {
        set(kUtilisationGpu, rates.gpu * 0.01);
        set(kUtilisationMemory, rates.memory * 0.01);
      }
    }
    fail(kUtilisationMemory, (*reasons_)[kUtilisationGpu]);
    if (device_ == nullptr || given_up(kThrottleBits)) return;
    unsigned long long bits = 0;
    if (succeeded(watched("nvmlDeviceGetCurrentClocksEventReasons", api().throttle, device_, &bits),
                  "nvmlDeviceGetCurrentClocksEventReasons", kThrottleBits))
      set(kThrottleBits, static_cast<double>(bits));
  }

  // GPM: the library compares two snapshots of the device's own counters.
  void activity() {
    constexpr EnergyColumn kColumns[] = {kActivitySm, kActivityOccupancy, kActivityTensor, kActivityDram};
    constexpr unsigned kMetrics[] = {kGpmSmUtil, kGpmSmOccupancy, kGpmAnyTensor, kGpmDramBandwidth};
    const auto all = [&](const std::string& reason, bool for_good) {
      for (const auto column : kColumns) {
        fail(column, reason);
        if (for_good) for_good_[column] = reason;
      }
    };
    const auto failed = [&](int status, const char* call) {
      if (succeeded(status, call, kActivitySm)) return false;
      all((*reasons_)[kActivitySm], !for_good_[kActivitySm].empty());
      return true;
    };
    if (given_up(kActivitySm)) {
      for (const auto column : kColumns) given_up(column);
      return;
    }
    if (gpm_[0] == nullptr) {
      NvmlGpmSupport support;
      if (failed(
              watched("nvmlGpmQueryDeviceSupport", api().gpm_support, parent_ != nullptr ? parent_ : device_, &support),
              "nvmlGpmQueryDeviceSupport"))
        return;
      if (support.supported == 0) return all("this device has no GPM counters", true);
      if (parent_ != nullptr && !has_instance_) return all("the GPU instance of this MIG device is not known", true);
      if (api().gpm_free == nullptr || api().gpm_metrics == nullptr) return all("this NVML lacks GPM functions", true);
      for (auto& sample : gpm_) {
        if (failed(watched("nvmlGpmSampleAlloc", api().gpm_alloc, &sample), "nvmlGpmSampleAlloc")) {
          free_gpm();
          return;
        }
      }
    }
    const double now = telemetry_now_ms();
    if (gpm_filled_ && now - gpm_time_ < kGpmLeastMs) {  // too early: what was true a moment ago
      for (int i = 0; i < 4; ++i) {
        set(kColumns[i], gpm_values_[i]);
        if (std::isnan(gpm_values_[i])) fail(kColumns[i], gpm_reasons_[i]);
      }
      return;
    }
    void*& next = gpm_[gpm_newest_ ^ 1];
    const int status = parent_ != nullptr
                           ? watched("nvmlGpmMigSampleGet", api().gpm_mig_sample, parent_, gpu_instance_, next)
                           : watched("nvmlGpmSampleGet", api().gpm_sample, device_, next);
    if (failed(status, parent_ != nullptr ? "nvmlGpmMigSampleGet" : "nvmlGpmSampleGet")) return;
    gpm_newest_ ^= 1;
    const bool first = !std::exchange(gpm_filled_, true);
    gpm_time_ = now;
    for (int i = 0; i < 4; ++i) {
      gpm_values_[i] = kNan;
      gpm_reasons_[i] = "GPM compares two samples, and there is only one so far";
    }
    if (!first) {
      gpm_query_.count = 4;
      gpm_query_.sample1 = gpm_[gpm_newest_ ^ 1];
      gpm_query_.sample2 = gpm_[gpm_newest_];
      for (int i = 0; i < 4; ++i) {
        gpm_query_.metrics[i] = {};
        gpm_query_.metrics[i].id = kMetrics[i];
      }
      if (failed(watched("nvmlGpmMetricsGet", api().gpm_metrics, &gpm_query_), "nvmlGpmMetricsGet")) return;
      for (int i = 0; i < 4; ++i) {
        const auto& metric = gpm_query_.metrics[i];
        const std::string call = "nvmlGpmMetricsGet(" + std::to_string(kMetrics[i]) + ")";
        if (metric.status == kNvmlSuccess)
          gpm_values_[i] = metric.value * 0.01;
        else
          gpm_reasons_[i] = call + ": " + nvml_->explain(metric.status);
      }
    }
    for (int i = 0; i < 4; ++i) {
      set(kColumns[i], gpm_values_[i]);
      if (std::isnan(gpm_values_[i])) fail(kColumns[i], gpm_reasons_[i]);
    }
  }

  void free_gpm() {
    for (auto& sample : gpm_)
      if (sample != nullptr) watched("nvmlGpmSampleFree", api().gpm_free, std::exchange(sample, nullptr));
  }

  const std::shared_ptr<const Nvml> nvml_;
  const std::string uuid_;
  Device device_ = nullptr, parent_ = nullptr;
  std::string why_no_device_, parent_uuid_;
  unsigned gpu_instance_ = 0;
  bool has_instance_ = false, no_power_usage_ = false;
  double look_after_ = 0;
  RunningTotal energy_;  // millijoules
  EnergyReasons for_good_;
  void* gpm_[2] = {nullptr, nullptr};
  int gpm_newest_ = 0;
  bool gpm_filled_ = false;
  double gpm_time_ = 0, gpm_values_[4] = {kNan, kNan, kNan, kNan};
  std::string gpm_reasons_[4];
  NvmlGpmMetrics gpm_query_;
  EnergySample* out_ = nullptr;
  EnergyReasons* reasons_ = nullptr;
};

}  // namespace

std::unique_ptr<EnergySource> make_gpu_source(std::shared_ptr<const Nvml> nvml, std::string uuid) {
  return std::make_unique<GpuSource>(std::move(nvml), std::move(uuid));
}

}  // namespace nexus::telemetry
