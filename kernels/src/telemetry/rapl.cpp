#include "telemetry/rapl.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

namespace nexus::telemetry {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// Empty when the counter at `path` gives a number, else why it does not.
std::string unreadable(const std::string& path) {
  errno = 0;
  std::ifstream file(path);
  if (!file) return std::strerror(errno != 0 ? errno : EIO);
  unsigned long long microjoules = 0;
  errno = 0;
  if (file >> microjoules) return "";
  return errno != 0 ? std::strerror(errno) : "not a number";
}

}  // namespace

Rapl find_rapl() {
  namespace fs = std::filesystem;
  const char* variable = std::getenv("NEXUS_RAPL_PATH");
  const std::string root = variable != nullptr && *variable != '\0' ? variable : "/sys/class/powercap";
  Rapl found;
  std::error_code error;
  fs::directory_iterator entries(root, error);
  if (error) {
    found.detail = root + ": " + error.message() + " (no powercap driver: usual in virtual machines and containers)";
    return found;
  }
  // "intel-rapl:0" is a package, "intel-rapl:0:1" a part of it; AMD's counters have these names, too.
  // "intel-rapl-mmio:0" shows package 0 a second time.
  const std::string prefix = "intel-rapl:";
  std::vector<std::string> zones;
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string zone = entries->path().filename().string();
    if (zone.rfind(prefix, 0) == 0) zones.push_back(zone);
  }
  std::sort(zones.begin(), zones.end());
  std::map<std::string, std::string> reasons;  // reason → a counter that gave it
  for (const auto& zone : zones) {
    const std::string path = root + "/" + zone;
    const std::string reason = unreadable(path + "/energy_uj");
    if (!reason.empty()) {
      reasons.emplace(reason, path + "/energy_uj");
      if (zone.find(':', prefix.size()) == std::string::npos && first_line(path + "/name") != "psys")
        found.unreadable_packages.push_back(path);
      continue;
    }
    std::string name = first_line(path + "/name");
    if (name.empty()) name = zone;
    if (const size_t colon = zone.find(':', prefix.size()); colon != std::string::npos)
      name = first_line(root + "/" + zone.substr(0, colon) + "/name") + "/" + name;
    found.domains.push_back({name, path});
  }
  if (zones.empty()) found.detail = root + " has no intel-rapl zone";
  for (const auto& [reason, counter] : reasons)
    found.detail += (found.detail.empty() ? "" : "; ") + counter + ": " + reason +
                    (reason == std::strerror(EACCES) ? " (only root may read it on current kernels)" : "");
  return found;
}

}  // namespace nexus::telemetry
