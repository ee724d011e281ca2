// Partitions of CUDA: green contexts. The device's SMs are split once per process, by the granularity; a slice is a
// green context over some groups of that split (only groups of one split are disjoint, and only they may be merged).
// What the split leaves over is no multiple of the granularity; it joins the one slice whose size is not one either, so
// that no SM has to be idle.
//
// A context takes 1.2 ms and is kept for the process (see green_context): layouts are built ahead, and cost little once
// their slices have been in use. Calls of this part of the driver are made one at a time in a process; the functions
// are found by name, since older drivers lack them.
#include <cuda.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "exec/backend.h"
#include "exec/cuda_capture.h"
#include "exec/fault.h"

namespace nexus::cuda {
namespace {

struct Driver {
  decltype(&::cuDeviceGet) device_get;
  decltype(&::cuGetErrorName) error_name;
  decltype(&::cuDeviceGetDevResource) device_resource;
  decltype(&::cuDevSmResourceSplitByCount) split;
  decltype(&::cuDevResourceGenerateDesc) describe;
  decltype(&::cuGreenCtxCreate) create;
  decltype(&::cuGreenCtxDestroy) destroy;
  decltype(&::cuGreenCtxGetDevResource) context_resource;
  decltype(&::cuGreenCtxStreamCreate) create_stream;
  bool unequal_groups = false;  // 13.1's cuDevSmResourceSplit: reported only
  std::string missing;          // the first function that this driver lacks, or empty
};

const Driver& driver() {
  static const auto* found = [] {
    auto* d = new Driver{};
    const auto get = [d](auto& function, const char* name, unsigned version) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(driver_function(name, version));
      if (function == nullptr && d->missing.empty()) d->missing = name;
    };
    get(d->device_get, "cuDeviceGet", 2000);
    get(d->error_name, "cuGetErrorName", 6000);
    get(d->device_resource, "cuDeviceGetDevResource", 12040);
    get(d->split, "cuDevSmResourceSplitByCount", 12040);
    get(d->describe, "cuDevResourceGenerateDesc", 12040);
    get(d->create, "cuGreenCtxCreate", 12040);
    get(d->destroy, "cuGreenCtxDestroy", 12040);
    get(d->context_resource, "cuGreenCtxGetDevResource", 12040);
    get(d->create_stream, "cuGreenCtxStreamCreate", 12050);
    d->unequal_groups = driver_function("cuDevSmResourceSplit", 13010) != nullptr;
    return d;
  }();
  return *found;
}

std::string name_of(CUresult status) {
  const char* name = nullptr;
  if (driver().error_name == nullptr || driver().error_name(status, &name) != CUDA_SUCCESS || name == nullptr)
    return "CUresult " + std::to_string(static_cast<int>(status));
  return name;
}

void check_driver(CUresult status, const char* what) {
  if (status == CUDA_SUCCESS) [[likely]]
    return;
  Error error(status == CUDA_ERROR_OUT_OF_MEMORY                                         ? ErrorCode::kOutOfMemory
              : status == CUDA_ERROR_NOT_SUPPORTED || status == CUDA_ERROR_NOT_PERMITTED ? ErrorCode::kUnsupported
                                                                                         : ErrorCode::kDevice,
              std::string(what) + ": " + name_of(status));
  error.native = name_of(status);
  throw error;
}

std::mutex& one_at_a_time() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

/// The device, cut once.
struct Cut {
  CUdevice device = 0;
  int units = 0;      // SMs of the device
  int group = 1;      // SMs of each group
  int remainder = 0;  // SMs left over
  std::vector<CUdevResource> groups;
  CUdevResource rest{};
  std::string why_not;  // not empty: the device cannot be cut
};

Cut cut_device(int index) {
  make_current(index);
  Cut cut;
  int major = 0;
  check(cudaDeviceGetAttribute(&cut.units, cudaDevAttrMultiProcessorCount, index), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "cudaDeviceGetAttribute");
  const Driver& d = driver();
  if (!d.missing.empty()) {
    cut.why_not = "green contexts need a driver of CUDA 12.5 or later: this one has no " + d.missing;
    return cut;
  }
  try {
    check_driver(d.device_get(&cut.device, index), "cuDeviceGet");
    CUdevResource all{};
    check_driver(d.device_resource(cut.device, &all, CU_DEV_RESOURCE_TYPE_SM), "cuDeviceGetDevResource");
    cut.units = static_cast<int>(all.sm.smCount);
    // Drivers before 13.0 do not say their minimum; these are the documented ones.
    const unsigned minimum = all.sm.minSmPartitionSize > 0 ? all.sm.minSmPartitionSize
                             : major >= 9                  ? 8
                             : major == 8                  ? 4
                                                           : 2;
    unsigned count = 0;
    check_driver(d.split(nullptr, &count, &all, nullptr, 0, minimum), "cuDevSmResourceSplitByCount");
    cut.groups.resize(count);
    if (count > 0)
      check_driver(d.split(cut.groups.data(), &count, &all, &cut.rest, 0, minimum), "cuDevSmResourceSplitByCount");
    cut.groups.resize(count);
    if (count == 0) {
      cut.why_not = "the device has " + std::to_string(cut.units) + " SMs, too few to be cut";
      return cut;
    }
    cut.group = static_cast<int>(cut.groups[0].sm.smCount);
    cut.remainder = cut.rest.type == CU_DEV_RESOURCE_TYPE_SM ? static_cast<int>(cut.rest.sm.smCount) : 0;
  } catch (const Error& e) {
    // Only an answer about cutting is one; a broken context says nothing about the device.
    if (e.code != ErrorCode::kUnsupported && e.native.rfind("CUDA_ERROR_INVALID_", 0) != 0) throw;
    cut.why_not = std::string("the driver does not cut this device: ") + e.what();
  }
  return cut;
}

/// Made on first use; never destroyed.
const Cut& cut_of(DeviceId device) {
  static auto* mutex = new std::mutex;
  static auto* cuts = new std::vector<std::unique_ptr<Cut>>(static_cast<size_t>(availability().devices));
  const std::lock_guard lock(*mutex);
  auto& slot = cuts->at(static_cast<size_t>(device.index));
  if (!slot) slot = std::make_unique<Cut>(cut_device(device.index));
  return *slot;
}

/// What sizes there are, in words.
std::string possible(DeviceId device, const Cut& cut) {
  const std::string g = std::to_string(cut.group), r = std::to_string(cut.remainder);
  std::string text = device.name() + " is cut into " + std::to_string(cut.groups.size()) + " groups of " + g + " SMs";
  if (cut.remainder > 0)
    text += " and one of " + r + ": sizes are multiples of " + g + ", and one slice may have " + r + " more";
  return text;
}

/// Which slice takes the remainder, and how many groups each takes; throws kInvalidArgument when it does not work out.
struct Assignment {
  int odd = -1;
  std::vector<int> groups;
};
Assignment assign(DeviceId device, const Cut& cut, const std::vector<int>& units) {
  const auto refuse = [&](size_t slice, const std::string& expected) {
    throw_invalid("Partition::create: units[" + std::to_string(slice) + "]: expected " + expected + ", got " +
                  std::to_string(units[slice]) + ": " + possible(device, cut));
  };
  Assignment plan;
  int64_t needed = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    plan.groups.push_back(units[i] / cut.group);
    if (units[i] % cut.group != 0) {
      const int rest = units[i] - cut.remainder;
      if (cut.remainder == 0 || rest % cut.group != 0 || rest < 0 || units[i] < cut.group)
        refuse(i, "a multiple of " + std::to_string(cut.group) +
                      (cut.remainder % cut.group == 0 ? "" : ", or that plus " + std::to_string(cut.remainder)));
      if (plan.odd >= 0)
        refuse(i, "a multiple of " + std::to_string(cut.group) + ", since units[" + std::to_string(plan.odd) +
                      "] has what is left over");
      plan.odd = static_cast<int>(i);
      plan.groups[i] = rest / cut.group;
    }
    needed += plan.groups[i];
  }
  // A remainder that is a multiple itself is as good as groups, where those do not suffice.
  if (needed > static_cast<int64_t>(cut.groups.size()) && plan.odd < 0 && cut.remainder > 0 &&
      cut.remainder % cut.group == 0) {
    const auto largest = std::max_element(units.begin(), units.end()) - units.begin();
    if (units[static_cast<size_t>(largest)] >= cut.remainder) {
      plan.odd = static_cast<int>(largest);
      plan.groups[static_cast<size_t>(largest)] -= cut.remainder / cut.group;
    }
  }
  int64_t taken = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    const int64_t left = static_cast<int64_t>(cut.groups.size()) - taken;
    taken += plan.groups[i];
    if (plan.groups[i] > left)
      refuse(i, "at most " + std::to_string(left * cut.group + (plan.odd == static_cast<int>(i) ? cut.remainder : 0)));
  }
  return plan;
}

