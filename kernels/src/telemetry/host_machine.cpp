#include "telemetry/host_machine.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <vector>

namespace nexus {
namespace {

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!file || !std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int64_t> number_in(const std::string& path) {
  const auto line = first_line(path);
  if (!line) return std::nullopt;
  try {
    return std::stoll(*line);
  } catch (const std::exception&) {
    return std::nullopt;  // "max": no limit
  }
}

/// Value of "key 123" in a file of such lines (memory.stat).
int64_t field_in(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string name;
  for (int64_t value; file >> name >> value;)
    if (name == key) return value;
  return 0;
}

/// Calls `visit` with this process's control-group folder of a controller and each folder above it: a limit may sit on
/// any. `controller` is empty for the unified hierarchy (version 2).
void for_each_group(const std::string& controller, const std::function<void(const std::string&)>& visit) {
  std::ifstream file("/proc/self/cgroup");
  std::string line, path;
  while (std::getline(file, line)) {  // id:controllers:path
    const auto a = line.find(':'), b = line.find(':', a + 1);
    if (a == std::string::npos || b == std::string::npos) continue;
    std::stringstream names(line.substr(a + 1, b - a - 1));
    if (controller.empty() && b == a + 1) path = line.substr(b + 1);
    for (std::string name; std::getline(names, name, ',');)
      if (!controller.empty() && name == controller) path = line.substr(b + 1);
  }
  const std::string root = controller.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
  // Inside a container the path may be the host's: then only the root exists, and holds our limits.
  for (;; path.erase(path.rfind('/'))) {
    if (path == "/") path.clear();
    visit(root + path);
    if (path.empty() || path.rfind('/') == std::string::npos) break;
  }
}

}  // namespace

HostMemory host_memory() {
  HostMemory memory;
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    long long kib = 0;
    if (std::sscanf(line.c_str(), "MemTotal: %lld", &kib) == 1) memory.total = kib * 1024;
    if (std::sscanf(line.c_str(), "MemAvailable: %lld", &kib) == 1) memory.available = kib * 1024;
  }
  const auto limit_to = [&](const std::string& group, const char* limit, const char* usage, const char* reclaimable) {
    const auto bytes = number_in(group + "/" + limit);
    if (!bytes || *bytes <= 0 || (memory.total >= 0 && *bytes >= memory.total)) return;
    memory.total = *bytes;
    // The page cache counts as use but gives way.
    const int64_t used = number_in(group + "/" + usage).value_or(0) - field_in(group + "/memory.stat", reclaimable);
    const int64_t left = std::clamp<int64_t>(*bytes - used, 0, *bytes);
    memory.available = memory.available < 0 ? left : std::min(memory.available, left);
  };
  for_each_group("", [&](const std::string& g) { limit_to(g, "memory.max", "memory.current", "inactive_file"); });
  for_each_group("memory", [&](const std::string& g) {
    limit_to(g, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file");
  });
  return memory;
}

std::string host_cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    const auto colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  utsname system{};  // not on every architecture does cpuinfo name the model
  return uname(&system) == 0 ? system.machine : "unknown";
}

int host_cores() {
  for (int capacity = 1024; capacity <= (1 << 20); capacity *= 2) {  // the kernel refuses a set smaller than its own
    cpu_set_t* set = CPU_ALLOC(capacity);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(capacity);
    const int count = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
  return static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
}

int host_cores_under_quota() {
  double cores = host_cores();
  for_each_group("", [&](const std::string& group) {
    const auto line = first_line(group + "/cpu.max");
    double quota = 0, period = 0;
    if (line && std::sscanf(line->c_str(), "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0)
      cores = std::min(cores, quota / period);
  });
  for_each_group("cpu", [&](const std::string& group) {
    const int64_t quota = number_in(group + "/cpu.cfs_quota_us").value_or(-1);
    const int64_t period = number_in(group + "/cpu.cfs_period_us").value_or(0);
    if (quota > 0 && period > 0) cores = std::min(cores, static_cast<double>(quota) / static_cast<double>(period));
  });
  return std::max(1, static_cast<int>(std::ceil(cores)));
}

}  // namespace nexus
