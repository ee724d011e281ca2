// Streams, events and completions of CUDA, over the runtime API.
#include <algorithm>
#include <string>

#include "exec/backend.h"
#include "exec/background_thread.h"
#include "exec/cuda_capture.h"

namespace nexus::cuda {
namespace {

/// Destructors cannot throw. What could fail in one is a broken context (every later call on it reports that too) or a
/// runtime that is already unloading at process exit.
void ignore_in_destructor(cudaError_t status) {
  if (status != cudaSuccess) (void)cudaGetLastError();
}

class CudaStream final : public Stream {
 public:
  CudaStream(DeviceId device, int priority, StreamShape shape) : Stream(device, shape) {
    make_current(device.index);
    check(cudaDeviceGetAttribute(&width_, cudaDevAttrMultiProcessorCount, device.index), "cudaDeviceGetAttribute");
    if (shape.max_width > 0) width_ = std::min(width_, shape.max_width);
    check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, stream_priority(priority)),
          "cudaStreamCreateWithPriority");
  }
  /// A slice's stream.
  CudaStream(DeviceId device, cudaStream_t stream, int width, StreamShape shape, std::shared_ptr<Partition> owner)
      : Stream(device, shape),
        stream_(stream),
        width_(shape.max_width > 0 ? std::min(width, shape.max_width) : width),
        owner_(std::move(owner)) {}
  /// Returns at once; CUDA frees the stream when its work is done. A slice's green context must outlive both.
  ~CudaStream() override {
    if (owner_)
      retire_slice_stream();
    else
      ignore_in_destructor(cudaStreamDestroy(stream_));
  }

  void enqueue(std::function<void()>) override {
    throw_unsupported("Stream::enqueue: closures run on CPU streams only; launch on cuda_stream()");
  }
  void* cuda_stream() override {
    make_current(device_.index);
    unsettled_ = {};
    return stream_;
  }
  int width() const override { return width_; }
  bool in_slice() const override { return owner_ != nullptr; }
  bool capturing() const override { return capture_of(stream_) != nullptr; }
  void synchronize() override {
    make_current(device_.index);
    refuse_in_capture(*this, "Stream::synchronize: the stream is being captured into a graph: its work has not run");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  void wait(const Event& event) override;
  void copy(void* dst, const void* src, size_t bytes) override {
    if (bytes == 0) return;
    if (dst == nullptr) throw_invalid("Stream::copy: dst is null for " + std::to_string(bytes) + " bytes");
    if (src == nullptr) throw_invalid("Stream::copy: src is null for " + std::to_string(bytes) + " bytes");
    make_current(device_.index);
    unsettled_ = {};
    check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, stream_), "cudaMemcpyAsync");
  }
  void fill(void* dst, int byte, size_t bytes) override {
    if (bytes == 0) return;
    if (dst == nullptr) throw_invalid("Stream::fill: dst is null for " + std::to_string(bytes) + " bytes");
    make_current(device_.index);
    unsettled_ = {};
    check(cudaMemsetAsync(dst, byte, bytes, stream_), "cudaMemsetAsync");
  }

 private:
  void retire_slice_stream() noexcept;

  cudaStream_t stream_ = nullptr;
  int width_ = 0;
  std::shared_ptr<Partition> owner_;
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
    const auto capture = capture_of(stream);
    captured_ = capture ? capture->id : 0;
    recorded_ = true;
  }
  bool ready() const override {
    require_eager("Event::ready");
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
    require_eager("Event::synchronize");
    make_current(device_.index);
    check(cudaEventSynchronize(event_), "cudaEventSynchronize");
  }
  double elapsed_ms(const Event& end) const override {
    const auto* other = dynamic_cast<const CudaEvent*>(&end);
    if (other == nullptr || other->device_ != device_)
      throw_invalid("Event::elapsed_ms: end is of another device than the start, " + device_.name());
    if (!recorded_) throw_invalid("Event::elapsed_ms: the start was never recorded");
    if (!other->recorded_) throw_invalid("Event::elapsed_ms: end was never recorded");
    require_eager("Event::elapsed_ms");
    other->require_eager("Event::elapsed_ms: end");
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
  bool recorded() const { return recorded_; }
  /// The capture in which it was last recorded; 0: in none.
  unsigned long long captured() const { return captured_; }

 private:
  void require_eager(const char* call) const {
    if (captured_ != 0)
      throw Error(ErrorCode::kGraphCapture, std::string(call) +
                                                ": the event was last recorded in a graph capture, where it only "
                                                "orders the graph; record it again");
  }

  DeviceId device_;
  cudaEvent_t event_ = nullptr;
  std::atomic<bool> recorded_{false};
  std::atomic<unsigned long long> captured_{0};
};

