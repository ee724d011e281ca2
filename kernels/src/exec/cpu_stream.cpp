// Streams and events of the CPU. See cpu_stream.h for who owns what.
#include "exec/cpu_stream.h"

#include <cstring>

#include "exec/background_thread.h"
#include "exec/cpu_graph.h"
#include "exec/fault.h"
#include "telemetry/host_machine.h"

namespace nexus::cpu {
namespace {

/// The queue whose worker this thread is: waiting for it here would never end.
thread_local const Queue* own_queue = nullptr;

constexpr auto kSpin = std::chrono::microseconds(20);
constexpr size_t kCopyBlock = 1 << 20;  ///< larger copies are spread over the pool

bool may_spin() {
  static const bool several_cores = host_cores_under_quota() > 1;
  return several_cores;
}

/// Runs op(offset, n) over pieces of [0, bytes): one core does not saturate memory.
template <class Op>
void in_blocks(size_t bytes, const Op& op) {
  if (bytes <= 2 * kCopyBlock) return op(0, bytes);
  parallel_for(static_cast<int64_t>((bytes + kCopyBlock - 1) / kCopyBlock), [&](int64_t i) {
    const size_t begin = static_cast<size_t>(i) * kCopyBlock;
    op(begin, std::min(kCopyBlock, bytes - begin));
  });
}

}  // namespace

// ---- Mark --------------------------------------------------------------------------------------------------------

void Mark::finish(std::exception_ptr error) {
  std::lock_guard lock(mutex_);
  time_ = Clock::now();
  error_ = std::move(error);
  finished_ = true;
  done_.notify_all();
}
bool Mark::finished() const {
  std::lock_guard lock(mutex_);
  return finished_;
}
std::exception_ptr Mark::wait() const {
  std::unique_lock lock(mutex_);
  done_.wait(lock, [&] { return finished_; });
  return error_;
}
std::exception_ptr Mark::error() const {
  std::lock_guard lock(mutex_);
  return error_;
}
Clock::time_point Mark::time() const {
  std::lock_guard lock(mutex_);
  return time_;
}

// ---- Queue -------------------------------------------------------------------------------------------------------

void Queue::push(Work work) {
  std::unique_lock lock(mutex_);
  push_locked(lock, {std::move(work), nullptr});
}

void Queue::push_marker(Marker marker) {
  std::unique_lock lock(mutex_);
  if (finished_ == pushed_.load(std::memory_order_relaxed)) {
    std::exception_ptr error = error_;
    lock.unlock();
    marker(std::move(error));
    return;
  }
  push_locked(lock, {nullptr, std::move(marker)});
}

void Queue::push_locked(std::unique_lock<std::mutex>& lock, Task task) {
  if (!started_) {
    start_background_thread("nexus-stream", [self = shared_from_this()] { self->loop(); });
    started_ = true;
  }
  tasks_.push_back(std::move(task));
  pushed_.fetch_add(1, std::memory_order_release);
  const bool wake = sleeping_;
  lock.unlock();
  if (wake) wake_.notify_one();
}

void Queue::loop() {
  own_queue = this;
  if (slice_) slice_->pool->adopt_this_thread();
  std::unique_lock lock(mutex_);
  for (;;) {
    if (tasks_.empty()) {
      if (closed_) return;
      if (may_spin()) {
        const uint64_t seen = pushed_.load(std::memory_order_relaxed);
        lock.unlock();
        for (const auto start = Clock::now();
             pushed_.load(std::memory_order_acquire) == seen && !closed_.load() && Clock::now() - start < kSpin;)
          cpu_relax();
        lock.lock();
      }
      sleeping_ = true;
      wake_.wait(lock, [&] { return !tasks_.empty() || closed_.load(); });
      sleeping_ = false;
      continue;
    }
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    std::exception_ptr error = error_;
    lock.unlock();
    std::exception_ptr thrown;
    if (task.marker) {
      task.marker(std::move(error));
    } else if (!error) {
      try {
        task.work();
      } catch (...) {
        thrown = std::current_exception();
      }
    }
    task = {};  // what it held is released before it counts as finished
    error = nullptr;
    lock.lock();
    if (thrown) error_ = std::move(thrown);
    ++finished_;
    progress_.notify_all();
  }
}

void Queue::synchronize() {
  if (own_queue == this)
    throw_invalid("Stream::synchronize: called from a closure of the same stream, which would never end");
  std::unique_lock lock(mutex_);
  const uint64_t goal = pushed_.load(std::memory_order_relaxed);
  progress_.wait(lock, [&] { return finished_ >= goal; });
  if (error_) std::rethrow_exception(error_);
}

void Queue::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  wake_.notify_one();
}

