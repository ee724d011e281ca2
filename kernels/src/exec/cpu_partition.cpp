// Partitions of the CPU: the virtual workers are cut into ranges, and each slice has threads of its own for them. The
// thread of a slice's stream is the slice's first worker (several streams of one slice share that number), so a slice
// has one thread less than it has units.
//
// Worker w keeps to the w-th core of the process's affinity mask, where it may use as many cores as there are workers:
// then slices are disjoint cores. Elsewhere they share what cores there are, and the grants say so.
#include <sched.h>
#include <unistd.h>

#include <algorithm>

#include "exec/cpu_stream.h"
#include "exec/fault.h"
#include "telemetry/host_machine.h"

namespace nexus::cpu {
namespace {

std::vector<int> usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(getpid(), sizeof set, &set) != 0) return cores;  // more cores than the set holds: not pinned
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) cores.push_back(i);
  return cores;
}

class CpuPartition final : public Partition {
 public:
  CpuPartition(DeviceId device, const std::vector<int>& units, const PartitionInfo& info) : Partition(device) {
    const bool pinned = info.enforcement == Enforcement::kHardware;
    const std::vector<int> cores = pinned ? usable_cores() : std::vector<int>{};
    int first = 0;
    for (const int n : units) {
      WorkerPool::Place place;
      place.first = first;
      if (static_cast<size_t>(first + n) <= cores.size()) place.cores.assign(&cores[first], &cores[first] + n);
      auto workers = std::make_shared<SliceWorkers>(std::make_shared<WorkerPool>(std::move(place)), n);
      workers->pool->set_threads(n);
      workers->pool->start();
      slices_.push_back(std::move(workers));
      grants_.push_back({n, info.enforcement, info.reason});
      first += n;
    }
  }

  const std::vector<Grant>& grants() const override { return grants_; }
  std::shared_ptr<Stream> create_stream(int slice, int, StreamShape shape) override {
    if (slice < 0 || static_cast<size_t>(slice) >= slices_.size())
      throw_invalid("Partition::create_stream: slice: expected 0 to " + std::to_string(slices_.size() - 1) + ", got " +
                    std::to_string(slice));
    check_shape("Partition::create_stream", shape);
    fault_point("partition.stream", device_);
    return std::make_shared<CpuStream>(device_, slices_[static_cast<size_t>(slice)], shared_from_this(), shape);
  }

 private:
  std::vector<std::shared_ptr<SliceWorkers>> slices_;
  std::vector<Grant> grants_;
};

}  // namespace

PartitionInfo partition_info(DeviceId) {
  PartitionInfo info;
  info.units = cpu_units();
  const int cores = std::min(static_cast<int>(usable_cores().size()), host_cores_under_quota());
  const std::string facts =
      "the process may use " + std::to_string(cores) + " cores for " + std::to_string(info.units) + " virtual workers";
  info.enforcement = cores >= info.units ? Enforcement::kHardware : Enforcement::kCooperative;
  info.reason = cores >= info.units ? "each virtual worker is pinned to a core of its own: " + facts
                                    : "slices have threads of their own, but not cores: " + facts;
  return info;
}

std::shared_ptr<Partition> create_partition(DeviceId device, const std::vector<int>& units) {
  const PartitionInfo info = cpu::partition_info(device);
  int64_t sum = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    sum += units[i];
    if (sum > info.units)
      throw_invalid("Partition::create: units[" + std::to_string(i) + "]: expected at most " +
                    std::to_string(info.units - (sum - units[i])) + ", got " + std::to_string(units[i]) + ": cpu has " +
                    std::to_string(info.units) + " virtual workers");
  }
  return std::make_shared<CpuPartition>(device, units, info);
}

}  // namespace nexus::cpu
