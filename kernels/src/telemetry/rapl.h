// The processor's energy counters as Linux shows them (the powercap class).
#pragma once
#include <string>
#include <vector>

namespace nexus::telemetry {

struct RaplDomain {
  std::string name;  ///< "package-0", "package-0/dram"
  std::string path;  ///< its folder; energy_uj in it is the counter, which wraps at max_energy_range_uj
};
struct Rapl {
  std::vector<RaplDomain> domains;               ///< those whose counter this process can read
  std::vector<std::string> unreadable_packages;  ///< folders of the whole packages that this process cannot read
  std::string detail;                            ///< why some or all are missing; empty when none is
};
/// Looks under NEXUS_RAPL_PATH, or /sys/class/powercap. Never throws for what it finds there.
Rapl find_rapl();

}  // namespace nexus::telemetry
