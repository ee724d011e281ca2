// A small NVML of our own for tests: devices, MIG instances and their troubles as a control file says. The file is
// NEXUS_FAKE_NVML_CONTROL, or <this library>.control, and is read again at every call, so that a test changes the
// machine while it is being metered. One order a line; a later line overrides an earlier one; '*' is every device or
// function; I counts devices from 0:
//
//   devices N             uuid I TEXT          name I TEXT          mig I N (N > 0: MIG is on, with N instances)
//   power I MILLIWATT     average I MILLIWATT  memory_power I MILLIWATT
//   utilisation I GPU% MEMORY%                 gpm I SM% OCCUPANCY% TENSOR% DRAM%          throttle I BITS
//   tick_ms N             the energy counter moves so often (100)
//   reset I N             a new N sets the energy counter back to 0
//   status FUNCTION I CODE                     what a function answers for a device, instead of working
//   field_status ID SCOPE CODE                 the same for one field value
//   hang FUNCTION         does not return for as long as the line is there
//
// The energy counter integrates `power` over real time. fake_nvml_users() and fake_nvml_samples() count what was opened
// and not closed again. FAKE_NVML_MINIMAL leaves out every function that an old driver lacks.
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kMostDevices = 4, kMostInstances = 7;
enum { kSuccess = 0, kInvalidArgument = 2, kNotSupported = 3, kNotFound = 6 };

struct Device {
  int index = 0, instance = -1;  // instance >= 0: a MIG device
};
struct Meter {
  double energy = 0, shown = 0, power = 0;  // mJ, mJ, mW
  double since = -1, shown_since = -1;      // s
  long reset = 0;
};
struct Sample {
  int device = 0;
};

std::mutex mutex;
std::atomic<int> users{0}, samples{0};
Device gpus[kMostDevices], instances[kMostDevices][kMostInstances];
Meter meters[kMostDevices];

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Asked for once: a program may change its environment while we run.
const std::string& control_path() {
  static const std::string path = [] {
    if (const char* given = std::getenv("NEXUS_FAKE_NVML_CONTROL")) return std::string(given);
    Dl_info self{};
    dladdr(reinterpret_cast<const void*>(&control_path), &self);
    return std::string(self.dli_fname != nullptr ? self.dli_fname : "") + ".control";
  }();
  return path;
}

/// The words after `key` (and a device, where the order has one) in the last line that fits.
class Control {
 public:
  Control() {
    std::ifstream file(control_path());
    for (std::string line; std::getline(file, line);) {
      std::istringstream words(line);
      std::vector<std::string> order;
      for (std::string word; words >> word;) order.push_back(word);
      if (!order.empty()) orders_.push_back(std::move(order));
    }
  }
  std::vector<std::string> find(const std::vector<std::string>& key) const {
    std::vector<std::string> found;
    for (const auto& order : orders_) {
      bool fits = order.size() >= key.size() && order[0] == key[0];
      for (size_t i = 1; fits && i < key.size(); ++i) fits = order[i] == key[i] || order[i] == "*";
      if (fits) found.assign(order.begin() + static_cast<long>(key.size()), order.end());
    }
    return found;
  }
  bool has(const std::vector<std::string>& key) const {
    for (const auto& order : orders_)
      if (order == key) return true;
    return false;
  }
  double number(const std::vector<std::string>& key, double otherwise, size_t word = 0) const {
    const auto words = find(key);
    return words.size() > word ? std::atof(words[word].c_str()) : otherwise;
  }

 private:
  std::vector<std::vector<std::string>> orders_;
};

/// Hangs if it is told to; then what the function is to answer, or kSuccess.
int enter(const char* function, const Device* device = nullptr) {
  while (Control().has({"hang", function})) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  const Control control;
  return static_cast<int>(
      control.number({"status", function, std::to_string(device != nullptr ? device->index : 0)}, kSuccess));
}
#define ENTER(device)                                                         \
  if (const int answer = enter(__func__, device); answer != 0) return answer; \
  const Control control;                                                      \
  const std::lock_guard lock(mutex)

