// The processor's energy by RAPL. Cheap enough (tens of microseconds) to be read on any thread.
//
// A total is honest only when it has all packages: one of two sockets would look like a machine of half the power. So
// one package that cannot be read makes the energy unknown. A package's own counter holds its cores and graphics; the
// memory ("dram") is counted beside it on servers and added here; "psys" (the whole platform) is left out, since it
// holds both again.
#include <cmath>
#include <fstream>
#include <limits>
#include <vector>

#include "telemetry/energy_source.h"

namespace nexus::telemetry {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// NaN when it is no number.
double read_number(const std::string& path) {
  std::ifstream file(path);
  double value = kNan;
  return file >> value ? value : kNan;
}

class CpuSource : public EnergySource {
 public:
  explicit CpuSource(Rapl rapl) {
    if (!rapl.unreadable_packages.empty() || rapl.domains.empty()) {
      why_not_ = rapl.detail;
      return;
    }
    for (const auto& domain : rapl.domains) {
      const bool part = domain.name.find('/') != std::string::npos;
      const bool memory = part && domain.name.substr(domain.name.rfind('/') + 1) == "dram";
      if (domain.name == "psys" || (part && !memory)) continue;
      const double range = read_number(domain.path + "/max_energy_range_uj");
      counters_.push_back({domain.path + "/energy_uj", memory, RunningTotal(range > 0 ? range : 0)});
    }
    if (counters_.empty()) why_not_ = "no RAPL package domain: " + rapl.detail;
  }

  void sample(EnergySample& out, EnergyReasons& reasons) override {
    out.fill(kNan);
    reasons.fill("not measured on the CPU");
    out[kEnergyTime] = telemetry_now_ms();
    reasons[kEnergyTime].clear();
    double total = 0, memory = 0;
    int64_t resets = 0, ticks = 0;
    bool has_memory = false;
    std::string failed = why_not_;
    for (auto& counter : counters_) {
      const double microjoules = read_number(counter.path);
      if (std::isnan(microjoules)) {
        failed = counter.path + " can no longer be read";
        continue;
      }
      counter.total.add(microjoules);
      total += counter.total.total;
      resets += counter.total.resets;
      ticks += counter.total.ticks;
      if (counter.memory) has_memory = true, memory += counter.total.total;
    }
    out[kEnergyResets] = static_cast<double>(resets);
    out[kEnergyTicks] = static_cast<double>(ticks);
    reasons[kEnergyResets] = reasons[kEnergyTicks] = "";
    if (!failed.empty()) {
      reasons[kEnergyJoules] = reasons[kEnergyMemoryJoules] = reasons[kPowerWatts] = failed;
      power_since_ = kNan;
      return;
    }
    out[kEnergyJoules] = total * 1e-6;
    reasons[kEnergyJoules].clear();
    if (has_memory) {
      out[kEnergyMemoryJoules] = memory * 1e-6;
      reasons[kEnergyMemoryJoules].clear();
    } else {
      reasons[kEnergyMemoryJoules] = "this processor has no dram domain that can be read";
    }
    // The counters move about every millisecond: a shorter stretch says nothing about power.
    const double elapsed = out[kEnergyTime] - power_since_;
    if (std::isnan(elapsed) || elapsed >= kPowerStretchMs) {
      power_ = std::isnan(elapsed) || resets != power_resets_ ? kNan : (total - power_energy_) * 1e-3 / elapsed;
      power_since_ = out[kEnergyTime];
      power_energy_ = total;
      power_resets_ = resets;
    }
    out[kPowerWatts] = power_;
    reasons[kPowerWatts] = std::isnan(power_) ? "needs two samples of the energy counter" : "";
  }

 private:
  static constexpr double kPowerStretchMs = 5;
  struct Counter {
    std::string path;
    bool memory;
    RunningTotal total;  // microjoules
  };
  std::vector<Counter> counters_;
  std::string why_not_;
  double power_ = kNan, power_since_ = kNan, power_energy_ = 0;
  int64_t power_resets_ = 0;
};

}  // namespace

std::unique_ptr<EnergySource> make_cpu_source(Rapl rapl) { return std::make_unique<CpuSource>(std::move(rapl)); }

}  // namespace nexus::telemetry
