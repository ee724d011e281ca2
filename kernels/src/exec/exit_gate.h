// Where a thread of the library's own stops when the process exits.
//
// At exit, drivers and their libraries tear down what they made while our detached threads still run. A thread that
// calls a driver then, be it only by letting go of the last reference to a stream, uses what is being freed. So it
// enters a gate before such calls, and the exit handler closes the gate first.
#pragma once
#include <atomic>
#include <chrono>
#include <thread>

namespace nexus {

/// Of one thread.
class ExitGate {
 public:
  /// That thread, before it calls or destroys what may call. Does not return once the gate is closed: the thread stays
  /// here, with all that it holds, until the process has ended.
  void enter() noexcept {
    inside_ = std::this_thread::get_id();
    while (closed_) {
      inside_ = std::thread::id();
      std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  void leave() noexcept { inside_ = std::thread::id(); }

  /// In an exit handler. Whoever is inside gets `patience` to come out; false: it did not, as in a call that hangs, and
  /// is left alone. Returns at once on the gate's own thread, from where exit() was called.
  bool close(std::chrono::milliseconds patience) noexcept {
    closed_ = true;
    const auto deadline = std::chrono::steady_clock::now() + patience;
    for (;;) {
      const std::thread::id inside = inside_;
      if (inside == std::thread::id() || inside == std::this_thread::get_id()) return true;
      if (std::chrono::steady_clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  }

 private:
  // Both in one order for all: either the thread sees that the gate is closed, or close() sees the thread.
  std::atomic<std::thread::id> inside_{};
  std::atomic<bool> closed_{false};
};

}  // namespace nexus