/// A green context of some of the groups. The driver never gives one's memory back (4 MiB each on an H200, driver 580:
/// cuGreenCtxDestroy takes 10 us and frees nothing), and making one takes 1.2 ms. So each is made once for the process
/// and used by every partition with a slice of just those groups, one after the other or side by side; there are at
/// most as many as there are runs of groups, 136 on an H200.
struct GreenContext {
  CUgreenCtx handle = nullptr;
  int units = 0;
};
GreenContext green_context(DeviceId device, const Cut& cut, int first, int groups, bool with_rest) {
  using Key = std::tuple<int, int, int, bool>;
  static auto* made = new std::map<Key, GreenContext>;  // under one_at_a_time()
  const std::lock_guard lock(one_at_a_time());
  const Key key{device.index, first, groups, with_rest};
  if (const auto found = made->find(key); found != made->end()) return found->second;
  const Driver& d = driver();
  std::vector<CUdevResource> mine(cut.groups.begin() + first, cut.groups.begin() + first + groups);
  if (with_rest) mine.push_back(cut.rest);
  CUdevResourceDesc description = nullptr;
  check_driver(d.describe(&description, mine.data(), static_cast<unsigned>(mine.size())), "cuDevResourceGenerateDesc");
  GreenContext context;
  check_driver(d.create(&context.handle, description, cut.device, CU_GREEN_CTX_DEFAULT_STREAM), "cuGreenCtxCreate");
  try {
    CUdevResource given{};
    check_driver(d.context_resource(context.handle, &given, CU_DEV_RESOURCE_TYPE_SM), "cuGreenCtxGetDevResource");
    context.units = static_cast<int>(given.sm.smCount);
    made->emplace(key, context);
  } catch (...) {
    (void)d.destroy(context.handle);
    throw;
  }
  return context;
}

