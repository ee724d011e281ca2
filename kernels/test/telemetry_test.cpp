// The sampler: what it reads, what it says when it cannot, and that nobody waits for it. The stand-in for NVML lies
// beside this program (test-support/fake_nvml.cpp lists what its control file understands).
#include "nexus/telemetry.h"

#include <dlfcn.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <thread>

#include "harness.h"
#include "telemetry/energy_source.h"

using namespace nexus;
using namespace nexus::test;
namespace fs = std::filesystem;

namespace {

void pause(double ms) { std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(ms)); }
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// A folder and environment variables that go with the test.
class Place {
 public:
  Place() {
    std::string pattern = (fs::temp_directory_path() / "nexus-telemetry-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) NEXUS_FAIL("mkdtemp");
    folder_ = pattern;
  }
  ~Place() {
    for (const auto& name : set_) unsetenv(name.c_str());
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  fs::path operator/(const std::string& name) const { return folder_ / name; }
  void set(const char* name, const std::string& value) {
    setenv(name, value.c_str(), 1);
    set_.push_back(name);
  }
  void write(const std::string& name, const std::string& text) {
    fs::create_directories((folder_ / name).parent_path());
    // Renamed into place: a reader sees the old text or the new one.
    std::ofstream(folder_ / "new") << text;
    fs::rename(folder_ / "new", folder_ / name);
  }

 private:
  fs::path folder_;
  std::vector<std::string> set_;
};

/// A copy of the stand-in with state and control file of its own.
class FakeNvml : public Place {
 public:
  explicit FakeNvml(const std::string& control, const char* library = "libfake_nvml.so") {
    const fs::path built = fs::read_symlink("/proc/self/exe").parent_path() / library;
    if (!fs::exists(built)) throw Skipped("no " + std::string(library) + " beside this program");
    path_ = (*this / "libnvml.so").string();
    fs::copy_file(built, path_);
    say(control);
    set("NEXUS_NVML_PATH", path_);
    handle_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ == nullptr) NEXUS_FAIL(dlerror());
  }
  ~FakeNvml() {
    say("");  // lets a hanging call go
    for (int i = 0; i < 2000 && users() > 0; ++i) pause(1);
    dlclose(handle_);
  }
  void say(const std::string& control) { write("libnvml.so.control", control); }
  int users() const { return count("fake_nvml_users"); }
  int samples() const { return count("fake_nvml_samples"); }

 private:
  int count(const char* name) const { return reinterpret_cast<int (*)()>(dlsym(handle_, name))(); }
  std::string path_;
  void* handle_ = nullptr;
};

const std::string kGpu0 = "GPU-00000000-0000-4000-8000-000000000000";
const std::string kGpu1 = "GPU-00000001-0000-4000-8000-000000000000";

std::shared_ptr<EnergyMonitor> monitor(const std::string& device, double interval_ms = 10, int history = 6000) {
  return EnergyMonitor::start({device, interval_ms, history});
}
/// The first sample at or after a request made now.
EnergySample fresh(EnergyMonitor& monitor) {
  const double asked = monitor.request();
  for (int i = 0; i < 5000; ++i) {
    const auto view = monitor.read(asked - 1e-6);
    if (!view.samples.empty()) return view.samples.front();
    pause(1);
  }
  NEXUS_FAIL("no sample came");
}
int sampler_threads() {
  int count = 0;
  for (const auto& task : fs::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm") >> std::ws, name);
    count += name == "nexus-sampler";
  }
  return count;
}
void until(const std::function<bool()>& condition, const char* what) {
  for (int i = 0; i < 5000; ++i) {
    if (condition()) return;
    pause(1);
  }
  NEXUS_FAIL(std::string("never came true: ") + what);
}
#define UNTIL(condition) until([&] { return condition; }, #condition)

}  // namespace

