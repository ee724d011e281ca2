// The shared CPU workers behind parallel_for.
//
// A loop is a Job on its caller's stack. Workers and the caller claim blocks of indices from one atomic counter, so
// uneven bodies balance by themselves; which thread runs an index is never visible in a result. Several loops (of
// several streams) may be open at once: a worker takes the first that has work left and room for a helper. The caller
// always works on its own loop and waits only for helpers that are inside a body, so there is no order in which loops
// could wait for each other.
//
// Between two loops a worker spins for kSpin (a layer issues its loops microseconds apart) and then sleeps.
// The pool is never destroyed: its detached workers may be asleep in it when static destructors run.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "exec/background_thread.h"
#include "nexus/runtime.h"
#include "telemetry/host_machine.h"

namespace nexus {
namespace {

constexpr int kMaxThreads = 1024;
constexpr auto kSpin = std::chrono::microseconds(50);

/// True while this thread runs a loop's body: a loop inside it runs inline.
thread_local bool inside_loop = false;

struct Job {
  const std::function<void(int64_t)>* body;
  int64_t count, block;
  std::atomic<int64_t> next{0};
  std::atomic<int> helpers{0};  // workers inside; changed under the pool's mutex
  int room = 0;                 // helpers that may still join; under the pool's mutex
  std::exception_ptr error{};   // the first one; under the pool's mutex

  void work(std::mutex& mutex) {
    const bool outer = std::exchange(inside_loop, true);
    try {
      for (int64_t begin; (begin = next.fetch_add(block, std::memory_order_relaxed)) < count;)
        for (int64_t i = begin, end = std::min(begin + block, count); i < end; ++i) (*body)(i);
    } catch (...) {
      next.store(count, std::memory_order_relaxed);  // nobody claims more
      std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
    inside_loop = outer;
  }
};

int default_threads() {
  const char* text = std::getenv("NEXUS_NUM_THREADS");
  if (text == nullptr || *text == '\0') return std::min(host_cores_under_quota(), kMaxThreads);
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  if (*end != '\0' || n < 1 || n > kMaxThreads)
    throw_invalid("NEXUS_NUM_THREADS: expected an integer from 1 to " + std::to_string(kMaxThreads) + ", got '" + text +
                  "'");
  return static_cast<int>(n);
}

class ThreadPool {
 public:
  static ThreadPool& instance() {
    static ThreadPool* pool = new ThreadPool;
    return *pool;
  }

  int threads() {
    const int known = threads_.load(std::memory_order_relaxed);
    if (known > 0) return known;
    const int n = default_threads();  // throws each time as long as the variable is wrong
    int unset = 0;
    threads_.compare_exchange_strong(unset, n);
    return threads_.load();
  }

  void set_threads(int n) {
    if (n < 1 || n > kMaxThreads)
      throw_invalid("set_cpu_threads: n must be from 1 to " + std::to_string(kMaxThreads) + ", got " +
                    std::to_string(n));
    std::lock_guard lock(mutex_);
    threads_ = n;
    // Workers beyond the new number wake, see it and end.
    published_.fetch_add(1);
    wake_.notify_all();
  }

  void run(int64_t n, const std::function<void(int64_t)>& body) {
    const int threads = this->threads();
    if (inside_loop || threads == 1 || n == 1) {
      for (int64_t i = 0; i < n; ++i) body(i);
      return;
    }
    Job job{&body, n, std::clamp<int64_t>(n / (16 * threads), 1, 64)};
    {
      std::unique_lock lock(mutex_);
      job.room = static_cast<int>(std::min<int64_t>(threads - 1, (n - 1) / job.block));
      ensure_workers(threads - 1);
      jobs_.push_back(&job);
      published_.fetch_add(1, std::memory_order_release);
      for (int k = std::min(job.room, sleeping_); k > 0; --k) wake_.notify_one();
    }
    job.work(mutex_);
    std::unique_lock lock(mutex_);
    std::erase(jobs_, &job);  // nobody joins any more
    if (job.helpers.load() > 0) {
      lock.unlock();
      const auto start = std::chrono::steady_clock::now();
      while (job.helpers.load(std::memory_order_acquire) > 0 && std::chrono::steady_clock::now() - start < kSpin)
        cpu_relax();
      lock.lock();
      finished_.wait(lock, [&] { return job.helpers.load() == 0; });
    }
    if (job.error) std::rethrow_exception(job.error);
  }

 private:
  /// Under the mutex. Worker i is there when running_[i].
  void ensure_workers(int count) {
    if (static_cast<int>(running_.size()) < count) running_.resize(static_cast<size_t>(count), false);
    for (int i = 0; i < count; ++i) {
      if (running_[static_cast<size_t>(i)]) continue;
      running_[static_cast<size_t>(i)] = true;
      try {
        start_background_thread("nexus-worker", [this, i] { worker(i); });
      } catch (...) {
        running_[static_cast<size_t>(i)] = false;
        throw;
      }
    }
  }

  Job* open_job() {
    for (Job* job : jobs_)
      if (job->room > 0 && job->next.load(std::memory_order_relaxed) < job->count) return job;
    return nullptr;
  }

  void worker(int id) {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (id >= threads_.load() - 1) {
        running_[static_cast<size_t>(id)] = false;
        return;
      }
      if (Job* job = open_job()) {
        --job->room;
        job->helpers.fetch_add(1);
        lock.unlock();
        job->work(mutex_);
        lock.lock();
        // The caller may return as soon as it reads 0: the job is not touched after this.
        if (job->helpers.fetch_sub(1, std::memory_order_release) == 1) finished_.notify_all();
        continue;
      }
      const uint64_t seen = published_.load(std::memory_order_acquire);
      lock.unlock();
      const auto start = std::chrono::steady_clock::now();
      while (published_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() - start < kSpin)
        cpu_relax();
      lock.lock();
      if (published_.load() != seen) continue;
      ++sleeping_;
      wake_.wait(lock, [&] { return published_.load() != seen; });
      --sleeping_;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, finished_;
  std::vector<Job*> jobs_;
  std::vector<bool> running_;
  std::atomic<uint64_t> published_{0};  // grows with every loop: what a spinning worker watches
  std::atomic<int> threads_{0};         // 0: not yet asked for
  int sleeping_ = 0;
};

}  // namespace

int cpu_threads() { return ThreadPool::instance().threads(); }
void set_cpu_threads(int n) { ThreadPool::instance().set_threads(n); }

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
  if (n < 0) throw_invalid("parallel_for: n must not be negative, got " + std::to_string(n));
  if (!body) throw_invalid("parallel_for: body must be callable");
  if (n > 0) ThreadPool::instance().run(n, body);
}

}  // namespace nexus