class CudaPartition final : public Partition {
 public:
  CudaPartition(DeviceId device, const Cut& cut, const Assignment& plan) : Partition(device) {
    int next = 0;
    for (size_t i = 0; i < plan.groups.size(); ++i) {
      contexts_.push_back(green_context(device, cut, next, plan.groups[i], plan.odd == static_cast<int>(i)));
      next += plan.groups[i];
      const int units = contexts_.back().units;
      grants_.push_back({units, Enforcement::kHardware, "a green context of " + std::to_string(units) + " SMs"});
    }
  }

  const std::vector<Grant>& grants() const override { return grants_; }
  std::shared_ptr<Stream> create_stream(int slice, int priority, StreamShape shape) override {
    if (slice < 0 || static_cast<size_t>(slice) >= contexts_.size())
      throw_invalid("Partition::create_stream: slice: expected 0 to " + std::to_string(contexts_.size() - 1) +
                    ", got " + std::to_string(slice));
    check_shape("Partition::create_stream", shape);
    fault_point("partition.stream", device_);
    make_current(device_.index);
    CUstream stream = nullptr;
    {
      const std::lock_guard lock(one_at_a_time());
      check_driver(driver().create_stream(&stream, contexts_[static_cast<size_t>(slice)].handle, CU_STREAM_NON_BLOCKING,
                                          stream_priority(priority)),
                   "cuGreenCtxStreamCreate");
    }
    try {
      return adopt_slice_stream(device_, stream, grants_[static_cast<size_t>(slice)].units, shape, shared_from_this());
    } catch (...) {
      (void)cudaStreamDestroy(stream);
      throw;
    }
  }

 private:
  std::vector<GreenContext> contexts_;
  std::vector<Grant> grants_;
};

}  // namespace

PartitionInfo partition_info(DeviceId device) {
  const Cut& cut = cut_of(device);
  PartitionInfo info;
  info.units = cut.units;
  if (!cut.why_not.empty()) {
    info.reason = cut.why_not;
    return info;
  }
  info.granularity = cut.group;
  info.minimum = cut.group;
  info.enforcement = Enforcement::kHardware;
  info.reason = "green contexts: " + possible(device, cut);
  if (driver().unequal_groups) info.reason += " (the driver could also cut unequal groups, which is not used)";
  return info;
}

std::shared_ptr<Partition> create_partition(DeviceId device, const std::vector<int>& units) {
  const Cut& cut = cut_of(device);
  if (!cut.why_not.empty()) throw_unsupported("Partition::create: " + device.name() + ": " + cut.why_not);
  const Assignment plan = assign(device, cut, units);
  make_current(device.index);
  return std::make_shared<CudaPartition>(device, cut, plan);
}

}  // namespace nexus::cuda