TEST("telemetry: a running total undoes wraps, and counts resets where there is no range") {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    const double range = static_cast<double>(random.integer(1000, 100000));
    telemetry::RunningTotal wrapping(range), resetting;
    double truth = 0, raw = static_cast<double>(random.integer(0, 999)), plain = 0, plain_total = 0;
    wrapping.add(raw);
    resetting.add(plain);
    int64_t resets = 0;
    for (int step = 0; step < 100; ++step) {
      const double more = static_cast<double>(random.integer(0, static_cast<int64_t>(range) - 1));
      truth += more;
      raw += more;
      if (raw > range) raw -= range;  // a counter shows 1 … range
      wrapping.add(raw);
      if (random.integer(0, 9) == 0 && plain > 0) {
        plain = 0, ++resets;
      } else {
        plain += more, plain_total += more;
      }
      resetting.add(plain);
    }
    CHECK_EQ(wrapping.total, truth);
    CHECK_EQ(wrapping.resets, 0);
    CHECK_EQ(resetting.total, plain_total);
    CHECK_EQ(resetting.resets, resets);
  }
}

TEST("telemetry: a GPU's counter, powers, utilisation and activity") {
  FakeNvml nvml(
      "devices 2\ntick_ms 10\npower 0 50000\npower 1 400000\naverage 1 380000\nmemory_power 1 90000\n"
      "utilisation 1 97 40\ngpm 1 80 35 60 20\nthrottle 1 4\n");
  const auto m = monitor(kGpu1);
  const EnergySample a = fresh(*m);
  pause(400);
  EnergySample b = fresh(*m);
  while (b[kEnergyTicks] - a[kEnergyTicks] < 20) b = fresh(*m);
  const double watts = (b[kEnergyJoules] - a[kEnergyJoules]) / (b[kEnergyTime] - a[kEnergyTime]) * 1e3;
  CHECK_LE(std::abs(watts - 400), 60);  // a tick at each end, and a busy machine
  CHECK_EQ(b[kEnergyResets], 0.0);
  CHECK_EQ(b[kPowerWatts], 400.0);
  CHECK_EQ(b[kPowerAverageWatts], 380.0);
  CHECK_EQ(b[kPowerMemoryWatts], 90.0);
  CHECK_LE(std::abs(b[kUtilisationGpu] - 0.97) + std::abs(b[kUtilisationMemory] - 0.40), 1e-12);
  CHECK_LE(std::abs(b[kActivitySm] - 0.80) + std::abs(b[kActivityOccupancy] - 0.35), 1e-12);
  CHECK_LE(std::abs(b[kActivityTensor] - 0.60) + std::abs(b[kActivityDram] - 0.20), 1e-12);
  CHECK_EQ(b[kThrottleBits], 4.0);
  const auto reasons = m->read(b[kEnergyTime]).reasons;
  for (int c = 0; c < kEnergyColumns; ++c) CHECK_EQ(reasons[c].empty(), !std::isnan(b[c]));
  CHECK(contains(reasons[kEnergyMemoryJoules], "no energy of the memory"));
}

TEST("telemetry: the thread keeps to the interval, and monitors of one device to their own") {
  FakeNvml nvml("devices 2\ngpm 0 1 1 1 1\n");
  const auto quick = monitor(kGpu0, 10), slow = monitor(kGpu0, 100), other = monitor(kGpu1, 20);
  pause(1050);
  const auto at_quick = quick->read(0).samples, at_slow = slow->read(0).samples;
  CHECK_LE(20u, at_quick.size());  // a busy machine may be late, never early
  CHECK_LE(at_quick.size(), 107u);
  CHECK_LE(5u, at_slow.size());
  CHECK_LE(at_slow.size(), 12u);
  CHECK_LE(10u, other->read(0).samples.size());
  for (size_t i = 1; i < at_quick.size(); ++i) CHECK(at_quick[i - 1][kEnergyTime] < at_quick[i][kEnergyTime]);
  // All share one thread and one session with the library.
  CHECK_EQ(sampler_threads(), 1);
  CHECK_EQ(nvml.users(), 1);
}

TEST("telemetry: the ring is bounded; the oldest samples go and are counted") {
  FakeNvml nvml("");
  const auto m = monitor(kGpu0, 1, 8);
  UNTIL(m->read(0).dropped >= 20);
  const auto view = m->read(0);
  CHECK_EQ(view.samples.size(), 8u);
  const double third = view.samples[2][kEnergyTime];
  for (const auto& sample : m->read(third).samples) CHECK(sample[kEnergyTime] > third);
}

