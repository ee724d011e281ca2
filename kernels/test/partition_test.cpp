// Partitions as runtime.h promises them: disjoint units, honest grants, streams that keep to their slice. The CPU's
// virtual workers here; the SMs of cuda:0 as far as they show without a kernel (the proof by %smid is the experts').
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>

#include "execution.h"
#include "harness.h"

using namespace nexus;
using namespace nexus::test;
using namespace std::chrono_literals;

namespace {

const DeviceId kCpu{-1};

/// The workers that ran the indices of a loop on `stream`; every index waits a little, so that all have time to come.
std::set<int> workers_of(const std::shared_ptr<Stream>& stream, int64_t n = 64) {
  auto seen = std::make_shared<std::pair<std::mutex, std::set<int>>>();
  stream->enqueue([seen, n] {
    parallel_for(n, [&](int64_t) {
      std::this_thread::sleep_for(300us);
      const std::lock_guard lock(seen->first);
      seen->second.insert(current_worker());
    });
  });
  stream->synchronize();
  return seen->second;
}

std::set<int> range(int begin, int end) {
  std::set<int> out;
  for (int i = begin; i < end; ++i) out.insert(i);
  return out;
}

/// Sizes of a layout of three slices that uses the whole device.
std::vector<int> whole_device(const PartitionInfo& info) {
  const int step = std::max(info.granularity, info.minimum);
  return {step, 2 * step, info.units - 3 * step};
}

}  // namespace

TEST("partition_info says what a device can be cut into, and why") {
  for (const auto device : devices()) {
    const auto info = partition_info(device);
    CHECK_LE(1, info.units);
    CHECK_LE(1, info.granularity);
    CHECK_LE(1, info.minimum);
    CHECK_LE(info.minimum, info.units);
    CHECK(!info.reason.empty());
    CHECK_EQ(Stream::create(device)->width(), info.units);
  }
  expect_error(ErrorCode::kUnsupported, [] { (void)partition_info(DeviceId{63}); });
  expect_error(ErrorCode::kUnsupported, [] { (void)Partition::create(DeviceId{63}, {1}); });
}

TEST("a layout is granted as it was asked for, and its streams are as wide as their slices") {
  for (const auto device : devices()) {
    const auto info = partition_info(device);
    const auto units = whole_device(info);
    const auto partition = Partition::create(device, units);
    CHECK(partition->device() == device);
    CHECK_EQ(partition->grants().size(), units.size());
    int sum = 0;
    for (size_t i = 0; i < units.size(); ++i) {
      CHECK_EQ(partition->grants()[i].units, units[i]);
      CHECK(partition->grants()[i].enforcement == info.enforcement);
      CHECK(!partition->grants()[i].reason.empty());
      CHECK_EQ(partition->create_stream(static_cast<int>(i), 0)->width(), units[i]);
      CHECK_EQ(partition->create_stream(static_cast<int>(i), -1)->width(), units[i]);
      sum += partition->grants()[i].units;
    }
    CHECK_EQ(sum, info.units);  // no unit is idle
  }
}

TEST("a slice's stream is a stream like any other: order, events, buffers, completions") {
  for (const auto device : devices()) {
    const auto partition = Partition::create(device, whole_device(partition_info(device)));
    const auto plain = Stream::create(device), first = partition->create_stream(0, 0),
               last = partition->create_stream(2, 0);
    const auto forked = Event::create(device), joined = Event::create(device);
    const auto in = Buffer::allocate(first, 1 << 20), out = Buffer::allocate(last, 1 << 20);
    for (int i = 1; i < 20; ++i) {
      first->fill(in->data(), i, in->bytes());
      forked->record(*first);
      last->wait(*forked);
      last->copy(out->data(), in->data(), out->bytes());
      in->record_use(last);
      joined->record(*last);
      first->wait(*joined);
      plain->wait(*joined);
      const auto host = HostBuffer::allocate(device, out->bytes());
      plain->copy(host->data(), out->data(), out->bytes());
      plain->synchronize();
      const auto* bytes = static_cast<const uint8_t*>(host->data());
      for (size_t k = 0; k < out->bytes(); k += 4099) CHECK_EQ(static_cast<int>(bytes[k]), i);
    }
  }
}

