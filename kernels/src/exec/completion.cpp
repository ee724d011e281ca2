// The completion thread, and its helper for background work. One of each per process, started on first use, never
// joined: they sleep when nothing is pending. What is pending at exit is kept, never destroyed: the last reference to a
// stream or a graph would call a driver that is being torn down.
//
// CUDA events are polled rather than waited for: a failed context is then an error of the query, while a callback of
// the driver's would never come. Polling backs off from spinning to sleeping 20, then 50 microseconds.
#include <sys/prctl.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "exec/backend.h"
#include "exec/background_thread.h"
#include "exec/exit_gate.h"
#include "telemetry/host_machine.h"

namespace nexus {
namespace {

using Done = std::function<void(std::exception_ptr)>;
using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

/// A done callback has nobody to report to: by contract it does not throw, and if it does the process ends here.
void call(Done& done, std::exception_ptr error) noexcept { done(std::move(error)); }

class Completions {
 public:
  static Completions& instance() {
    static auto* completions = new Completions;
    return *completions;
  }

  void now(Done done, std::exception_ptr error) {
    std::lock_guard lock(mutex_);
    start();
    ready_.push_back({std::move(done), std::move(error)});
    wake_.notify_one();
  }

  void later(const void* lane, std::function<bool()> finished, Done done) {
    std::lock_guard lock(mutex_);
    start();
    arrived_.push_back({lane, {std::move(finished), std::move(done)}});
    wake_.notify_one();
  }

  void stop(std::chrono::milliseconds patience) { gate_.close(patience); }

 private:
  struct Ready {
    Done done;
    std::exception_ptr error;
  };
  struct Item {
    std::function<bool()> finished;
    Done done;
  };
  struct Lane {
    const void* key;
    std::deque<Item> items;
  };

  /// Under the mutex.
  void start() {
    if (started_) return;
    start_background_thread("nexus-complete", [this] { loop(); });
    started_ = true;
  }

  void loop() {
    prctl(PR_SET_TIMERSLACK, 1000UL);  // nanoseconds; the default rounds a sleep of 20 us up to 70
    const bool may_spin = host_cores_under_quota() > 1;
    std::vector<Lane> lanes;
    Clock::time_point progress = Clock::now();
    for (;;) {
      std::deque<Ready> ready;
      {
        std::unique_lock lock(mutex_);
        if (lanes.empty()) wake_.wait(lock, [&] { return !ready_.empty() || !arrived_.empty(); });
        ready.swap(ready_);
        if (!arrived_.empty()) progress = Clock::now();
        for (auto& [key, item] : arrived_) {
          size_t k = 0;
          while (k < lanes.size() && lanes[k].key != key) ++k;
          if (k == lanes.size()) lanes.push_back({key, {}});
          lanes[k].items.push_back(std::move(item));
        }
        arrived_.clear();
      }
      gate_.enter();
      for (auto& item : ready) call(item.done, std::move(item.error));
      ready.clear();
      if (poll(lanes)) progress = Clock::now();
      gate_.leave();
      if (lanes.empty()) continue;
      const auto idle = Clock::now() - progress;
      if (idle < microseconds(50) && may_spin)
        cpu_relax();
      else
        std::this_thread::sleep_for(idle < microseconds(2000) ? microseconds(20) : microseconds(50));
    }
  }

  /// True when something finished.
  static bool poll(std::vector<Lane>& lanes) {
    bool any = false;
    for (auto& lane : lanes) {
      while (!lane.items.empty()) {
        std::exception_ptr error;
        try {
          if (!lane.items.front().finished()) break;
        } catch (...) {
          error = std::current_exception();
        }
        Item item = std::move(lane.items.front());
        lane.items.pop_front();
        item.finished = nullptr;  // gives the event back before user code sees the completion
        call(item.done, std::move(error));
        any = true;
      }
    }
    std::erase_if(lanes, [](const Lane& lane) { return lane.items.empty(); });
    return any;
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Ready> ready_;
  std::vector<std::pair<const void*, Item>> arrived_;
  bool started_ = false;
  ExitGate gate_;  // around queries, callbacks, and what goes with them
};

/// Runs host work one item at a time, so that a long conversion delays no completion.
class Helper {
 public:
  static Helper& instance() {
    static auto* helper = new Helper;
    return *helper;
  }

  void push(std::function<void()> work, Done done) {
    std::lock_guard lock(mutex_);
    if (!started_) {
      start_background_thread("nexus-helper", [this] { loop(); });
      started_ = true;
    }
    items_.push_back({std::move(work), std::move(done)});
    wake_.notify_one();
  }

  void stop(std::chrono::milliseconds patience) { gate_.close(patience); }

 private:
  struct Item {
    std::function<void()> work;
    Done done;
  };

  void loop() {
    for (;;) {
      Item item;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return !items_.empty(); });
        item = std::move(items_.front());
        items_.pop_front();
      }
      std::exception_ptr error;
      gate_.enter();
      try {
        item.work();
      } catch (...) {
        error = std::current_exception();
      }
      item.work = nullptr;
      gate_.leave();
      deliver(std::move(item.done), std::move(error));
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Item> items_;
  bool started_ = false;
  ExitGate gate_;  // around the work, and what goes with it
};

}  // namespace

void deliver(Done done, std::exception_ptr error) { Completions::instance().now(std::move(done), std::move(error)); }
void deliver_when(const void* lane, std::function<bool()> finished, Done done) {
  Completions::instance().later(lane, std::move(finished), std::move(done));
}

void stop_background_work() {
  // A conversion under way reads page-locked memory, which goes with the driver; gigabytes of it take a second.
  constexpr std::chrono::milliseconds kPatience{2000};
  Completions::instance().stop(kPatience);
  Helper::instance().stop(kPatience);
}

void run_in_background(std::function<void()> work, Done done) {
  if (!work) throw_invalid("run_in_background: work must be callable");
  if (!done) throw_invalid("run_in_background: done must be callable");
  Helper::instance().push(std::move(work), std::move(done));
}

}  // namespace nexus
