// Branches of a stream's work on other streams: they begin at one point of it, and end before another.
#pragma once
#include <memory>
#include <vector>

#include "nexus/runtime.h"

namespace nexus {

/// Keeps its events, so that steady use makes none. For one thread at a time.
class ForkJoin {
 public:
  explicit ForkJoin(DeviceId device) : device_(device) {}
  /// Makes the events of `branches` now: none is made in a graph capture.
  void reserve(size_t branches);

  /// Branches begin here.
  void fork(const std::shared_ptr<Stream>& from);
  /// `branch` waits for the fork. The forking stream itself, or one that is a branch already, may be given too.
  void begin(const std::shared_ptr<Stream>& branch);
  /// The forking stream waits for all branches.
  void join();
  /// After a failure between fork() and join(): the forking stream waits for what the branches have so far; where even
  /// that cannot be queued, the host waits. So the caller's memory is never in use beyond the forking stream.
  void abandon() noexcept;

 private:
  DeviceId device_;
  std::shared_ptr<Event> forked_;
  std::vector<std::shared_ptr<Event>> reached_;  // by branch
  std::shared_ptr<Stream> from_;
  std::vector<std::shared_ptr<Stream>> open_;
};

}  // namespace nexus