TEST("a graph that was recorded over slices runs in them, from any stream") {
  for (const auto device : devices()) {
    const auto partition = Partition::create(device, whole_device(partition_info(device)));
    const auto plain = Stream::create(device);
    const auto hot = partition->create_stream(0, 0), cold = partition->create_stream(1, 0);
    const auto forked = Event::create(device), a = Event::create(device), b = Event::create(device);
    const auto in = Buffer::allocate(plain, 4096), x = Buffer::allocate(plain, 4096), y = Buffer::allocate(plain, 4096);
    std::mutex mutex;
    std::set<int> hot_seen, cold_seen;
    const auto trace = [&](std::set<int>& seen) {
      return [&] {
        parallel_for(32, [&](int64_t) {
          std::this_thread::sleep_for(100us);
          const std::lock_guard lock(mutex);
          seen.insert(current_worker());
        });
      };
    };
    auto graph = Graph::capture(plain, [&] {
      forked->record(*plain);
      hot->wait(*forked);
      cold->wait(*forked);
      hot->copy(x->data(), in->data(), 4096);
      cold->copy(y->data(), in->data(), 4096);
      if (device.is_cpu()) hot->enqueue(trace(hot_seen)), cold->enqueue(trace(cold_seen));
      a->record(*hot);
      b->record(*cold);
      plain->wait(*a);
      plain->wait(*b);
    });
    // What was begun in a slice stays there, too.
    std::set<int> origin_seen;
    auto inside = Graph::capture(cold, [&] {
      cold->fill(y->data(), 99, 64);
      if (device.is_cpu()) cold->enqueue(trace(origin_seen));
    });
    const auto elsewhere = Stream::create(device);
    for (const auto& stream : {plain, elsewhere, hot}) {
      for (int i = 0; i < 10; ++i) {
        stream->fill(in->data(), i + 1, 4096);
        graph->launch(stream);
        const auto host = HostBuffer::allocate(device, 8192);
        stream->copy(host->data(), x->data(), 4096);
        stream->copy(static_cast<char*>(host->data()) + 4096, y->data(), 4096);
        inside->launch(stream);
        stream->synchronize();
        for (int k = 0; k < 8192; k += 129) CHECK_EQ(static_cast<int>(static_cast<uint8_t*>(host->data())[k]), i + 1);
      }
    }
    if (!device.is_cpu()) continue;
    const auto within = [](const std::set<int>& seen, const std::set<int>& allowed) {
      for (int w : seen)
        if (!allowed.contains(w)) return false;
      return !seen.empty();
    };
    CHECK(within(hot_seen, range(0, 1)));
    CHECK(within(cold_seen, range(1, 3)));
    CHECK(within(origin_seen, range(1, 3)));
  }
}

TEST("sizes that are not possible are refused by slice, with what is") {
  for (const auto device : devices()) {
    const auto info = partition_info(device);
    const auto refused = [&](const std::vector<int>& units, const std::string& says) {
      const auto message = expect_error(ErrorCode::kInvalidArgument, [&] { (void)Partition::create(device, units); });
      if (message.find(says) == std::string::npos) NEXUS_FAIL(message + " does not name " + says);
    };
    refused({}, "units");
    refused({info.granularity, 0}, "units[1]");
    refused({-8}, "units[0]");
    refused({info.units + info.granularity}, "units[0]");
    refused({info.minimum, info.units}, "units[1]");
    if (info.granularity > 1) refused({info.minimum + 1}, "units[0]");
    const auto partition = Partition::create(device, {info.minimum});
    for (const int slice : {-1, 1})
      CHECK(expect_error(ErrorCode::kInvalidArgument, [&] {
              (void)partition->create_stream(slice, 0);
            }).find(std::to_string(slice)) != std::string::npos);
  }
}

