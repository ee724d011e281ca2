#include <cstdlib>

#include "exec/backend.h"
#include "exec/background_thread.h"
#include "exec/cuda_device.h"

namespace nexus::cuda {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

Availability find() {
  pin_library();  // the runtime registers itself with the process
  Availability found;
  if (cudaRuntimeGetVersion(&found.runtime_version) != cudaSuccess) found.runtime_version = 0;
  if (cudaDriverGetVersion(&found.driver_version) != cudaSuccess) found.driver_version = 0;
  const cudaError_t status = cudaGetDeviceCount(&found.devices);
  (void)cudaGetLastError();  // reported here, not by the next kernel
  if (status == cudaSuccess && found.devices > 0) {
    found.status = "ok";
    // Registered after the driver was loaded, so it runs before the driver's and the runtime's own clean-up at exit.
    std::atexit(stop_background_work);
    return found;
  }
  found.devices = 0;
  found.error = status == cudaSuccess ? "cudaErrorNoDevice" : cudaGetErrorName(status);
  // Without any driver the runtime says cudaErrorInsufficientDriver.
  if (found.driver_version == 0)
    found.status = "no CUDA device: the NVIDIA driver (libcuda.so.1) was not found";
  else if (status == cudaErrorInsufficientDriver)
    found.status = "no CUDA device: the NVIDIA driver supports CUDA " + version_text(found.driver_version) +
                   " and this build needs " + version_text(found.runtime_version);
  else if (status == cudaErrorNoDevice || status == cudaSuccess)
    found.status = "no CUDA device: the NVIDIA driver is there, but shows none (see CUDA_VISIBLE_DEVICES)";
  else
    found.status = std::string("no CUDA device: ") + found.error + ": " + cudaGetErrorString(status);
  return found;
}

struct EventPool {
  std::mutex mutex;
  std::vector<cudaEvent_t> idle;
};
EventPool& event_pool(int device) {
  static auto* pools = [] {
    auto* all = new std::vector<std::unique_ptr<EventPool>>;
    for (int i = 0; i < availability().devices; ++i) all->push_back(std::make_unique<EventPool>());
    return all;
  }();
  return *pools->at(static_cast<size_t>(device));
}

}  // namespace

const Availability& availability() {
  static const auto* found = new Availability(find());
  return *found;
}

void require_device(DeviceId device) {
  const Availability& found = availability();
  if (found.devices == 0) throw_unsupported(device.name() + ": " + found.status);
  if (device.index >= found.devices)
    throw_unsupported(device.name() + ": no such device: this process sees " + std::to_string(found.devices) +
                      ", from cuda:0 to cuda:" + std::to_string(found.devices - 1));
}

void bind_device(int device) {
  check(cudaSetDevice(device), "cudaSetDevice");
  // Making the device's context may have registered further clean-up: ours comes before that, too.
  static const int registered = std::atexit(stop_background_work);
  (void)registered;
}

void* driver_function(const char* name, unsigned cuda_version) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &function, cuda_version, cudaEnableDefault, &result);
  if (status != cudaSuccess) (void)cudaGetLastError();  // no driver: null is the answer
  return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? function : nullptr;
}

PooledEvent::PooledEvent(int device) : device_(device) {
  EventPool& pool = event_pool(device);
  {
    std::lock_guard lock(pool.mutex);
    if (!pool.idle.empty()) {
      event_ = pool.idle.back();
      pool.idle.pop_back();
      return;
    }
  }
  make_current(device);
  check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
}

PooledEvent::~PooledEvent() {
  EventPool& pool = event_pool(device_);
  std::lock_guard lock(pool.mutex);
  pool.idle.push_back(event_);
}

}  // namespace nexus::cuda