TEST("telemetry: each refused call costs its own columns, with the reason") {
  struct Case {
    const char* order;
    EnergyColumn column;
    const char* reason;
  };
  const Case list[] = {
      {"status nvmlDeviceGetTotalEnergyConsumption 0 4", kEnergyJoules,
       "nvmlDeviceGetTotalEnergyConsumption: Insufficient Permissions (4)"},
      {"field_status 186 0 4", kPowerWatts, "nvmlDeviceGetFieldValues(186): Insufficient Permissions (4)"},
      {"field_status 185 2 3", kPowerMemoryWatts, "nvmlDeviceGetFieldValues(185, memory): Not Supported (3)"},
      {"status nvmlDeviceGetUtilizationRates 0 4", kUtilisationGpu,
       "nvmlDeviceGetUtilizationRates: Insufficient Permissions (4)"},
      {"status nvmlGpmSampleGet 0 4", kActivityDram, "nvmlGpmSampleGet: Insufficient Permissions (4)"},
      {"status nvmlGpmQueryDeviceSupport 0 13", kActivitySm, "nvmlGpmQueryDeviceSupport: Function Not Found (13)"},
      {"status nvmlDeviceGetCurrentClocksEventReasons 0 3", kThrottleBits,
       "nvmlDeviceGetCurrentClocksEventReasons: Not Supported (3)"},
  };
  for (const auto& refused : list) {
    FakeNvml nvml(std::string("gpm 0 10 20 30 40\n") + refused.order + "\n");
    const auto m = monitor(kGpu0, 50);
    const double start = fresh(*m)[kEnergyTime];
    UNTIL(fresh(*m)[kEnergyTime] - start > 300);  // GPM needs two samples, 100 ms apart
    for (int i = 0; i < 2; ++i) {                 // the second time from memory
      const EnergySample sample = fresh(*m);
      const auto reasons = m->read(0).reasons;
      CHECK(std::isnan(sample[refused.column]));
      CHECK_EQ(reasons[refused.column], refused.reason);
      int unknown = 0;
      for (int c = 0; c < kEnergyColumns; ++c) unknown += std::isnan(sample[c]);
      const bool gpm = refused.column == kActivityDram || refused.column == kActivitySm;
      CHECK_EQ(unknown, 1 + (gpm ? 4 : refused.column == kUtilisationGpu ? 2 : 1));  // always: memory energy
    }
  }
}

TEST("telemetry: where field values are refused, the average power comes from the older call") {
  FakeNvml nvml("average 0 123000\nstatus nvmlDeviceGetFieldValues 0 3\n");
  const auto m = monitor(kGpu0);
  for (int i = 0; i < 3; ++i) CHECK_EQ(fresh(*m)[kPowerAverageWatts], 123.0);
  CHECK_EQ(m->read(0).reasons[kPowerAverageWatts], "");
  CHECK(std::isnan(fresh(*m)[kPowerWatts]));
}

TEST("telemetry: a library that lacks all optional functions still gives energy") {
  FakeNvml nvml("tick_ms 10\npower 0 200000\n", "libfake_nvml_minimal.so");
  const auto m = monitor(kGpu0);
  const auto a = fresh(*m);
  pause(200);
  const auto b = fresh(*m);
  CHECK(b[kEnergyJoules] - a[kEnergyJoules] > 20);
  const auto reasons = m->read(0).reasons;
  for (const auto column : {kPowerWatts, kPowerAverageWatts, kUtilisationGpu, kActivityTensor, kThrottleBits})
    CHECK(contains(reasons[column], "(13)"));
}

TEST("telemetry: a counter that goes back is a reset, and what it hid is left out") {
  FakeNvml nvml("tick_ms 5\npower 0 1000000\n");
  const auto m = monitor(kGpu0);
  pause(100);
  const auto a = fresh(*m);
  nvml.say("tick_ms 5\npower 0 1000000\nreset 0 1\n");
  pause(100);
  const auto b = fresh(*m);
  CHECK_EQ(b[kEnergyResets] - a[kEnergyResets], 1.0);
  CHECK(b[kEnergyJoules] >= a[kEnergyJoules]);
  CHECK_LE(b[kEnergyJoules] - a[kEnergyJoules], 1.05 * (b[kEnergyTime] - a[kEnergyTime]) + 50);
}