TEST("two layouts may live at once, and a stream outlives the references to its partition") {
  for (const auto device : devices()) {
    const auto info = partition_info(device);
    auto one = Partition::create(device, whole_device(info));
    const auto two = Partition::create(device, {info.units});
    const auto a = one->create_stream(1, 0), b = two->create_stream(0, 0);
    one.reset();
    const auto buffer = Buffer::allocate(a, 64);
    for (int i = 0; i < 20; ++i) {
      a->fill(buffer->data(), i, 64);
      b->fill(buffer->data(), i, 0);
    }
    a->synchronize();
    b->synchronize();
    CHECK_EQ(a->width(), whole_device(info)[1]);
    CHECK_EQ(b->width(), info.units);
  }
}

TEST("partitions made and dropped 200 times, with work pending, leave no thread and no memory behind") {
  for (const auto device : devices()) {
    const auto units = whole_device(partition_info(device));
    const auto observer = Stream::create(device);
    const auto buffer = Buffer::allocate(observer, 3 * 4096);
    const auto done = Event::create(device), passed = Event::create(device);
    observer->synchronize();
    const auto settle = [&](int threads) {  // what ended goes, on threads of its own
      observer->synchronize();
      for (int i = 0; i < 5000 && threads_of_process() > threads; ++i) std::this_thread::sleep_for(1ms);
      std::this_thread::sleep_for(200ms);
    };
    const auto held = [&] {
      const auto now = memory_stats(device);
      return device.is_cpu() ? static_cast<int64_t>(mallinfo2().uordblks) : now.total_bytes - now.free_bytes;
    };
    const int threads_before = threads_of_process();
    const auto round = [&](int i) {
      const auto partition = Partition::create(device, units);
      for (int s = 0; s < 3; ++s) {
        const auto stream = partition->create_stream(s, 0);
        stream->wait(*passed);
        if (device.is_cpu()) stream->enqueue([] { parallel_for(16, [](int64_t) {}); });
        stream->fill(static_cast<char*>(buffer->data()) + 4096 * s, i, 4096);
        done->record(*stream);
        observer->wait(*done);
      }
      observer->fill(buffer->data(), i, 1);
      passed->record(*observer);  // the next round's fills come after
      if (i % 10 == 9) observer->synchronize();
    };
    for (int i = 0; i < 20; ++i) round(i);
    settle(threads_before + (device.is_cpu() ? 1 : 3));  // the observer's; CUDA's completions and helper
    const int threads = threads_of_process();
    const int64_t held_when_warm = held();
    for (int i = 20; i < 200; ++i) round(i);
    settle(threads);
    CHECK_LE(threads_of_process(), threads);
    CHECK_LE(held(), held_when_warm + (device.is_cpu() ? int64_t{128} << 10 : int64_t{32} << 20));
  }
}

// ---- virtual workers ---------------------------------------------------------------------------------------------

TEST("CPU slices: each loop runs on its slice's workers, all of them, and on no other") {
  const auto info = partition_info(kCpu);
  const auto units = whole_device(info);
  const auto partition = Partition::create(kCpu, units);
  int first = 0;
  for (size_t i = 0; i < units.size(); ++i) {
    const auto stream = partition->create_stream(static_cast<int>(i), 0);
    std::set<int> seen;
    const auto wanted = range(first, first + units[i]);
    for (int attempt = 0; attempt < 20 && seen != wanted; ++attempt) {  // a busy machine may keep a worker away
      const auto now = workers_of(stream);
      for (int w : now) CHECK(wanted.contains(w));
      seen.insert(now.begin(), now.end());
    }
    CHECK(seen == wanted);
    first += units[i];
  }
  CHECK_EQ(first, info.units);
  CHECK_EQ(current_worker(), 0);
}