/// The energy counter's place in time; called before each reading.
Meter& advance(const Control& control, int index) {
  Meter& meter = meters[index];
  const double t = now(), tick = control.number({"tick_ms"}, 100) * 1e-3;
  if (meter.since >= 0) meter.energy += meter.power * (t - meter.since);
  meter.since = t;
  meter.power = control.number({"power", std::to_string(index)}, 100'000);
  if (const long reset = static_cast<long>(control.number({"reset", std::to_string(index)}, 0)); reset != meter.reset) {
    meter.reset = reset;
    meter.energy = meter.shown = 0;
  }
  if (meter.shown_since < 0 || std::floor(t / tick) != std::floor(meter.shown_since / tick)) {
    meter.shown = meter.energy;
    meter.shown_since = t;
  }
  return meter;
}

int put(const std::string& text, char* out, unsigned size) {
  if (text.size() + 1 > size) return 7;  // insufficient size
  std::memcpy(out, text.c_str(), text.size() + 1);
  return kSuccess;
}

std::string default_uuid(const Device& device) {
  char text[64];
  std::snprintf(text, sizeof text, "%s-0000000%d-0000-4000-8000-00000000000%d", device.instance < 0 ? "GPU" : "MIG",
                device.index, device.instance + 1);
  return text;
}

}  // namespace

EXPORT int fake_nvml_users() { return users; }
EXPORT int fake_nvml_samples() { return samples; }

EXPORT int nvmlInit_v2() {
  if (const int answer = enter(__func__); answer != 0) return answer;
  for (int i = 0; i < kMostDevices; ++i) {
    gpus[i] = {i, -1};
    for (int k = 0; k < kMostInstances; ++k) instances[i][k] = {i, k};
  }
  ++users;
  return kSuccess;
}
EXPORT int nvmlShutdown() {
  --users;
  return kSuccess;
}
EXPORT const char* nvmlErrorString(int status) {
  switch (status) {
    case 3:
      return "Not Supported";
    case 4:
      return "Insufficient Permissions";
    case 6:
      return "Not Found";
    case 9:
      return "Driver Not Loaded";
    case 13:
      return "Function Not Found";
    case 15:
      return "GPU is lost";
    default:
      return "Unknown Error";
  }
}
EXPORT int nvmlSystemGetDriverVersion(char* text, unsigned size) { return put("999.10.1", text, size); }
EXPORT int nvmlDeviceGetCount_v2(unsigned* count) {
  ENTER(nullptr);
  *count = static_cast<unsigned>(control.number({"devices"}, 1));
  return kSuccess;
}
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device** device) {
  if (index >= kMostDevices) return kInvalidArgument;
  ENTER(&gpus[index]);
  if (index >= static_cast<unsigned>(control.number({"devices"}, 1))) return kInvalidArgument;
  *device = &gpus[index];
  return kSuccess;
}
EXPORT int nvmlDeviceGetUUID(Device* device, char* text, unsigned size) {
  ENTER(device);
  const auto given = control.find({"uuid", std::to_string(device->index)});
  return put(device->instance < 0 && !given.empty() ? given[0] : default_uuid(*device), text, size);
}
EXPORT int nvmlDeviceGetTotalEnergyConsumption(Device* device, unsigned long long* millijoules) {
  ENTER(device);
  if (device->instance >= 0) return kNotSupported;
  *millijoules = static_cast<unsigned long long>(advance(control, device->index).shown);
  return kSuccess;
}

#ifndef FAKE_NVML_MINIMAL
EXPORT int nvmlDeviceGetName(Device* device, char* text, unsigned size) {
  ENTER(device);
  const auto given = control.find({"name", std::to_string(device->index)});
  return put(given.empty() ? "Fake GPU" : given[0], text, size);
}
struct Memory {
  unsigned long long total, free, used;
};
EXPORT int nvmlDeviceGetMemoryInfo(Device* device, Memory* memory) {
  ENTER(device);
  *memory = {80ull << 30, 79ull << 30, 1ull << 30};
  return kSuccess;
}
EXPORT int nvmlDeviceGetPowerUsage(Device* device, unsigned* milliwatts) {
  ENTER(device);
  *milliwatts = static_cast<unsigned>(
      control.number({"average", std::to_string(device->index)}, advance(control, device->index).power));
  return kSuccess;
}
struct FieldValue {
  unsigned field, scope;
  long long timestamp, latency;
  unsigned type, status;
  unsigned long long value;
};
EXPORT int nvmlDeviceGetFieldValues(Device* device, int count, FieldValue* fields) {
  ENTER(device);
  const std::string index = std::to_string(device->index);
  const double power = advance(control, device->index).power;
  for (int i = 0; i < count; ++i) {
    FieldValue& f = fields[i];
    f.type = 1;
    f.status = static_cast<unsigned>(
        control.number({"field_status", std::to_string(f.field), std::to_string(f.scope)}, kSuccess));
    f.value = static_cast<unsigned>(f.scope == 2     ? control.number({"memory_power", index}, power / 4)
                                    : f.field == 186 ? power
                                                     : control.number({"average", index}, power));
    if ((f.field != 185 && f.field != 186) || (f.scope != 0 && f.scope != 2)) f.status = kNotSupported;
  }
  return kSuccess;
}
struct Utilization {
  unsigned gpu, memory;
};
EXPORT int nvmlDeviceGetUtilizationRates(Device* device, Utilization* rates) {
  ENTER(device);
  if (device->instance >= 0) return kNotSupported;
  const std::vector<std::string> key{"utilisation", std::to_string(device->index)};
  *rates = {static_cast<unsigned>(control.number(key, 0, 0)), static_cast<unsigned>(control.number(key, 0, 1))};
  return kSuccess;
}
EXPORT int nvmlDeviceGetCurrentClocksEventReasons(Device* device, unsigned long long* bits) {
  ENTER(device);
  *bits = static_cast<unsigned long long>(control.number({"throttle", std::to_string(device->index)}, 0));
  return kSuccess;
}