TEST("telemetry: a device that vanishes is unknown with the reason, and comes back") {
  const std::string alive = "devices 2\npower 0 100000\n";
  FakeNvml nvml(alive);
  const auto m = monitor(kGpu0), beside = monitor(kGpu1);
  CHECK(!std::isnan(fresh(*m)[kEnergyJoules]));
  nvml.say(alive + "status * 0 15\n");
  const auto gone = fresh(*m);
  const auto reasons = m->read(0).reasons;
  for (int c = kEnergyJoules; c < kEnergyColumns; ++c) {
    if (c == kEnergyResets || c == kEnergyTicks) continue;
    CHECK(std::isnan(gone[c]));
    CHECK(contains(reasons[c], "GPU is lost (15)") || c == kEnergyMemoryJoules);
  }
  CHECK(!std::isnan(fresh(*beside)[kEnergyJoules]));
  nvml.say(alive);
  UNTIL(!std::isnan(fresh(*m)[kEnergyJoules]));
}

TEST("telemetry: what is not there is a reason and no error") {
  {
    FakeNvml nvml("devices 2\nstatus nvmlDeviceGetUUID 1 4\n");
    const auto m = monitor("GPU-12345678-0000-4000-8000-000000000000");
    const auto sample = fresh(*m);
    CHECK(std::isnan(sample[kEnergyJoules]));
    const auto reason = m->read(0).reasons[kEnergyJoules];
    CHECK(contains(reason, "no device with UUID GPU-12345678") && contains(reason, "Insufficient Permissions (4)"));
  }
  Place place;
  place.set("NEXUS_NVML_PATH", "/nowhere/libnvml.so");
  const auto m = monitor(kGpu0);
  fresh(*m);
  CHECK(contains(m->read(0).reasons[kPowerWatts], "/nowhere/libnvml.so"));
}

TEST("telemetry: a MIG instance is found by UUID, has activity of its own, and no energy") {
  FakeNvml nvml("devices 2\nmig 1 3\ngpm 1 50 25 10 5\n");
  // CUDA shows the same digits behind "GPU-".
  for (const char* prefix : {"MIG-", "GPU-"}) {
    const auto m = monitor(prefix + std::string("00000001-0000-4000-8000-000000000002"), 110);
    UNTIL(!std::isnan(fresh(*m)[kActivitySm]));
    const auto sample = fresh(*m);
    const auto reasons = m->read(0).reasons;
    CHECK(std::isnan(sample[kEnergyJoules]) && std::isnan(sample[kPowerWatts]));
    CHECK(contains(reasons[kEnergyJoules], "monitor its GPU, " + kGpu1));
    CHECK_EQ(sample[kActivitySm], 0.5);
  }
}

TEST("telemetry: the inventory lists GPUs and the three MIG instances with SMs and memory") {
  FakeNvml nvml("devices 3\nname 0 First\nmig 0 0\nmig 1 3\nstatus nvmlDeviceGetMemoryInfo 2 4\n");
  const uint64_t request = request_inventory();
  std::optional<EnergyInventory> inventory;
  UNTIL((inventory = inventory_answer(request)).has_value());
  CHECK(!inventory_answer(request).has_value());
  CHECK(inventory->nvml_available);
  CHECK_EQ(inventory->nvml_detail, "999.10.1");
  CHECK_EQ(inventory->gpus.size(), 3u);
  CHECK_EQ(inventory->gpus[0].name, "First");
  CHECK_EQ(inventory->gpus[0].uuid, kGpu0);
  CHECK_EQ(inventory->gpus[0].mig_mode, "disabled");
  CHECK_EQ(inventory->gpus[0].memory_bytes, int64_t{80} << 30);
  CHECK_EQ(inventory->gpus[2].mig_mode, "unsupported");
  CHECK_EQ(inventory->gpus[2].memory_bytes, -1);
  CHECK_EQ(inventory->gpus[2].detail, "nvmlDeviceGetMemoryInfo: Insufficient Permissions (4)");
  const auto& mig = inventory->gpus[1].mig;
  CHECK_EQ(inventory->gpus[1].mig_mode, "enabled");
  CHECK_EQ(mig.size(), 3u);
  for (int k = 0; k < 3; ++k) {
    CHECK_EQ(mig[k].uuid, "MIG-00000001-0000-4000-8000-00000000000" + std::to_string(k + 1));
    CHECK_EQ(mig[k].gpu_instance, k + 3);
    CHECK_EQ(mig[k].compute_instance, 0);
    CHECK_EQ(mig[k].multiprocessors, 16 * (k + 1));
    CHECK_EQ(mig[k].memory_bytes, (int64_t{10240} << 20) * (k + 1));
    CHECK_EQ(mig[k].detail, "");
  }
}

