// The CPU's Stream: one worker thread that runs closures in order. The queue is a shared object of its own: when the
// Stream goes, its worker finishes what is queued and ends, so that nobody ever joins a thread, not even the worker
// itself (which often drops the last reference, inside a closure).
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "exec/backend.h"

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

class Queue : public std::enable_shared_from_this<Queue> {
 public:
  /// Skipped once the queue has failed; an exception makes it fail.
  using Work = std::function<void()>;
  /// Runs in any case, with the error that the queue has by then; must not throw. Runs at once when the queue is idle.
  using Marker = std::function<void(std::exception_ptr error)>;

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
  explicit CpuStream(DeviceId device) : Stream(device), queue_(std::make_shared<Queue>()) {}
  ~CpuStream() override { queue_->close(); }
  void enqueue(std::function<void()> fn) override;
  void* cuda_stream() override;
  void synchronize() override { queue_->synchronize(); }
  void wait(const Event& event) override;
  void copy(void* dst, const void* src, size_t bytes) override;
  void fill(void* dst, int byte, size_t bytes) override;
  Queue& queue() { return *queue_; }

 private:
  std::shared_ptr<Queue> queue_;
};

class CpuEvent final : public Event {
 public:
  void record(Stream& stream) override;
  bool ready() const override;
  void synchronize() const override;
  double elapsed_ms(const Event& end) const override;
  /// The latest recording, or null.
  std::shared_ptr<const Mark> mark() const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<Mark> mark_;
};

}  // namespace nexus::cpu
