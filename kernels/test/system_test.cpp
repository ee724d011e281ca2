// system_info(): it describes any machine, and says for what is missing why.
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "harness.h"

using namespace nexus;
using namespace nexus::test;
namespace fs = std::filesystem;

namespace {

/// Sets an environment variable for one test.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    if (const char* v = std::getenv(name)) before_ = v, had_ = true;
    setenv(name, value.c_str(), 1);
  }
  ~Variable() { had_ ? setenv(name_, before_.c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::string before_;
  bool had_ = false;
};

/// An empty folder that goes with the test.
class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "nexus-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) NEXUS_FAIL("mkdtemp");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

void write(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path) << text;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// A management library with two devices: one with MIG on and an energy counter, one that knows neither.
constexpr const char* kFakeNvml = R"(
#include <string.h>
int nvmlInit_v2(void) { return INIT_STATUS; }
int nvmlShutdown(void) { return 0; }
const char* nvmlErrorString(int status) { return status == 9 ? "Driver Not Loaded" : "Something Else"; }
int nvmlSystemGetDriverVersion(char* text, unsigned n) { strncpy(text, "580.12.34", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned* n) { *n = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void** device) { *device = (void*)(unsigned long)(i + 1); return i == 2 ? 4 : 0; }
int nvmlDeviceGetMigMode(void* device, unsigned* current, unsigned* pending) {
  *current = *pending = 1;
  return device == (void*)1 ? 0 : 3;
}
int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* mj) { *mj = 5; return device == (void*)1 ? 0 : 3; }
)";

/// Builds it; skips the test on a machine without a C compiler.
std::string build_fake_nvml(const Folder& folder, int init_status) {
  if (std::system("cc --version > /dev/null 2>&1") != 0)
    throw Skipped("needs a C compiler (cc) to build a stand-in library");
  write(folder / "nvml.c", kFakeNvml);
  const std::string library = folder / "libfake-nvml.so";
  const std::string command = "cc -shared -fPIC -DINIT_STATUS=" + std::to_string(init_status) + " '" +
                              (folder / "nvml.c") + "' -o '" + library + "'";
  if (std::system(command.c_str()) != 0) NEXUS_FAIL("could not build the stand-in library");
  return library;
}

}  // namespace

TEST("the processor and its memory are described") {
  const SystemInfo info = system_info();
  CHECK(!info.cpu_name.empty());
  CHECK_LE(1, info.cpu_cores);
  CHECK_LE(info.cpu_cores, static_cast<int>(sysconf(_SC_NPROCESSORS_CONF)));
  CHECK_EQ(info.cpu_threads, cpu_threads());
  CHECK_LE(int64_t{64} << 20, info.memory_bytes);
  CHECK_LE(info.memory_bytes, static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE));
  bool in_list = false;
  for (const auto& isa : info.cpu_isas) in_list = in_list || isa == info.cpu_isa;
  CHECK(in_list);
}

TEST("CUDA is described, or the reason is one sentence") {
  const SystemInfo info = system_info();
#ifdef NEXUS_HAS_CUDA
  CHECK(info.cuda_compiled);
  CHECK_LE(13000, info.cuda_runtime_version);
#else
  CHECK(!info.cuda_compiled);
  CHECK_EQ(info.cuda_runtime_version, 0);
#endif
  CHECK_EQ(info.cuda_status == "ok", !info.devices.empty());
  if (info.devices.empty()) {
    CHECK_LE(10u, info.cuda_status.size());
    CHECK_EQ(info.cuda_error.empty(), !info.cuda_compiled);
    if (info.cuda_driver_version == 0) CHECK(!info.green_contexts && !info.tensor_maps);
    // The same sentence is what a caller who asks for a device gets.
    const auto message = expect_error(ErrorCode::kUnsupported, [] { Stream::create(DeviceId{0}); });
    CHECK(contains(message, "cuda:0") && contains(message, info.cuda_status));
    return;
  }
  CHECK_LE(info.cuda_runtime_version / 1000, info.cuda_driver_version / 1000);
  for (size_t i = 0; i < info.devices.size(); ++i) {
    const auto& device = info.devices[i];
    CHECK_EQ(device.index, static_cast<int>(i));
    CHECK(!device.name.empty());
    CHECK_EQ(device.uuid.size(), 40u);
    CHECK_EQ(device.uuid.substr(0, 4), "GPU-");
    CHECK_LE(8, device.compute_major);
    CHECK_LE(1, device.multiprocessors);
    CHECK_LE(int64_t{1} << 30, device.memory_bytes);
    CHECK_LE(1 << 20, device.l2_bytes);
    CHECK_LE(48 << 10, device.shared_memory_per_block_optin);
  }
  if (info.cuda_driver_version >= 12040) CHECK(info.green_contexts && info.tensor_maps);
}

