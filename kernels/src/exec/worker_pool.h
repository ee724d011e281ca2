// Threads that share loops: the process's own pool behind parallel_for, and one more for each slice of a CPU partition.
//
// A loop is a Job on its caller's stack. Workers and the caller claim blocks of indices from one atomic counter, so
// uneven bodies balance by themselves; which thread runs an index is never visible in a result. Several loops (of
// several streams) may be open at once: a worker takes the first that has work left and room for a helper. The caller
// always works on its own loop and waits only for helpers that are inside a body, so there is no order in which loops
// could wait for each other.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace nexus {

/// Workers hold the pool, so it goes with the last of them: nobody joins a thread.
class WorkerPool : public std::enable_shared_from_this<WorkerPool> {
 public:
  /// Where a slice's workers are: they are virtual workers first, first + 1, …; worker i keeps to cores[i], if given.
  struct Place {
    int first = 0;
    std::vector<int> cores;
  };
  WorkerPool() = default;
  explicit WorkerPool(Place place) : place_(std::move(place)) {}

  /// The threads that a loop runs on, its caller included.
  int threads() const { return threads_.load(std::memory_order_relaxed); }
  /// Workers beyond a lower number end; those of a higher one are started by the next loop, or by start().
  void set_threads(int n);
  /// The same where no number was set yet.
  void set_default_threads(int n);
  /// Starts the workers that are missing. Throws kInternal when the system refuses a thread.
  void start();
  void run(int64_t n, const std::function<void(int64_t)>& body);

  const Place& place() const { return place_; }
  /// Makes this pool the one that loops of the calling thread run on, for good; `self` outlives the thread's loops. The
  /// thread is the pool's first worker and keeps to the pool's cores.
  void adopt_this_thread();

 private:
  struct Job;
  void ensure_workers(int count);
  Job* open_job();
  void worker(int id);

  const Place place_{};
  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  std::vector<Job*> jobs_;
  std::vector<bool> running_;
  std::atomic<uint64_t> published_{0};  // grows with every loop: what a spinning worker watches
  std::atomic<int> threads_{0};         // 0: not yet set
  int sleeping_ = 0;
};

/// The number of virtual workers that the CPU is cut into: 8, or NEXUS_CPU_WORKERS (1 … 256). Throws kInvalidArgument,
/// each time, as long as the variable is wrong.
int cpu_units();

}  // namespace nexus