EXPORT int nvmlDeviceGetMigMode(Device* device, unsigned* current, unsigned* pending) {
  ENTER(device);
  const int count = static_cast<int>(control.number({"mig", std::to_string(device->index)}, -1));
  if (count < 0) return kNotSupported;
  *current = *pending = count > 0 ? 1 : 0;
  return kSuccess;
}
EXPORT int nvmlDeviceGetMaxMigDeviceCount(Device* device, unsigned* count) {
  ENTER(device);
  *count = control.number({"mig", std::to_string(device->index)}, 0) > 0 ? kMostInstances : 0;
  return kSuccess;
}
EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(Device* device, unsigned k, Device** instance) {
  ENTER(device);
  if (k >= control.number({"mig", std::to_string(device->index)}, 0)) return kNotFound;
  *instance = &instances[device->index][k];
  return kSuccess;
}
EXPORT int nvmlDeviceGetGpuInstanceId(Device* device, unsigned* id) {
  ENTER(device);
  if (device->instance < 0) return kNotSupported;
  *id = static_cast<unsigned>(device->instance + 3);
  return kSuccess;
}
EXPORT int nvmlDeviceGetComputeInstanceId(Device* device, unsigned* id) {
  ENTER(device);
  if (device->instance < 0) return kNotSupported;
  *id = 0;
  return kSuccess;
}
struct Attributes {
  unsigned multiprocessors, engines[5], slices[2];
  unsigned long long memory_mib;
};
EXPORT int nvmlDeviceGetAttributes_v2(Device* device, Attributes* attributes) {
  ENTER(device);
  if (device->instance < 0) return kNotSupported;
  *attributes = {};
  attributes->multiprocessors = static_cast<unsigned>(16 * (device->instance + 1));
  attributes->memory_mib = 10240ull * static_cast<unsigned>(device->instance + 1);
  return kSuccess;
}

struct GpmSupport {
  unsigned version, supported;
};
EXPORT int nvmlGpmQueryDeviceSupport(Device* device, GpmSupport* support) {
  ENTER(device);
  if (support->version != 1) return kInvalidArgument;
  support->supported = control.find({"gpm", std::to_string(device->index)}).empty() ? 0 : 1;
  return kSuccess;
}
EXPORT int nvmlGpmSampleAlloc(Sample** sample) {
  ENTER(nullptr);
  *sample = new Sample;
  ++samples;
  return kSuccess;
}
EXPORT int nvmlGpmSampleFree(Sample* sample) {
  delete sample;
  --samples;
  return kSuccess;
}
EXPORT int nvmlGpmSampleGet(Device* device, Sample* sample) {
  ENTER(device);
  if (device->instance >= 0 || control.number({"mig", std::to_string(device->index)}, 0) > 0) return kNotSupported;
  sample->device = device->index;
  return kSuccess;
}
EXPORT int nvmlGpmMigSampleGet(Device* device, unsigned gpu_instance, Sample* sample) {
  ENTER(device);
  if (device->instance >= 0 || gpu_instance < 3) return kInvalidArgument;
  sample->device = device->index;
  return kSuccess;
}
struct GpmMetric {
  unsigned id, status;
  double value;
  const char* texts[3];
};
struct GpmMetrics {
  unsigned version, count;
  Sample *sample1, *sample2;
  GpmMetric metrics[1];
};
EXPORT int nvmlGpmMetricsGet(GpmMetrics* query) {
  ENTER(nullptr);
  if (query->version != 1 || query->sample1 == query->sample2) return kInvalidArgument;
  for (unsigned i = 0; i < query->count; ++i) {
    GpmMetric* metric = &query->metrics[0] + i;
    const size_t word = metric->id == 2 ? 0 : metric->id == 3 ? 1 : metric->id == 5 ? 2 : 3;
    metric->status = kSuccess;
    metric->value = control.number({"gpm", std::to_string(query->sample2->device)}, 0, word);
  }
  return kSuccess;
}
#endif