// ---- Stream ------------------------------------------------------------------------------------------------------

CpuStream::Capture CpuStream::capture() const {
  if (!capturing()) return {};
  const std::lock_guard lock(capture_mutex_);
  return capture_;
}

bool CpuStream::enter_capture(std::shared_ptr<Recording> recording, int lane) {
  const std::lock_guard lock(capture_mutex_);
  if (capture_.recording) return false;
  capture_ = {std::move(recording), lane};
  capturing_ = true;
  return true;
}

void CpuStream::leave_capture() noexcept {
  const std::lock_guard lock(capture_mutex_);
  capturing_ = false;
  capture_ = {};
}

void CpuStream::refuse_in_capture(const char* what) const {
  if (const auto recording = capture().recording) recording->refuse(what);
}

void CpuStream::push(Queue::Work work) {
  fault_point("stream.enqueue", *this);
  if (const auto [recording, lane] = capture(); recording)
    recording->add(lane, std::move(work));
  else
    queue_->push(std::move(work));
}

void CpuStream::enqueue(std::function<void()> fn) {
  if (!fn) throw_invalid("Stream::enqueue: fn must be callable");
  push(std::move(fn));
}

void* CpuStream::cuda_stream() { throw_unsupported("a CPU stream has no cudaStream_t"); }

void CpuStream::synchronize() {
  refuse_in_capture("Stream::synchronize: the stream is being captured into a graph: its work has not run");
  fault_point("stream.synchronize", *this);
  queue_->synchronize();
}

void CpuStream::wait(const Event& event) {
  const auto* cpu_event = dynamic_cast<const CpuEvent*>(&event);
  if (cpu_event == nullptr) throw_invalid("Stream::wait: event belongs to a CUDA device, the stream to the CPU");
  const auto [mark, captured] = cpu_event->latest();
  if (captured) {
    const auto recording = captured->recording.lock();
    if (!recording)
      throw Error(ErrorCode::kGraphCapture,
                  "Stream::wait: event was last recorded in a graph capture that has ended; record it again");
    Capture own = capture();
    if (!own.recording) {  // the stream joins the capture
      (void)recording->take(std::static_pointer_cast<CpuStream>(shared_from_this()));
      own = capture();
    }
    if (own.recording != recording)
      recording->refuse("Stream::wait: the stream takes part in one capture, event was recorded in another");
    recording->wait(own.lane, *captured);
    return;
  }
  if (!mark) return;  // never recorded: nothing to wait for, as on CUDA
  refuse_in_capture(
      "Stream::wait: the stream is being captured into a graph, event was recorded outside of the capture");
  if (mark->finished() && !mark->error()) return;
  // What comes after would read what the failed stream did not write: its error becomes ours.
  queue_->push([mark = mark] {
    if (const auto error = mark->wait()) std::rethrow_exception(error);
  });
}

void CpuStream::copy(void* dst, const void* src, size_t bytes) {
  if (bytes == 0) return;
  if (dst == nullptr) throw_invalid("Stream::copy: dst is null for " + std::to_string(bytes) + " bytes");
  if (src == nullptr) throw_invalid("Stream::copy: src is null for " + std::to_string(bytes) + " bytes");
  push([=] {
    in_blocks(bytes, [&](size_t at, size_t n) {
      std::memcpy(static_cast<char*>(dst) + at, static_cast<const char*>(src) + at, n);
    });
  });
}

void CpuStream::fill(void* dst, int byte, size_t bytes) {
  if (bytes == 0) return;
  if (dst == nullptr) throw_invalid("Stream::fill: dst is null for " + std::to_string(bytes) + " bytes");
  push([=] { in_blocks(bytes, [&](size_t at, size_t n) { std::memset(static_cast<char*>(dst) + at, byte, n); }); });
}

