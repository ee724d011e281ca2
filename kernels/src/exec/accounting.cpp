// Live and peak bytes of each device: what the holders of Buffers keep, not what a pool keeps in reserve.
#include <array>

#include "exec/backend.h"

namespace nexus {
namespace {

constexpr size_t kDevices = 65;  // the CPU, and more CUDA devices than one host has

struct Account {
  std::atomic<int64_t> bytes{0}, buffers{0}, peak{0};
};

Account& account(DeviceId device) {
  static auto* accounts = new std::array<Account, kDevices>;
  const size_t slot = static_cast<size_t>(device.index + 1);
  if (slot >= kDevices) throw Error(ErrorCode::kInternal, "no memory account for " + device.name());
  return (*accounts)[slot];
}

}  // namespace

LiveBytes::LiveBytes(DeviceId device, size_t bytes) : device_(device), bytes_(static_cast<int64_t>(bytes)) {
  Account& a = account(device);
  a.buffers.fetch_add(1);
  const int64_t now = a.bytes.fetch_add(bytes_) + bytes_;
  for (int64_t peak = a.peak.load(); peak < now && !a.peak.compare_exchange_weak(peak, now);) {
  }
}

LiveBytes::~LiveBytes() {
  Account& a = account(device_);
  a.buffers.fetch_sub(1);
  a.bytes.fetch_sub(bytes_);
}

void read_accounts(DeviceId device, MemoryStats& stats) {
  const Account& a = account(device);
  stats.live_bytes = a.bytes.load();
  stats.live_buffers = a.buffers.load();
  stats.peak_bytes = a.peak.load();
}

void reset_peak(DeviceId device) {
  device.is_cpu() ? cpu::require_device(device) : cuda::require_device(device);
  Account& a = account(device);
  a.peak.store(a.bytes.load());
}

}  // namespace nexus
