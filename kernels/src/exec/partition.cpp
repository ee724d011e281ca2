// The public entry points of partitions: check arguments, then hand over to the device's backend.
#include "exec/backend.h"
#include "exec/fault.h"

namespace nexus {
namespace {

void require_device(DeviceId device) { device.is_cpu() ? cpu::require_device(device) : cuda::require_device(device); }

}  // namespace

PartitionInfo partition_info(DeviceId device) {
  require_device(device);
  return device.is_cpu() ? cpu::partition_info(device) : cuda::partition_info(device);
}

std::shared_ptr<Partition> Partition::create(DeviceId device, const std::vector<int>& units) {
  require_device(device);
  if (units.empty()) throw_invalid("Partition::create: units: expected at least one slice, got none");
  for (size_t i = 0; i < units.size(); ++i)
    if (units[i] < 1)
      throw_invalid("Partition::create: units[" + std::to_string(i) + "]: expected at least 1, got " +
                    std::to_string(units[i]));
  fault_point("partition.create", device);
  return device.is_cpu() ? cpu::create_partition(device, units) : cuda::create_partition(device, units);
}

}  // namespace nexus