TEST("telemetry: a call that hangs blocks no caller, is named, and the CPU is metered beside it") {
  FakeNvml nvml("");
  nvml.write("rapl/intel-rapl:0/name", "package-0\n");
  nvml.write("rapl/intel-rapl:0/energy_uj", "1000000\n");
  nvml.write("rapl/intel-rapl:0/max_energy_range_uj", "2000000\n");
  nvml.set("NEXUS_RAPL_PATH", (nvml / "rapl").string());
  auto gpu = monitor(kGpu0);
  fresh(*gpu);
  nvml.say("hang nvmlDeviceGetFieldValues\n");
  UNTIL(gpu->read(0).blocked_ms > 50);
  CHECK_EQ(gpu->read(0).blocked_call, "nvmlDeviceGetFieldValues");

  const double start = telemetry_now_ms();
  const size_t before = gpu->read(0).samples.size();
  for (int i = 0; i < 100; ++i) gpu->request();
  const uint64_t question = request_inventory();
  auto cpu = monitor("cpu");
  const auto a = fresh(*cpu);
  nvml.write("rapl/intel-rapl:0/energy_uj", "500000\n");
  const auto b = fresh(*cpu);
  CHECK_EQ(b[kEnergyJoules] - a[kEnergyJoules], 1.5);
  cpu.reset();
  gpu.reset();
  CHECK_LE(telemetry_now_ms() - start, 1500);
  const auto later = monitor(kGpu0);
  CHECK(later->read(0).samples.empty() && before > 0);
  CHECK(!inventory_answer(question).has_value());

  nvml.say("");  // the driver answers again: everything goes on
  UNTIL(inventory_answer(question).has_value());
  CHECK(!std::isnan(fresh(*later)[kPowerWatts]));
  UNTIL(blocked_call().call.empty());
}

TEST("telemetry: system_info does not wait for a driver that hangs") {
  FakeNvml nvml("hang nvmlDeviceGetMigMode\n");
  const double start = telemetry_now_ms();
  const SystemInfo first = system_info(), second = system_info();
  CHECK_LE(telemetry_now_ms() - start, 3500);
  CHECK(!first.nvml.available && !second.nvml.available);
  CHECK(contains(first.nvml.detail, "did not answer"));
  nvml.say("");
  UNTIL(system_info().nvml.available);
}

TEST("telemetry: starting and stopping leaves no thread, no session and no sample behind") {
  FakeNvml nvml("devices 2\ngpm 0 1 1 1 1\ngpm 1 1 1 1 1\n");
  for (int round = 0; round < 100; ++round) {
    const auto a = monitor(kGpu0), b = monitor(kGpu1), c = monitor("cpu");
    if (round % 10 == 0) fresh(*a), fresh(*b), fresh(*c);
  }
  UNTIL(sampler_threads() == 0);
  CHECK_EQ(nvml.users(), 0);
  CHECK_EQ(nvml.samples(), 0);
}

TEST("telemetry: monitors come and go on several threads") {
  FakeNvml nvml("devices 2\ngpm 0 1 1 1 1\n");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int round = 0; round < 30; ++round) {
        const auto m = monitor(t % 2 == 0 ? kGpu0 : t == 1 ? kGpu1 : "cpu", 1, 4);
        m->request();
        pause(round % 3);
        m->read(0);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  UNTIL(nvml.users() == 0 && nvml.samples() == 0);
}

