// What this process may use of the machine: cores and memory, after affinity masks and control groups.
#pragma once
#include <cstdint>
#include <string>

namespace nexus {

struct HostMemory {
  int64_t total = -1;      ///< physical memory, or the control group's limit where that is lower; -1 unknown
  int64_t available = -1;  ///< what can be had now without swapping
};
HostMemory host_memory();
std::string host_cpu_name();
/// Cores in this process's affinity mask, at least 1.
int host_cores();
/// The above, or fewer where a control group's CPU quota allows fewer (rounded up).
int host_cores_under_quota();

}  // namespace nexus
