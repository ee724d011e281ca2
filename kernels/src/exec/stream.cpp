// The public entry points of the execution plane: check arguments, then hand over to the device's backend.
#include <algorithm>

#include "exec/backend.h"
#include "exec/block_cache.h"
#include "exec/fault.h"

namespace nexus {
namespace {

void require_device(DeviceId device) { device.is_cpu() ? cpu::require_device(device) : cuda::require_device(device); }

}  // namespace

void check_shape(const char* what, const StreamShape& shape) {
  if (shape.max_width < 0)
    throw_invalid(std::string(what) + ": max_width: expected at least 0, got " + std::to_string(shape.max_width));
  if (shape.read_ahead < 0)
    throw_invalid(std::string(what) + ": read_ahead: expected at least 0, got " + std::to_string(shape.read_ahead));
}

std::shared_ptr<Stream> Stream::create(DeviceId device, int priority, StreamShape shape) {
  check_shape("Stream::create", shape);
  require_device(device);
  fault_point("stream.create", device);
  return device.is_cpu() ? cpu::create_stream(device, priority, shape) : cuda::create_stream(device, priority, shape);
}

std::shared_ptr<Event> Event::create(DeviceId device) {
  require_device(device);
  return device.is_cpu() ? cpu::create_event(device) : cuda::create_event(device);
}

void on_complete(const std::shared_ptr<Stream>& stream, std::function<void(std::exception_ptr error)> done) {
  if (!stream) throw_invalid("on_complete: stream is null");
  if (!done) throw_invalid("on_complete: done must be callable");
  stream->device().is_cpu() ? cpu::on_complete(stream, std::move(done)) : cuda::on_complete(stream, std::move(done));
}

MemoryStats memory_stats(DeviceId device) {
  require_device(device);
  MemoryStats stats;
  read_accounts(device, stats);
  device.is_cpu() ? cpu::memory_info(device, stats) : cuda::memory_info(device, stats);
  return stats;
}

namespace {

/// A buffer of no bytes: nothing to allocate, nothing to release, but it counts as live.
class EmptyBuffer final : public Buffer {
 public:
  explicit EmptyBuffer(DeviceId device) : Buffer(device, nullptr, 0), live_(device, 0) {}
  void record_use(const std::shared_ptr<Stream>& stream) override {
    if (!stream) throw_invalid("Buffer::record_use: stream is null");
  }

 private:
  LiveBytes live_;
};

}  // namespace

std::shared_ptr<Buffer> Buffer::allocate(const std::shared_ptr<Stream>& stream, size_t bytes) {
  if (!stream) throw_invalid("Buffer::allocate: stream is null");
  const DeviceId device = stream->device();
  fault_point("buffer.allocate", *stream);
  if (bytes == 0) return std::make_shared<EmptyBuffer>(device);
  return device.is_cpu() ? cpu::allocate_buffer(stream, bytes) : cuda::allocate_buffer(stream, bytes);
}

// ---- host buffers ------------------------------------------------------------------------------------------------

namespace {

constexpr size_t kMaxCachedHostBytes = size_t{512} << 20;

class PooledHostBuffer final : public HostBuffer {
 public:
  PooledHostBuffer(DeviceId device, size_t bytes) : pinned_(device.is_cuda()), size_(size_class(bytes)) {
    bytes_ = bytes;
    data_ = cache(pinned_).take(size_);
    if (data_ != nullptr) return;
    try {
      data_ = pinned_ ? cuda::host_allocate(device, size_) : cpu::host_allocate(device, size_);
    } catch (const Error& e) {
      const auto kept = cache(pinned_).drain();
      if (e.code != ErrorCode::kOutOfMemory || kept.empty()) throw;
      for (const auto& [memory, size] : kept) pinned_ ? cuda::host_free(memory, size) : cpu::host_free(memory, size);
      data_ = pinned_ ? cuda::host_allocate(device, size_) : cpu::host_allocate(device, size_);
    }
  }
  ~PooledHostBuffer() override {
    if (data_ == nullptr) return;
    auto evicted = cache(pinned_).give(data_, size_);
    if (evicted.empty()) return;
    if (!pinned_) {
      for (const auto& [memory, size] : evicted) cpu::host_free(memory, size);
      return;
    }
    // cudaFreeHost may wait for the device: not on this thread. If even that cannot be queued, the memory stays ours.
    try {
      run_in_background(
          [evicted = std::move(evicted)] {
            for (const auto& [memory, size] : evicted) cuda::host_free(memory, size);
          },
          [](std::exception_ptr) {});
    } catch (...) {
    }
  }

 private:
  static BlockCache& cache(bool pinned) {
    static auto* plain = new BlockCache(kMaxCachedHostBytes);
    static auto* locked = new BlockCache(kMaxCachedHostBytes);
    return pinned ? *locked : *plain;
  }
  bool pinned_;
  size_t size_;
};

class EmptyHostBuffer final : public HostBuffer {};

}  // namespace

std::shared_ptr<HostBuffer> HostBuffer::allocate(DeviceId for_device, size_t bytes) {
  require_device(for_device);
  fault_point("host.allocate", for_device);
  if (bytes == 0) return std::make_shared<EmptyHostBuffer>();
  if (bytes > static_cast<size_t>(INT64_MAX / 2)) {
    Error error(ErrorCode::kOutOfMemory, "HostBuffer::allocate: " + std::to_string(bytes) + " bytes requested");
    error.requested = INT64_MAX;
    throw error;
  }
  return std::make_shared<PooledHostBuffer>(for_device, bytes);
}

}  // namespace nexus
