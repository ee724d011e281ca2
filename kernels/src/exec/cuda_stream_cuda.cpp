// Streams, events and completions of CUDA, over the runtime API.
#include <algorithm>
#include <string>

#include "exec/backend.h"
#include "exec/cuda_device.h"

namespace nexus::cuda {
namespace {

/// Destructors cannot throw. What could fail in one is a broken context (every later call on it reports that too) or a
/// runtime that is already unloading at process exit.
void ignore_in_destructor(cudaError_t status) {
  if (status != cudaSuccess) (void)cudaGetLastError();
}

class CudaStream final : public Stream {
 public:
  CudaStream(DeviceId device, int priority) : Stream(device) {
    make_current(device.index);
    int least = 0, greatest = 0;  // CUDA clamps, too; but silently
    check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, std::max(greatest, std::min(least, priority))),
          "cudaStreamCreateWithPriority");
  }
  /// Returns at once; CUDA frees the stream when its work is done.
  ~CudaStream() override { ignore_in_destructor(cudaStreamDestroy(stream_)); }

  void enqueue(std::function<void()>) override {
    throw_unsupported("Stream::enqueue: closures run on CPU streams only; launch on cuda_stream()");
  }
  void* cuda_stream() override {
    make_current(device_.index);
    return stream_;
  }
  void synchronize() override {
    make_current(device_.index);
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  void wait(const Event& event) override;
  void copy(void* dst, const void* src, size_t bytes) override {
    if (bytes == 0) return;
    if (dst == nullptr) throw_invalid("Stream::copy: dst is null for " + std::to_string(bytes) + " bytes");
    if (src == nullptr) throw_invalid("Stream::copy: src is null for " + std::to_string(bytes) + " bytes");
    make_current(device_.index);
    check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream_), "cudaMemcpyAsync");
  }
  void fill(void* dst, int byte, size_t bytes) override {
    if (bytes == 0) return;
    if (dst == nullptr) throw_invalid("Stream::fill: dst is null for " + std::to_string(bytes) + " bytes");
    make_current(device_.index);
    check(cudaMemsetAsync(dst, byte, bytes, stream_), "cudaMemsetAsync");
  }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaEvent final : public Event {
 public:
  explicit CudaEvent(DeviceId device) : device_(device) {
    make_current(device.index);
    check(cudaEventCreateWithFlags(&event_, cudaEventDefault), "cudaEventCreateWithFlags");
  }
  ~CudaEvent() override { ignore_in_destructor(cudaEventDestroy(event_)); }

  void record(Stream& stream) override {
    if (stream.device() != device_)
      throw_invalid("Event::record: the event is of " + device_.name() + ", the stream of " + stream.device().name());
    check(cudaEventRecord(event_, static_cast<cudaStream_t>(stream.cuda_stream())), "cudaEventRecord");
    recorded_ = true;
  }
  bool ready() const override {
    make_current(device_.index);
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    check(status, "cudaEventQuery");
    return true;
  }
  void synchronize() const override {
    make_current(device_.index);
    check(cudaEventSynchronize(event_), "cudaEventSynchronize");
  }
  double elapsed_ms(const Event& end) const override {
    const auto* other = dynamic_cast<const CudaEvent*>(&end);
    if (other == nullptr || other->device_ != device_)
      throw_invalid("Event::elapsed_ms: end is of another device than the start, " + device_.name());
    if (!recorded_) throw_invalid("Event::elapsed_ms: the start was never recorded");
    if (!other->recorded_) throw_invalid("Event::elapsed_ms: end was never recorded");
    make_current(device_.index);
    float ms = 0;
    const cudaError_t status = cudaEventElapsedTime(&ms, event_, other->event_);
    if (status == cudaErrorNotReady) {
      (void)cudaGetLastError();
      throw_invalid("Event::elapsed_ms: the start or end is not reached yet");
    }
    check(status, "cudaEventElapsedTime");
    return ms;
  }
  cudaEvent_t get() const { return event_; }

 private:
  DeviceId device_;
  cudaEvent_t event_ = nullptr;
  std::atomic<bool> recorded_{false};
};

void CudaStream::wait(const Event& event) {
  const auto* cuda_event = dynamic_cast<const CudaEvent*>(&event);
  if (cuda_event == nullptr) throw_invalid("Stream::wait: event belongs to the CPU, the stream to " + device_.name());
  make_current(device_.index);
  check(cudaStreamWaitEvent(stream_, cuda_event->get(), 0), "cudaStreamWaitEvent");
}

}  // namespace

std::shared_ptr<Stream> create_stream(DeviceId device, int priority) {
  return std::make_shared<CudaStream>(device, priority);
}
std::shared_ptr<Event> create_event(DeviceId device) { return std::make_shared<CudaEvent>(device); }

void on_complete(const std::shared_ptr<Stream>& stream, std::function<void(std::exception_ptr error)> done) {
  // From here on every failure of the device goes to `done`, so that it is called exactly once in any case.
  std::shared_ptr<PooledEvent> event;
  const int device = stream->device().index;
  try {
    event = std::make_shared<PooledEvent>(device);
    check(cudaEventRecord(event->get(), static_cast<cudaStream_t>(stream->cuda_stream())), "cudaEventRecord");
  } catch (...) {
    deliver(std::move(done), std::current_exception());
    return;
  }
  // Holding the stream keeps its address, the lane's key, from being another stream's.
  auto finished = [stream, event, device] {
    make_current(device);
    const cudaError_t status = cudaEventQuery(event->get());
    if (status == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    check(status, "work on the stream");
    return true;
  };
  deliver_when(stream.get(), std::move(finished), std::move(done));
}

}  // namespace nexus::cuda