void CudaStream::wait(const Event& event) {
  const auto* cuda_event = dynamic_cast<const CudaEvent*>(&event);
  if (cuda_event == nullptr) throw_invalid("Stream::wait: event belongs to the CPU, the stream to " + device_.name());
  make_current(device_.index);
  unsettled_ = {};
  const unsigned long long captured = cuda_event->captured();
  const auto own = capture_of(stream_);
  if (captured == 0 && own == nullptr) {
    check(cudaStreamWaitEvent(stream_, cuda_event->get(), 0), "cudaStreamWaitEvent");
    return;
  }
  if (captured == 0) {
    if (!cuda_event->recorded()) return;  // nothing to wait for
    own->refuse("Stream::wait: the stream is being captured into a graph, event was recorded outside of the capture");
  }
  const auto capture = find_capture(captured);
  if (!capture)
    throw Error(ErrorCode::kGraphCapture,
                "Stream::wait: event was last recorded in a graph capture that has ended; record it again");
  if (own && own != capture)
    capture->refuse("Stream::wait: the stream takes part in one capture, event was recorded in another");
  check(cudaStreamWaitEvent(stream_, cuda_event->get(), 0), "cudaStreamWaitEvent");
  if (!own) capture->add(shared_from_this());  // it takes part from here on
}

/// Polls an event behind what is queued on the stream, then calls `done` on the background helper.
void when_passed(int device, cudaStream_t stream, std::shared_ptr<Stream> holder, std::function<void()> done) {
  make_current(device);
  const auto event = std::make_shared<PooledEvent>(device);
  check(cudaEventRecord(event->get(), stream), "cudaEventRecord");
  auto finished = [event, device, holder = std::move(holder)] {
    make_current(device);
    const cudaError_t status = cudaEventQuery(event->get());
    if (status != cudaErrorNotReady) check(status, "work on the stream");
    (void)cudaGetLastError();
    return status == cudaSuccess;
  };
  // An error means a broken context, on which nothing runs any more.
  auto over = [done = std::move(done)](std::exception_ptr) mutable {
    try {
      run_in_background(std::move(done), [](std::exception_ptr) {});
    } catch (...) {
    }
  };
  deliver_when(stream, std::move(finished), std::move(over));
}

void CudaStream::retire_slice_stream() noexcept {
  const auto destroy = [device = device_.index, stream = stream_] {
    if (cudaSetDevice(device) == cudaSuccess) ignore_in_destructor(cudaStreamDestroy(stream));
  };
  try {
    outside_captures([device = device_.index, stream = stream_, destroy, owner = owner_] {
      try {
        when_passed(device, stream, nullptr, [destroy, owner] { destroy(); });
      } catch (...) {
        destroy();  // the context is broken: nothing runs on the stream any more
      }
    });
  } catch (...) {
    destroy();
  }
}

}  // namespace

std::shared_ptr<Stream> adopt_slice_stream(DeviceId device, cudaStream_t stream, int width, StreamShape shape,
                                           std::shared_ptr<Partition> owner) {
  return std::make_shared<CudaStream>(device, stream, width, shape, std::move(owner));
}

int stream_priority(int wanted) {
  int least = 0, greatest = 0;  // CUDA clamps, too; but silently
  check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
  return std::max(greatest, std::min(least, wanted));
}

void release_behind(const std::shared_ptr<Stream>& stream, std::function<void()> release) noexcept {
  try {
    outside_captures([stream, release = std::move(release)]() mutable {
      try {
        when_passed(stream->device().index, static_cast<cudaStream_t>(stream->cuda_stream()), stream,
                    std::move(release));
      } catch (...) {
      }
    });
  } catch (...) {
    // A broken context, or no memory: what `release` holds goes with it, here.
  }
}

std::shared_ptr<Stream> create_stream(DeviceId device, int priority, StreamShape shape) {
  return std::make_shared<CudaStream>(device, priority, shape);
}
std::shared_ptr<Event> create_event(DeviceId device) { return std::make_shared<CudaEvent>(device); }

namespace {

void complete(const std::shared_ptr<Stream>& stream, std::function<void(std::exception_ptr error)> done) {
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

}  // namespace

void on_complete(const std::shared_ptr<Stream>& stream, std::function<void(std::exception_ptr error)> done) {
  if (!on_background_thread())
    refuse_in_capture(*stream, "on_complete: the stream is being captured into a graph: its work has not run");
  outside_captures([stream, done = std::move(done)]() mutable { complete(stream, std::move(done)); });
}

}  // namespace nexus::cuda