TEST("NVML that cannot be opened is named with its reason") {
  const Variable path("NEXUS_NVML_PATH", "/nowhere/libnvml.so");
  const NvmlInfo nvml = system_info().nvml;
  CHECK(!nvml.available);
  CHECK_EQ(nvml.library, "/nowhere/libnvml.so");
  CHECK(contains(nvml.detail, "/nowhere/libnvml.so"));
  CHECK(nvml.mig_modes.empty() && !nvml.energy_counter);
}

TEST("a library that is not NVML is told by the function that it lacks") {
  const Variable path("NEXUS_NVML_PATH", "libc.so.6");
  const NvmlInfo nvml = system_info().nvml;
  CHECK(!nvml.available);
  CHECK_EQ(nvml.detail, "libc.so.6 has no function nvmlInit_v2");
}

TEST("NVML that refuses to start says so in its own words") {
  const Folder folder;
  const Variable path("NEXUS_NVML_PATH", build_fake_nvml(folder, 9));
  const NvmlInfo nvml = system_info().nvml;
  CHECK(!nvml.available);
  CHECK_EQ(nvml.detail, "nvmlInit_v2: Driver Not Loaded (9)");
}

TEST("NVML gives the driver's version, each device's MIG mode, and whether energy is counted") {
  const Folder folder;
  const Variable path("NEXUS_NVML_PATH", build_fake_nvml(folder, 0));
  for (int i = 0; i < 3; ++i) {
    const NvmlInfo nvml = system_info().nvml;
    CHECK(nvml.available);
    CHECK_EQ(nvml.detail, "580.12.34");
    CHECK_EQ(nvml.library, folder / "libfake-nvml.so");
    CHECK_EQ(nvml.mig_modes.size(), 3u);
    CHECK_EQ(nvml.mig_modes[0], "enabled");
    CHECK_EQ(nvml.mig_modes[1], "unsupported");
    CHECK_EQ(nvml.mig_modes[2], "Something Else (4)");
    CHECK(nvml.energy_counter);
  }
}

TEST("NVML answers beside a real driver") {
  require_cuda();
  const NvmlInfo nvml = system_info().nvml;
  if (!nvml.available) NEXUS_FAIL(nvml.library + ": " + nvml.detail);
  CHECK(!nvml.mig_modes.empty());
}

TEST("RAPL's domains are found by name, parts under their package") {
  const Folder root;
  write(root / "intel-rapl/enabled", "1\n");
  write(root / "intel-rapl:0/name", "package-0\n");
  write(root / "intel-rapl:0/energy_uj", "123456789\n");
  write(root / "intel-rapl:0:0/name", "dram\n");
  write(root / "intel-rapl:0:0/energy_uj", "42\n");
  write(root / "intel-rapl-mmio:0/name", "package-0\n");  // the same package again
  write(root / "intel-rapl-mmio:0/energy_uj", "123456789\n");
  const Variable path("NEXUS_RAPL_PATH", root.path());
  const SystemInfo info = system_info();
  CHECK_EQ(info.rapl_domains.size(), 2u);
  CHECK_EQ(info.rapl_domains[0], "package-0");
  CHECK_EQ(info.rapl_domains[1], "package-0/dram");
  CHECK_EQ(info.rapl_detail, "");
}

TEST("a RAPL counter that cannot be read is left out, and the reason names it") {
  const Folder root;
  write(root / "intel-rapl:0/name", "package-0\n");
  write(root / "intel-rapl:0/energy_uj", "not available\n");
  write(root / "intel-rapl:1/name", "package-1\n");
  write(root / "intel-rapl:1/energy_uj", "7\n");
  fs::permissions(root / "intel-rapl:1/energy_uj", fs::perms::none);
  const Variable path("NEXUS_RAPL_PATH", root.path());
  const SystemInfo info = system_info();
  CHECK(contains(info.rapl_detail, "intel-rapl:0/energy_uj: not a number"));
  if (geteuid() == 0) {  // root reads it all the same
    CHECK_EQ(info.rapl_domains.size(), 1u);
    CHECK_EQ(info.rapl_domains[0], "package-1");
  } else {
    CHECK(info.rapl_domains.empty());
    CHECK(contains(info.rapl_detail, "intel-rapl:1/energy_uj: Permission denied"));
  }
}

TEST("a machine without powercap says so") {
  const Folder root;
  {
    const Variable path("NEXUS_RAPL_PATH", root / "missing");
    const SystemInfo info = system_info();
    CHECK(info.rapl_domains.empty());
    CHECK(contains(info.rapl_detail, root / "missing") && contains(info.rapl_detail, "No such file"));
  }
  const Variable path("NEXUS_RAPL_PATH", root.path());
  CHECK(contains(system_info().rapl_detail, "no intel-rapl zone"));
}