TEST("telemetry: RAPL sums packages and memory, undoes wraps, and gives power") {
  Place place;
  place.set("NEXUS_RAPL_PATH", (place / "rapl").string());
  const auto counter = [&](const std::string& zone, const char* name, int64_t microjoules) {
    if (name != nullptr) {
      place.write("rapl/" + zone + "/name", std::string(name) + "\n");
      place.write("rapl/" + zone + "/max_energy_range_uj", "10000000\n");
    }
    place.write("rapl/" + zone + "/energy_uj", std::to_string(microjoules) + "\n");
  };
  counter("intel-rapl:0", "package-0", 9'000'000);
  counter("intel-rapl:0:0", "core", 1'000'000);  // within the package
  counter("intel-rapl:0:1", "dram", 5'000'000);
  counter("intel-rapl:1", "package-1", 0);
  counter("intel-rapl:2", "psys", 0);  // holds the others again
  const auto m = monitor("cpu", 1000);
  // Power is over stretches of 5 ms and more, of which the monitor's own first sample begins one: the next begins with
  // the first sample that has a power.
  EnergySample a{};
  UNTIL(!std::isnan((a = fresh(*m))[kPowerWatts]));
  CHECK_EQ(a[kPowerWatts], 0.0);
  pause(20);
  counter("intel-rapl:0", nullptr, 1'000'000);  // wrapped: 2 J more
  counter("intel-rapl:0:0", nullptr, 9'000'000);
  counter("intel-rapl:0:1", nullptr, 5'500'000);
  counter("intel-rapl:1", nullptr, 4'000'000);
  counter("intel-rapl:2", nullptr, 9'000'000);
  const auto b = fresh(*m);
  CHECK_LE(std::abs(b[kEnergyJoules] - a[kEnergyJoules] - 6.5), 1e-9);
  CHECK_LE(std::abs(b[kEnergyMemoryJoules] - a[kEnergyMemoryJoules] - 0.5), 1e-9);
  CHECK_EQ(b[kEnergyTicks] - a[kEnergyTicks], 3.0);
  CHECK_LE(std::abs(b[kPowerWatts] / (6.5e3 / (b[kEnergyTime] - a[kEnergyTime])) - 1), 1e-6);
  fs::remove(place / "rapl/intel-rapl:1/energy_uj");
  CHECK(std::isnan(fresh(*m)[kEnergyJoules]));
  CHECK(contains(m->read(0).reasons[kEnergyJoules], "intel-rapl:1/energy_uj can no longer be read"));
}

TEST("telemetry: one package that cannot be read makes the CPU's energy unknown, not smaller") {
  Place place;
  place.set("NEXUS_RAPL_PATH", (place / "rapl").string());
  place.write("rapl/intel-rapl:0/name", "package-0\n");
  place.write("rapl/intel-rapl:0/energy_uj", "5\n");
  place.write("rapl/intel-rapl:1/name", "package-1\n");
  place.write("rapl/intel-rapl:1/energy_uj", "no number\n");
  const auto m = monitor("cpu");
  CHECK(std::isnan(fresh(*m)[kEnergyJoules]));
  CHECK(contains(m->read(0).reasons[kEnergyJoules], "intel-rapl:1/energy_uj: not a number"));
}

TEST("telemetry: wrong options name the argument") {
  CHECK(contains(expect_error(ErrorCode::kInvalidArgument, [] { monitor(""); }), "device"));
  for (double bad : {0.5, -1.0, 3.7e6, std::nan("")})
    CHECK(contains(expect_error(ErrorCode::kInvalidArgument, [&] { monitor("cpu", bad); }), "interval_ms"));
  CHECK(contains(expect_error(ErrorCode::kInvalidArgument, [] { monitor("cpu", 10, 1); }), "history"));
}

TEST("telemetry: a real GPU's counter and power agree over seconds") {
  require_cuda();
  const auto info = system_info();
  const auto m = monitor(info.devices.at(0).uuid, 100);
  fresh(*m);
  pause(300);
  const auto a = fresh(*m);
  pause(3000);
  const auto b = fresh(*m);
  const auto view = m->read(a[kEnergyTime] - 1);
  for (int c = 0; c < kEnergyColumns; ++c)
    if (!view.reasons[c].empty()) std::printf("  column %d: %s\n", c, view.reasons[c].c_str());
  if (std::isnan(b[kEnergyJoules])) throw Skipped(view.reasons[kEnergyJoules]);
  const double watts = (b[kEnergyJoules] - a[kEnergyJoules]) / (b[kEnergyTime] - a[kEnergyTime]) * 1e3;
  std::printf("  %.1f W by the counter (%.0f ticks), %.1f W instant, %zu samples\n", watts,
              b[kEnergyTicks] - a[kEnergyTicks], b[kPowerWatts], view.samples.size());
  CHECK_LE(15, b[kEnergyTicks] - a[kEnergyTicks]);
  CHECK(watts > 20 && watts < 1500);
  double mean = 0;
  int known = 0;
  for (const auto& sample : view.samples)
    if (!std::isnan(sample[kPowerWatts])) mean += sample[kPowerWatts], ++known;
  if (known > 0) CHECK_LE(std::abs(mean / known / watts - 1), 0.25);
}
