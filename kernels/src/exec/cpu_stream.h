// The CPU's Stream: one worker thread that runs closures in order. The queue is a shared object of its own: when the
// Stream goes, its worker finishes what is queued and ends, so that nobody ever joins a thread, not even the worker
// itself (which often drops the last reference, inside a closure).
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "exec/backend.h"
#include "exec/worker_pool.h"
#include "nexus/step.h"

namespace nexus::cpu {

using Clock = std::chrono::steady_clock;

/// One recording of an event.
class Mark {
 public:
  void finish(std::exception_ptr error);
  bool finished() const;
  /// Blocks; then the error that the stream had at this point, or null.
  std::exception_ptr wait() const;
  std::exception_ptr error() const;
  Clock::time_point time() const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable done_;
  bool finished_ = false;
  std::exception_ptr error_;
  Clock::time_point time_;
};

class Recording;
struct CaptureMark;

/// The threads of a CPU slice: they end when the partition and the last of its streams have gone.
struct SliceWorkers {
  SliceWorkers(std::shared_ptr<WorkerPool> pool, int units) : pool(std::move(pool)), units(units) {}
  SliceWorkers(const SliceWorkers&) = delete;
  SliceWorkers& operator=(const SliceWorkers&) = delete;
  const std::shared_ptr<WorkerPool> pool;
  const int units;
  ~SliceWorkers() { pool->set_threads(1); }
};

class Queue : public std::enable_shared_from_this<Queue> {
 public:
  /// Skipped once the queue has failed; an exception makes it fail.
  using Work = std::function<void()>;
  /// Runs in any case, with the error that the queue has by then; must not throw. Runs at once when the queue is idle.
  using Marker = std::function<void(std::exception_ptr error)>;

  /// slice: whose first worker the queue's thread is; null for a plain stream.
  explicit Queue(std::shared_ptr<SliceWorkers> slice) : slice_(std::move(slice)) {}

  void push(Work work);
  void push_marker(Marker marker);
  void synchronize();
  void close();

 private:
  struct Task {
    Work work;
    Marker marker;
  };
  void push_locked(std::unique_lock<std::mutex>& lock, Task task);
  void loop();

  const std::shared_ptr<SliceWorkers> slice_;
  std::mutex mutex_;
  std::condition_variable wake_, progress_;
  std::deque<Task> tasks_;
  std::atomic<uint64_t> pushed_{0};  // changed under the mutex; a spinning worker watches it without
  uint64_t finished_ = 0;
  bool started_ = false, sleeping_ = false;
  std::atomic<bool> closed_{false};
  std::exception_ptr error_;
};

class CpuStream final : public Stream {
 public:
  /// owner: the partition that the slice is of, kept alive.
  explicit CpuStream(DeviceId device, std::shared_ptr<SliceWorkers> slice = nullptr,
                     std::shared_ptr<Partition> owner = nullptr, StreamShape shape = {})
      : Stream(device, shape),
        units_(slice ? slice->units : 0),
        owner_(std::move(owner)),
        queue_(std::make_shared<Queue>(std::move(slice))) {}
  ~CpuStream() override { queue_->close(); }
  void enqueue(std::function<void()> fn) override;
  void* cuda_stream() override;
  void synchronize() override;
  void wait(const Event& event) override;
  void copy(void* dst, const void* src, size_t bytes) override;
  void fill(void* dst, int byte, size_t bytes) override;
  int width() const override {
    const int units = in_slice() ? units_ : cpu_units();
    return shape_.max_width > 0 ? std::min(units, shape_.max_width) : units;
  }
  bool capturing() const override { return capturing_.load(std::memory_order_relaxed); }

  bool in_slice() const override { return units_ > 0; }
  Queue& queue() { return *queue_; }
  std::shared_ptr<Queue> shared_queue() const { return queue_; }

  /// The capture that the stream takes part in, and its number there; null when none.
  struct Capture {
    std::shared_ptr<Recording> recording;
    int lane = 0;
  };
  Capture capture() const;
  bool enter_capture(std::shared_ptr<Recording> recording, int lane);
  void leave_capture() noexcept;
  /// Fails the capture with `what`, if there is one.
  void refuse_in_capture(const char* what) const;

 private:
  void push(Queue::Work work);

  const int units_;
  const std::shared_ptr<Partition> owner_;
  const std::shared_ptr<Queue> queue_;
  std::atomic<bool> capturing_{false};
  mutable std::mutex capture_mutex_;
  Capture capture_;
};

/// Stream-ordered *current = block; recorded in a graph, a launch's block takes its place.
void enqueue_begin_step(Stream& stream, const StepBlock& block, StepBlock* current);

class CpuEvent final : public Event {
 public:
  void record(Stream& stream) override;
  bool ready() const override;
  void synchronize() const override;
  double elapsed_ms(const Event& end) const override;
  /// The latest recording: eager, in a capture, or none.
  struct Latest {
    std::shared_ptr<const Mark> mark;
    std::shared_ptr<const CaptureMark> captured;
  };
  Latest latest() const;

 private:
  /// Of an eager recording; throws kGraphCapture when the latest was in a capture.
  std::shared_ptr<const Mark> mark(const char* call) const;

  mutable std::mutex mutex_;
  Latest latest_;
};

}  // namespace nexus::cpu
