// parallel_for and its pools; see worker_pool.h for how a loop is shared.
//
// Between two loops a worker spins for kSpin (a layer issues its loops microseconds apart) and then sleeps.
// The process's pool is never destroyed: its detached workers may be asleep in it when static destructors run.
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <string>
#include <utility>

#include "exec/background_thread.h"
#include "exec/worker_pool.h"
#include "nexus/runtime.h"
#include "telemetry/host_machine.h"

namespace nexus {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxUnits = 256;  // what a trace of LaneView can tell apart
constexpr auto kSpin = std::chrono::microseconds(50);

/// True while this thread runs a loop's body: a loop inside it runs inline.
thread_local bool inside_loop = false;
/// The slice's pool whose thread this is; null: loops go to the process's pool.
thread_local WorkerPool* own_pool = nullptr;
thread_local int own_worker = 0;

/// The variable's value, `fallback` where it is not set; throws kInvalidArgument when it is no integer from 1 to
/// `most`.
int integer_variable(const char* name, int most, int fallback) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  if (*end != '\0' || n < 1 || n > most)
    throw_invalid(std::string(name) + ": expected an integer from 1 to " + std::to_string(most) + ", got '" + text +
                  "'");
  return static_cast<int>(n);
}

/// Cores outside this process's affinity mask, or gone since, are passed over: pinning helps, no result needs it.
void keep_to(const int* cores, size_t count) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (size_t i = 0; i < count; ++i)
    if (cores[i] >= 0 && cores[i] < CPU_SETSIZE) CPU_SET(cores[i], &set);
  if (CPU_COUNT(&set) > 0) (void)pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

WorkerPool& process_pool() {
  static const auto* pool = new std::shared_ptr<WorkerPool>(std::make_shared<WorkerPool>());
  return **pool;
}

/// Throws each time as long as NEXUS_NUM_THREADS is wrong.
WorkerPool& ready_process_pool() {
  WorkerPool& pool = process_pool();
  if (pool.threads() == 0)
    pool.set_default_threads(
        integer_variable("NEXUS_NUM_THREADS", kMaxThreads, std::min(host_cores_under_quota(), kMaxThreads)));
  return pool;
}

}  // namespace

struct WorkerPool::Job {
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

void WorkerPool::set_threads(int n) {
  std::lock_guard lock(mutex_);
  threads_ = n;
  // Workers beyond the new number wake, see it and end.
  published_.fetch_add(1);
  wake_.notify_all();
}

void WorkerPool::set_default_threads(int n) {
  std::lock_guard lock(mutex_);
  if (threads_ == 0) threads_ = n;  // nobody runs yet
}

void WorkerPool::start() {
  std::lock_guard lock(mutex_);
  ensure_workers(threads_.load() - 1);
}

void WorkerPool::adopt_this_thread() {
  own_pool = this;
  own_worker = place_.first;
  keep_to(place_.cores.data(), place_.cores.size());
}

void WorkerPool::run(int64_t n, const std::function<void(int64_t)>& body) {
  const int threads = this->threads();
  if (inside_loop || threads <= 1 || n == 1) {
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

/// Under the mutex. Worker i is there when running_[i].
void WorkerPool::ensure_workers(int count) {
  if (static_cast<int>(running_.size()) < count) running_.resize(static_cast<size_t>(count), false);
  for (int i = 0; i < count; ++i) {
    if (running_[static_cast<size_t>(i)]) continue;
    running_[static_cast<size_t>(i)] = true;
    try {
      start_background_thread("nexus-worker", [self = shared_from_this(), i] { self->worker(i); });
    } catch (...) {
      running_[static_cast<size_t>(i)] = false;
      throw;
    }
  }
}

WorkerPool::Job* WorkerPool::open_job() {
  for (Job* job : jobs_)
    if (job->room > 0 && job->next.load(std::memory_order_relaxed) < job->count) return job;
  return nullptr;
}

void WorkerPool::worker(int id) {
  // The caller of a loop is the pool's first worker.
  const size_t place = static_cast<size_t>(id) + 1;
  if (place < place_.cores.size()) keep_to(&place_.cores[place], 1);
  if (this != &process_pool()) {
    own_pool = this;
    own_worker = place_.first + id + 1;
  }
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

// ---- the public functions ----------------------------------------------------------------------------------------

int cpu_units() { return integer_variable("NEXUS_CPU_WORKERS", kMaxUnits, 8); }

int cpu_threads() { return ready_process_pool().threads(); }
void set_cpu_threads(int n) {
  if (n < 1 || n > kMaxThreads)
    throw_invalid("set_cpu_threads: n must be from 1 to " + std::to_string(kMaxThreads) + ", got " + std::to_string(n));
  process_pool().set_threads(n);
}

void parallel_for(int64_t n, const std::function<void(int64_t)>& body) {
  if (n < 0) throw_invalid("parallel_for: n must not be negative, got " + std::to_string(n));
  if (!body) throw_invalid("parallel_for: body must be callable");
  if (n > 0) (own_pool != nullptr ? *own_pool : ready_process_pool()).run(n, body);
}

int current_worker() { return own_worker; }

void parallel_for_on(const std::vector<WorkerLoop>& loops) {
  struct Task {
    const WorkerLoop* loop;
    std::atomic<int64_t>* next;
    int k;  // which of the loop's workers
  };
  std::vector<std::atomic<int64_t>> next(loops.size());
  std::vector<Task> tasks;
  for (size_t i = 0; i < loops.size(); ++i) {
    const WorkerLoop& loop = loops[i];
    if (loop.first_worker < 0)
      throw_invalid("parallel_for_on: first_worker must not be negative, got " + std::to_string(loop.first_worker));
    if (loop.workers < 1)
      throw_invalid("parallel_for_on: workers must be at least 1, got " + std::to_string(loop.workers));
    if (loop.n < 0) throw_invalid("parallel_for_on: n must not be negative, got " + std::to_string(loop.n));
    if (!loop.body) throw_invalid("parallel_for_on: body must be callable");
    next[i] = loop.workers;
    for (int k = 0; k < loop.workers && k < loop.n; ++k) tasks.push_back({&loop, &next[i], k});
  }
  const WorkerPool* const slice = own_pool;
  const auto run = [&](int64_t t) {
    const auto& [loop, rest, k] = tasks[static_cast<size_t>(t)];
    struct Restore {
      int before;
      ~Restore() { own_worker = before; }
    } restore{own_worker};
    const int number = loop->first_worker + k;
    own_worker = slice == nullptr ? number : slice->place().first + number % slice->threads();
    for (int64_t i = k; i < loop->n; i = rest->fetch_add(1, std::memory_order_relaxed)) loop->body(i);
  };
  parallel_for(static_cast<int64_t>(tasks.size()), run);
}

void parallel_for_on(int first_worker, int workers, int64_t n, const std::function<void(int64_t)>& body) {
  parallel_for_on({WorkerLoop{first_worker, workers, n, body}});
}

}  // namespace nexus
