// What the machine has, and for what it has not, why. Nothing in here is needed to run a layer, so nothing may throw.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "data/cpu/isa.h"
#include "exec/background_thread.h"
#include "telemetry/cuda_probe.h"
#include "telemetry/host_machine.h"
#include "telemetry/nvml.h"
#include "telemetry/rapl.h"

namespace nexus {
namespace {

void probe_host(SystemInfo& info) {
  info.cpu_name = host_cpu_name();
  info.cpu_cores = host_cores();
  info.memory_bytes = host_memory().total;
}

NvmlInfo probe_nvml(const std::string& path) {
  NvmlInfo info;
  const telemetry::Nvml nvml(path);
  const telemetry::NvmlApi& api = nvml.api();
  info.library = nvml.library();
  if (!nvml.available()) {
    info.detail = nvml.why_not();
    return info;
  }
  char version[96] = "";
  if (const int status = api.driver_version(version, sizeof version); status != telemetry::kNvmlSuccess) {
    info.detail = "nvmlSystemGetDriverVersion: " + nvml.explain(status);
    return info;
  }
  unsigned devices = 0;
  if (const int status = api.device_count(&devices); status != telemetry::kNvmlSuccess) {
    info.detail = "nvmlDeviceGetCount_v2: " + nvml.explain(status);
    return info;
  }
  info.available = true;
  info.detail = version;
  for (unsigned i = 0; i < devices; ++i) {
    telemetry::NvmlApi::Device device = nullptr;
    if (const int status = api.device_by_index(i, &device); status != telemetry::kNvmlSuccess) {
      info.mig_modes.push_back(nvml.explain(status));  // for example: no permission for this one
      continue;
    }
    unsigned current = 0, pending = 0;
    const int status =
        api.mig_mode != nullptr ? api.mig_mode(device, &current, &pending) : telemetry::kNvmlNotSupported;
    info.mig_modes.push_back(status == telemetry::kNvmlSuccess        ? (current != 0 ? "enabled" : "disabled")
                             : status == telemetry::kNvmlNotSupported ? "unsupported"
                                                                      : nvml.explain(status));
    unsigned long long millijoules = 0;
    if (i == 0)
      info.energy_counter =
          api.total_energy != nullptr && api.total_energy(device, &millijoules) == telemetry::kNvmlSuccess;
  }
  return info;
}

/// The same on a thread of its own, since a driver may hang, and this function is called by JavaScript. Waits for the
/// answer at most two seconds, and not at all while an earlier one is still outstanding.
NvmlInfo probe_nvml_in_time() {
  struct Answer {
    std::mutex mutex;
    std::condition_variable came;
    bool there = false;
    NvmlInfo info;
  };
  static std::atomic<int> outstanding{0};
  const std::string path = telemetry::Nvml::default_path();
  NvmlInfo late;
  late.library = path;
  late.detail = "NVML did not answer within 2 s";
  if (outstanding > 0) return late;
  const auto answer = std::make_shared<Answer>();
  ++outstanding;
  try {
    start_background_thread("nexus-nvml", [answer, path] {
      NvmlInfo info;
      try {
        info = probe_nvml(path);
      } catch (const std::exception& e) {
        info.detail = e.what();
      }
      std::lock_guard lock(answer->mutex);
      answer->info = std::move(info);
      answer->there = true;
      --outstanding;
      answer->came.notify_one();
    });
  } catch (...) {
    --outstanding;
    throw;
  }
  std::unique_lock lock(answer->mutex);
  if (!answer->came.wait_for(lock, std::chrono::seconds(2), [&] { return answer->there; })) return late;
  return answer->info;
}

/// Runs one part; its failure takes away that part's facts and no others, and goes into `detail` where the part has
/// one.
template <class Part>
void probe(std::string* detail, const Part& part) {
  try {
    part();
  } catch (const std::exception& e) {
    if (detail != nullptr) *detail = e.what();
  }
}

}  // namespace

SystemInfo system_info() {
  SystemInfo info;
  probe(nullptr, [&] { probe_host(info); });
  probe(nullptr, [&] { info.cpu_isas = cpu::cpu_isas(); });
  // A wrong NEXUS_CPU_ISA or NEXUS_NUM_THREADS leaves "" or 0 here; the first operation that needs it throws what is
  // wrong.
  probe(nullptr, [&] { info.cpu_isa = cpu::cpu_isa(); });
  probe(nullptr, [&] { info.cpu_threads = cpu_threads(); });
  probe(&info.cuda_status, [&] { telemetry::probe_cuda(info); });
  probe(&info.nvml.detail, [&] { info.nvml = probe_nvml_in_time(); });
  probe(&info.rapl_detail, [&] {
    telemetry::Rapl rapl = telemetry::find_rapl();
    for (const auto& domain : rapl.domains) info.rapl_domains.push_back(domain.name);
    info.rapl_detail = rapl.detail;
  });
  return info;
}

}  // namespace nexus