TEST("CPU slices: a loop has the threads of its slice, whatever the process's pool has") {
  const int before = cpu_threads();
  set_cpu_threads(1);
  const auto partition = Partition::create(kCpu, {3, 2});
  const auto stream = partition->create_stream(0, 0);
  std::atomic<int> inside{0};
  std::atomic<bool> met{false};
  stream->enqueue([&] {
    parallel_for(3, [&](int64_t) {  // ends only when three threads are in it
      ++inside;
      for (const auto end = std::chrono::steady_clock::now() + 20s;
           inside < 3 && std::chrono::steady_clock::now() < end;)
        std::this_thread::yield();
      if (inside == 3) met = true;
    });
  });
  stream->synchronize();
  set_cpu_threads(before);
  CHECK(met);
}

TEST("CPU slices: slices run at the same time (a barrier between them is passed)") {
  const auto partition = Partition::create(kCpu, {2, 3, 3});
  std::vector<std::shared_ptr<Stream>> streams;
  std::atomic<int> inside{0}, passed{0};
  for (int s = 0; s < 3; ++s) {
    streams.push_back(partition->create_stream(s, 0));
    streams.back()->enqueue([&, n = partition->grants()[static_cast<size_t>(s)].units] {
      parallel_for(n, [&](int64_t) {  // all 8 workers of all slices
        ++inside;
        for (const auto end = std::chrono::steady_clock::now() + 20s;
             inside < 8 && std::chrono::steady_clock::now() < end;)
          std::this_thread::yield();
        if (inside == 8) ++passed;
      });
    });
  }
  for (const auto& stream : streams) stream->synchronize();
  CHECK_EQ(passed.load(), 8);
}

TEST("CPU slices: an exception in a slice's loop fails that stream and leaves the slice usable") {
  const auto partition = Partition::create(kCpu, {2, 2});
  const auto stream = partition->create_stream(1, 0);
  stream->enqueue([] {
    parallel_for(100, [](int64_t i) {
      if (i == 50) throw Error(ErrorCode::kInternal, "index 50");
    });
  });
  CHECK_EQ(expect_error(ErrorCode::kInternal, [&] { stream->synchronize(); }), "index 50");
  for (int w : workers_of(partition->create_stream(1, 0))) CHECK(w == 2 || w == 3);
}

TEST("parallel_for_on: every index once, on its loop's workers, loops together") {
  const int before = cpu_threads();
  for (const int threads : {1, 2, 5}) {
    set_cpu_threads(threads);
    std::vector<std::vector<int>> worker(3);
    std::vector<std::vector<std::atomic<int>>> runs;
    const std::vector<int> first{0, 1, 4}, count{1, 3, 4};
    std::vector<WorkerLoop> loops;
    for (size_t l = 0; l < 3; ++l) {
      const size_t n = l == 2 ? 2 : 100 + l;
      worker[l].assign(n, -1);
      runs.emplace_back(n);
      loops.push_back({first[l], count[l], static_cast<int64_t>(n), [&worker, &runs, l](int64_t i) {
                         worker[l][static_cast<size_t>(i)] = current_worker();
                         ++runs[l][static_cast<size_t>(i)];
                       }});
    }
    parallel_for_on(loops);
    for (size_t l = 0; l < 3; ++l)
      for (size_t i = 0; i < worker[l].size(); ++i) {
        CHECK_EQ(runs[l][i].load(), 1);
        CHECK(worker[l][i] >= first[l] && worker[l][i] < first[l] + count[l]);
        if (static_cast<int>(i) < count[l]) CHECK_EQ(worker[l][i], first[l] + static_cast<int>(i));
      }
    CHECK_EQ(current_worker(), 0);
  }
  set_cpu_threads(2);
  std::atomic<int> inside{0}, passed{0};  // neither loop ends before the other has begun
  const auto meet = [&](int64_t) {
    ++inside;
    for (const auto end = std::chrono::steady_clock::now() + 20s; inside < 2 && std::chrono::steady_clock::now() < end;)
      std::this_thread::yield();
    if (inside == 2) ++passed;
  };
  parallel_for_on({{0, 2, 1, meet}, {2, 6, 1, meet}});
  CHECK_EQ(passed.load(), 2);
  set_cpu_threads(before);
}