void enqueue_begin_step(Stream& stream, const StepBlock& block, StepBlock* current) {
  auto* cpu_stream = dynamic_cast<CpuStream*>(&stream);
  if (cpu_stream == nullptr) throw_invalid("begin_step: expected a stream of the CPU, got " + stream.device().name());
  if (const auto [recording, lane] = cpu_stream->capture(); recording)
    recording->add_step(lane, block, current);
  else
    cpu_stream->queue().push([block, current] { *current = block; });
}

// ---- Event -------------------------------------------------------------------------------------------------------

void CpuEvent::record(Stream& stream) {
  auto* cpu_stream = dynamic_cast<CpuStream*>(&stream);
  if (cpu_stream == nullptr)
    throw_invalid("Event::record: the event is of the CPU, the stream of " + stream.device().name());
  if (const auto [recording, lane] = cpu_stream->capture(); recording) {
    auto captured = recording->record(lane);
    const std::lock_guard lock(mutex_);
    latest_ = {nullptr, std::move(captured)};
    return;
  }
  auto mark = std::make_shared<Mark>();
  {
    std::lock_guard lock(mutex_);
    latest_ = {mark, nullptr};
  }
  cpu_stream->queue().push_marker([mark](std::exception_ptr error) { mark->finish(std::move(error)); });
}

CpuEvent::Latest CpuEvent::latest() const {
  std::lock_guard lock(mutex_);
  return latest_;
}

std::shared_ptr<const Mark> CpuEvent::mark(const char* call) const {
  auto [mark, captured] = latest();
  if (captured)
    throw Error(ErrorCode::kGraphCapture, std::string(call) +
                                              ": the event was last recorded in a graph capture, where it only orders "
                                              "the graph; record it again");
  return mark;
}

bool CpuEvent::ready() const {
  const auto mark = this->mark("Event::ready");
  if (!mark) return true;
  if (!mark->finished()) return false;
  if (const auto error = mark->error()) std::rethrow_exception(error);
  return true;
}

void CpuEvent::synchronize() const {
  const auto mark = this->mark("Event::synchronize");
  if (!mark) return;
  if (const auto error = mark->wait()) std::rethrow_exception(error);
}

double CpuEvent::elapsed_ms(const Event& end) const {
  const auto* other = dynamic_cast<const CpuEvent*>(&end);
  if (other == nullptr) throw_invalid("Event::elapsed_ms: end is of another device than the start");
  const auto a = mark("Event::elapsed_ms"), b = other->mark("Event::elapsed_ms: end");
  if (!a || !a->finished())
    throw_invalid(std::string("Event::elapsed_ms: the start ") + (a ? "is not reached yet" : "was never recorded"));
  if (!b || !b->finished())
    throw_invalid(std::string("Event::elapsed_ms: end ") + (b ? "is not reached yet" : "was never recorded"));
  return std::chrono::duration<double, std::milli>(b->time() - a->time()).count();
}

// ---- what stream.cpp dispatches to -------------------------------------------------------------------------------

std::shared_ptr<Stream> create_stream(DeviceId device, int, StreamShape shape) {
  return std::make_shared<CpuStream>(device, nullptr, nullptr, shape);
}
std::shared_ptr<Event> create_event(DeviceId) { return std::make_shared<CpuEvent>(); }

void on_complete(const std::shared_ptr<Stream>& stream, std::function<void(std::exception_ptr error)> done) {
  auto& cpu_stream = static_cast<CpuStream&>(*stream);
  cpu_stream.refuse_in_capture("on_complete: the stream is being captured into a graph: its work has not run");
  // A fault, too, is told behind what was queued before, which may still use what `done` holds.
  std::exception_ptr fault;
  try {
    fault_point("stream.complete", cpu_stream);
  } catch (...) {
    fault = std::current_exception();
  }
  cpu_stream.queue().push_marker([done = std::move(done), fault](std::exception_ptr error) mutable {
    deliver(std::move(done), fault ? std::move(fault) : std::move(error));
  });
}

void require_device(DeviceId device) {
  if (device.index != -1)
    throw_invalid("device: expected -1 (the CPU) or a CUDA device's number, got " + std::to_string(device.index));
}

}  // namespace nexus::cpu
