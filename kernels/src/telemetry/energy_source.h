// Where the figures of one device come from. A source is read by one thread at a time and keeps what turns raw counters
// into running totals, so that all monitors of a device agree.
#pragma once
#include <memory>
#include <string>

#include "nexus/telemetry.h"
#include "telemetry/nvml.h"
#include "telemetry/rapl.h"

namespace nexus::telemetry {

class EnergySource {
 public:
  virtual ~EnergySource() = default;
  /// Fills every column (NaN: not known) and its reason (empty: known). Never throws for what a device answers.
  virtual void sample(EnergySample& out, EnergyReasons& reasons) = 0;
};

/// A GPU or MIG instance, found by UUID. Only for the sampler thread: every call in it may hang.
std::unique_ptr<EnergySource> make_gpu_source(std::shared_ptr<const Nvml> nvml, std::string uuid);
/// The processor, with its counters found as `rapl` says.
std::unique_ptr<EnergySource> make_cpu_source(Rapl rapl);

/// Only for the sampler thread.
EnergyInventory take_inventory(const Nvml& nvml, const Rapl& rapl);

/// A raw counter made a running total. `range` > 0: the counter wraps there, and one that went back has wrapped once.
/// `range` = 0: one that went back was reset; what it had counted in between is lost, and `resets` says so.
class RunningTotal {
 public:
  explicit RunningTotal(double range = 0) : range_(range) {}
  void add(double raw) {
    if (known_ && raw != last_) {
      ++ticks;
      if (raw > last_)
        total += raw - last_;
      else if (range_ > 0 && last_ <= range_)
        total += raw + (range_ - last_);
      else
        ++resets;
    }
    last_ = raw;
    known_ = true;
  }
  double total = 0;
  int64_t resets = 0, ticks = 0;

 private:
  double range_, last_ = 0;
  bool known_ = false;
};

}  // namespace nexus::telemetry