TEST("parallel_for_on: arguments, errors, and a slice's stream") {
  const auto nothing = [](int64_t) {};
  expect_error(ErrorCode::kInvalidArgument, [&] { parallel_for_on(-1, 1, 1, nothing); });
  expect_error(ErrorCode::kInvalidArgument, [&] { parallel_for_on(0, 0, 1, nothing); });
  expect_error(ErrorCode::kInvalidArgument, [&] { parallel_for_on(0, 1, -1, nothing); });
  expect_error(ErrorCode::kInvalidArgument, [&] { parallel_for_on(0, 1, 1, nullptr); });
  parallel_for_on({});
  parallel_for_on(0, 4, 0, nothing);
  CHECK_EQ(expect_error(ErrorCode::kInternal,
                        [&] {
                          parallel_for_on(0, 4, 100, [](int64_t i) {
                            if (i == 77) throw Error(ErrorCode::kInternal, "77");
                          });
                        }),
           "77");
  CHECK_EQ(current_worker(), 0);
  const auto partition = Partition::create(kCpu, {3, 2});
  const auto stream = partition->create_stream(1, 0);
  std::set<int> seen;
  std::mutex mutex;
  stream->enqueue([&] {
    parallel_for_on(0, 8, 64, [&](int64_t) {
      const std::lock_guard lock(mutex);
      seen.insert(current_worker());
    });
  });
  stream->synchronize();
  CHECK(seen == range(3, 5));
}

TEST("NEXUS_CPU_WORKERS sets the number of virtual workers; a bad value is named on use") {
  constexpr const char* kName = "NEXUS_CPU_WORKERS sets";
  if (!is_child()) {
    for (const char* value : {"1", "12", "256", "0", "257", "-2", "4x", "many"})
      CHECK_EQ(run_in_child(kName, "NEXUS_CPU_WORKERS", value), 0);
    return;
  }
  const std::string value = std::getenv("NEXUS_CPU_WORKERS");
  if (value == "1" || value == "12" || value == "256") {
    const int n = std::atoi(value.c_str());
    const auto info = partition_info(kCpu);
    CHECK_EQ(info.units, n);
    CHECK_EQ(Stream::create(kCpu)->width(), n);
    CHECK_EQ(Partition::create(kCpu, {n})->grants()[0].units, n);
    expect_error(ErrorCode::kInvalidArgument, [&] { (void)Partition::create(kCpu, {n, 1}); });
    if (n == 1) CHECK(info.enforcement == Enforcement::kHardware);
    return;
  }
  for (int i = 0; i < 2; ++i) {
    const auto message = expect_error(ErrorCode::kInvalidArgument, [] { (void)partition_info(kCpu); });
    CHECK(message.find("NEXUS_CPU_WORKERS") != std::string::npos &&
          message.find("'" + value + "'") != std::string::npos);
  }
}

TEST("CPU slices are pinned, and say so, exactly where there are cores enough") {
  const auto info = partition_info(kCpu);
  cpu_set_t all;
  CPU_ZERO(&all);
  CHECK(sched_getaffinity(getpid(), sizeof all, &all) == 0);
  if (CPU_COUNT(&all) < info.units) CHECK(info.enforcement == Enforcement::kCooperative);
  const auto partition = Partition::create(kCpu, {info.units});
  const auto stream = partition->create_stream(0, 0);
  std::atomic<int> cores{0};
  stream->enqueue([&] {
    cpu_set_t own;
    CPU_ZERO(&own);
    if (pthread_getaffinity_np(pthread_self(), sizeof own, &own) == 0) cores = CPU_COUNT(&own);
  });
  stream->synchronize();
  CHECK_EQ(cores.load(), info.enforcement == Enforcement::kHardware ? info.units : CPU_COUNT(&all));
}
