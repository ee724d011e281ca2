// The execution plane as its header promises it, on the CPU and, where there is one, on cuda:0.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <future>
#include <mutex>
#include <set>
#include <thread>

#include "exec/block_cache.h"
#include "execution.h"
#include "harness.h"
#include "nexus/combine.h"

using namespace nexus;
using namespace nexus::test;
using namespace std::chrono_literals;

namespace {

const DeviceId kCpu{-1};

/// A closure that waits in it keeps its stream busy until the test opens it.
class Gate {
 public:
  ~Gate() { open(); }
  void open() {
    std::lock_guard lock(state_->mutex);
    state_->open = true;
    state_->changed.notify_all();
  }
  std::function<void()> waiter() const {
    return [state = state_] {
      std::unique_lock lock(state->mutex);
      state->changed.wait(lock, [&] { return state->open; });
    };
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    bool open = false;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

/// Milliseconds of work on either device.
void keep_busy(const std::shared_ptr<Stream>& stream) {
  if (stream->device().is_cpu()) return stream->enqueue([] { std::this_thread::sleep_for(5ms); });
  const auto scratch = Buffer::allocate(stream, size_t{512} << 20);
  for (int i = 0; i < 40; ++i) stream->fill(scratch->data(), i, scratch->bytes());
}

std::string message_of(const std::exception_ptr& error) {
  if (!error) return "";
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

struct KeepThreads {
  int before = cpu_threads();
  ~KeepThreads() { set_cpu_threads(before); }
};

}  // namespace

// ---- streams -----------------------------------------------------------------------------------------------------

TEST("a stream runs its closures in order, and synchronize waits for all of them") {
  const auto stream = Stream::create(kCpu);
  std::vector<int> seen;
  for (int i = 0; i < 2000; ++i) stream->enqueue([&seen, i] { seen.push_back(i); });
  stream->synchronize();
  CHECK_EQ(seen.size(), 2000u);
  for (int i = 0; i < 2000; ++i) CHECK_EQ(seen[static_cast<size_t>(i)], i);
}

TEST("enqueue does not wait for the work") {
  const auto stream = Stream::create(kCpu);
  Gate gate;
  stream->enqueue(gate.waiter());
  std::atomic<bool> ran{false};
  stream->enqueue([&] { ran = true; });
  CHECK(!ran);  // we are here although the gate is closed
  gate.open();
  stream->synchronize();
  CHECK(ran);
}

TEST("fills and copies of one stream happen in order") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto a = Buffer::allocate(stream, 100'003), b = Buffer::allocate(stream, 100'003);
    for (int i = 0; i < 100; ++i) {
      stream->fill(a->data(), i, a->bytes());
      stream->copy(b->data(), a->data(), a->bytes());
    }
    stream->fill(a->data(), 255, a->bytes());
    CHECK(all_equal(download(stream, b->data(), b->bytes()), 99));
  }
}

TEST("wait(event): the other stream's work is seen, and the host does not wait") {
  for (const auto device : devices()) {
    const auto a = Stream::create(device), b = Stream::create(device);
    const auto event = Event::create(device);
    const auto buffer = Buffer::allocate(a, 1 << 20), out = Buffer::allocate(b, 1 << 20);
    a->synchronize();
    for (int i = 1; i < 6; ++i) {
      keep_busy(a);
      a->fill(buffer->data(), i, buffer->bytes());
      event->record(*a);
      b->wait(*event);
      CHECK(!event->ready());  // so the host came past wait() before the work was done
      b->copy(out->data(), buffer->data(), out->bytes());
      CHECK(all_equal(download(b, out->data(), out->bytes()), static_cast<uint8_t>(i)));
    }
  }
}

TEST("two streams that wait for each other in turn advance step by step") {
  for (const auto device : devices()) {
    const auto a = Stream::create(device), b = Stream::create(device);
    const auto ea = Event::create(device), eb = Event::create(device);
    const auto buffer = Buffer::allocate(a, 4096), log = Buffer::allocate(a, 4096 * 100);
    eb->record(*b);
    for (int i = 0; i < 100; ++i) {
      a->wait(*eb);
      a->fill(buffer->data(), i, 4096);
      ea->record(*a);
      b->wait(*ea);
      b->copy(static_cast<char*>(log->data()) + 4096 * i, buffer->data(), 4096);
      eb->record(*b);
    }
    buffer->record_use(b), log->record_use(b);
    b->synchronize();
    const auto bytes = download(a, log->data(), log->bytes());
    for (size_t i = 0; i < bytes.size(); ++i) CHECK_EQ(static_cast<int>(bytes[i]), static_cast<int>(i / 4096));
  }
}

TEST("waiting for an event that was never recorded is no wait") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto event = Event::create(device);
    stream->wait(*event);
    stream->synchronize();
    CHECK(event->ready());
    event->synchronize();
  }
}

TEST("a stream fails at the first exception: later closures are skipped, synchronize and completions report it") {
  const auto stream = Stream::create(kCpu);
  bool later = false;
  stream->enqueue([] { throw Error(ErrorCode::kInternal, "boom 17"); });
  stream->enqueue([&] { later = true; });
  for (int i = 0; i < 2; ++i) CHECK_EQ(expect_error(ErrorCode::kInternal, [&] { stream->synchronize(); }), "boom 17");
  CHECK(!later);
  CHECK_EQ(message_of(completion_of(stream)), "boom 17");
  const auto other = Stream::create(kCpu);
  CHECK_EQ(message_of(completion_of(other)), "");  // another stream is not affected
}

TEST("an error travels with the event to the stream that waits for it") {
  const auto a = Stream::create(kCpu), b = Stream::create(kCpu);
  const auto event = Event::create(kCpu);
  Gate gate;
  a->enqueue(gate.waiter());
  a->enqueue([] { throw std::runtime_error("lost rows"); });
  event->record(*a);
  b->wait(*event);
  bool ran = false;
  b->enqueue([&] { ran = true; });
  gate.open();
  CHECK_EQ(message_of(completion_of(b)), "lost rows");
  CHECK(!ran);
}

TEST("a failed stream still releases its buffers") {
  const int64_t before = memory_stats(kCpu).live_buffers;
  {
    const auto stream = Stream::create(kCpu);
    const auto buffer = Buffer::allocate(stream, 1000);
    stream->enqueue([] { throw std::runtime_error("x"); });
  }
  CHECK_EQ(memory_stats(kCpu).live_buffers, before);
}

TEST("synchronize inside the stream's own closure is refused instead of waiting forever") {
  const auto stream = Stream::create(kCpu);
  std::string message;
  stream->enqueue([&] { message = expect_error(ErrorCode::kInvalidArgument, [&] { stream->synchronize(); }); });
  stream->synchronize();
  CHECK(message.find("same stream") != std::string::npos);
}

TEST("a stream dropped with work pending finishes it") {
  for (const auto device : devices()) {
    const auto observer = Stream::create(device);
    const auto event = Event::create(device);
    const auto out = Buffer::allocate(observer, 4096);
    observer->synchronize();
    {
      const auto stream = Stream::create(device);
      keep_busy(stream);
      stream->fill(out->data(), 42, 4096);
      event->record(*stream);
    }
    observer->wait(*event);
    CHECK(all_equal(download(observer, out->data(), 4096), 42));
  }
}

TEST("the last reference to a stream may go on its own worker") {
  for (int i = 0; i < 50; ++i) {
    auto stream = Stream::create(kCpu);
    const auto finished = std::make_shared<std::promise<void>>();
    auto future = finished->get_future();
    Gate gate;
    stream->enqueue(gate.waiter());
    auto buffer = Buffer::allocate(stream, 64);
    stream->enqueue([stream, buffer, finished]() mutable {
      buffer.reset();
      stream.reset();
      finished->set_value();
    });
    stream.reset();
    buffer.reset();
    gate.open();
    CHECK(future.wait_for(20s) == std::future_status::ready);
  }
}

TEST("many host threads may use one stream") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto buffer = Buffer::allocate(stream, 8 * 4096);
    std::vector<std::thread> threads;
    std::atomic<int> completions{0};
    for (int t = 0; t < 8; ++t)
      threads.emplace_back([&, t] {
        for (int i = 0; i < 50; ++i) {
          const auto own = Buffer::allocate(stream, 4096);
          stream->fill(own->data(), t + 1, 4096);
          stream->copy(static_cast<char*>(buffer->data()) + 4096 * t, own->data(), 4096);
          on_complete(stream, [&](std::exception_ptr) { ++completions; });
        }
      });
    for (auto& t : threads) t.join();
    const auto bytes = download(stream, buffer->data(), buffer->bytes());
    for (size_t i = 0; i < bytes.size(); ++i) CHECK_EQ(static_cast<size_t>(bytes[i]), i / 4096 + 1);
    completion_of(stream);
    CHECK_EQ(completions.load(), 400);
  }
}

TEST("a device that is not there is unsupported, with the reason") {
  const auto message = expect_error(ErrorCode::kUnsupported, [] { Stream::create(DeviceId{63}); });
  CHECK(message.find("cuda:63") != std::string::npos);
  expect_error(ErrorCode::kUnsupported, [] { Event::create(DeviceId{63}); });
  expect_error(ErrorCode::kUnsupported, [] { HostBuffer::allocate(DeviceId{63}, 8); });
  expect_error(ErrorCode::kUnsupported, [] { memory_stats(DeviceId{63}); });
  expect_error(ErrorCode::kInvalidArgument, [] { Stream::create(DeviceId{-7}); });
}

TEST("arguments are checked by name") {
  const auto stream = Stream::create(kCpu);
  char byte = 0;
  const auto says = [](const char* what, const std::function<void()>& f) {
    const auto message = expect_error(ErrorCode::kInvalidArgument, f);
    if (message.find(what) == std::string::npos) NEXUS_FAIL(message + " does not name " + what);
  };
  says("dst", [&] { stream->copy(nullptr, &byte, 1); });
  says("src", [&] { stream->copy(&byte, nullptr, 1); });
  says("dst", [&] { stream->fill(nullptr, 0, 1); });
  says("fn", [&] { stream->enqueue(nullptr); });
  says("stream", [&] { Buffer::allocate(nullptr, 1); });
  says("stream", [&] { on_complete(nullptr, [](std::exception_ptr) {}); });
  says("done", [&] { on_complete(stream, nullptr); });
  says("work", [&] { run_in_background(nullptr, [](std::exception_ptr) {}); });
  says("n ", [&] { parallel_for(-1, [](int64_t) {}); });
  says("n ", [&] { set_cpu_threads(0); });
  stream->copy(nullptr, nullptr, 0);
  stream->fill(nullptr, 0, 0);
  stream->synchronize();
}

// ---- events ------------------------------------------------------------------------------------------------------

TEST("an event becomes ready when the stream reaches it, and may be recorded again") {
  const auto stream = Stream::create(kCpu);
  const auto event = Event::create(kCpu);
  for (int i = 0; i < 3; ++i) {
    Gate gate;
    stream->enqueue(gate.waiter());
    event->record(*stream);
    CHECK(!event->ready());
    gate.open();
    event->synchronize();
    CHECK(event->ready());
  }
}

TEST("elapsed_ms measures the work between two events") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto start = Event::create(device), end = Event::create(device);
    keep_busy(stream);  // CUDA: the first allocation of the scratch memory is not timed
    start->record(*stream);
    const auto wall = std::chrono::steady_clock::now();
    keep_busy(stream);
    end->record(*stream);
    expect_error(ErrorCode::kInvalidArgument, [&] { start->elapsed_ms(*end); });  // still running
    end->synchronize();
    const double host_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - wall).count();
    const double ms = start->elapsed_ms(*end);
    CHECK_LE(device.is_cpu() ? 5.0 : 0.5, ms);
    if (device.is_cpu()) CHECK_LE(ms, host_ms + 1);
    CHECK_LE(end->elapsed_ms(*start), -0.4);  // signed
  }
}

TEST("elapsed_ms of events that were never recorded names which") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto a = Event::create(device), b = Event::create(device);
    CHECK(expect_error(ErrorCode::kInvalidArgument, [&] { a->elapsed_ms(*b); }).find("start") != std::string::npos);
    a->record(*stream);
    a->synchronize();
    CHECK(expect_error(ErrorCode::kInvalidArgument, [&] { a->elapsed_ms(*b); }).find("end") != std::string::npos);
  }
}

// ---- memory ------------------------------------------------------------------------------------------------------

TEST("copies come back unchanged at every size") {
  Random random(1);
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    for (const size_t bytes : {size_t{0}, size_t{1}, size_t{3}, size_t{63}, size_t{64}, size_t{65}, size_t{4097},
                               (size_t{1} << 20) + 7, (size_t{64} << 20) + 5}) {
      const auto up = HostBuffer::allocate(device, bytes), down = HostBuffer::allocate(device, bytes);
      const auto a = Buffer::allocate(stream, bytes), b = Buffer::allocate(stream, bytes);
      CHECK_EQ(a->bytes(), bytes);
      CHECK((a->data() == nullptr) == (bytes == 0));
      CHECK_EQ(reinterpret_cast<uintptr_t>(a->data()) % 64, 0u);
      for (size_t i = 0; i < bytes; i += 8) {
        const uint64_t r = random.next();
        std::memcpy(static_cast<char*>(up->data()) + i, &r, std::min<size_t>(8, bytes - i));
      }
      stream->copy(a->data(), up->data(), bytes);
      stream->copy(b->data(), a->data(), bytes);
      stream->copy(down->data(), b->data(), bytes);
      stream->synchronize();
      CHECK(bytes == 0 || std::memcmp(up->data(), down->data(), bytes) == 0);
    }
  }
}

TEST("a create and release loop returns to where it began") {
  const auto resident_bytes = [] {
    long long pages = 0, resident = 0;
    std::FILE* file = std::fopen("/proc/self/statm", "r");
    CHECK(file != nullptr && std::fscanf(file, "%lld %lld", &pages, &resident) == 2);
    std::fclose(file);
    return static_cast<int64_t>(resident) * sysconf(_SC_PAGESIZE);
  };
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto before = memory_stats(device);
    int64_t held_when_warm = 0, held = 0;
    for (int round = 0; round < 6; ++round) {
      Random random(2);
      for (int i = 0; i < 300; ++i) {
        const auto buffer = Buffer::allocate(stream, static_cast<size_t>(random.integer(0, 3 << 20)));
        stream->fill(buffer->data(), i, buffer->bytes());
        if (i % 10 == 9) stream->synchronize();
      }
      std::promise<void> helper_idle;  // where CUDA has no memory pool, the helper frees
      run_in_background([] {}, [&](std::exception_ptr) { helper_idle.set_value(); });
      helper_idle.get_future().wait();
      const auto now = memory_stats(device);
      CHECK_EQ(now.live_bytes, before.live_bytes);
      CHECK_EQ(now.live_buffers, before.live_buffers);
      held = device.is_cpu() ? resident_bytes() : now.total_bytes - now.free_bytes;
      if (round == 1) held_when_warm = held;
    }
    CHECK_LE(held, held_when_warm + (int64_t{64} << 20));  // each round asks for 450 MB
  }
}

TEST("live and peak bytes are counted exactly") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    reset_peak(device);
    const auto before = memory_stats(device);
    CHECK_EQ(before.peak_bytes, before.live_bytes);
    {
      const auto a = Buffer::allocate(stream, 1000), b = Buffer::allocate(stream, 234),
                 empty = Buffer::allocate(stream, 0);
      CHECK_EQ(memory_stats(device).live_bytes, before.live_bytes + 1234);
      CHECK_EQ(memory_stats(device).live_buffers, before.live_buffers + 3);
    }
    CHECK_EQ(memory_stats(device).live_bytes, before.live_bytes);
    CHECK_EQ(memory_stats(device).peak_bytes, before.live_bytes + 1234);
    reset_peak(device);
    CHECK_EQ(memory_stats(device).peak_bytes, before.live_bytes);
    CHECK_LE(1, before.total_bytes);
    CHECK_LE(before.free_bytes, before.total_bytes);
  }
}

TEST("memory is recycled when its stream has passed the release, and not before") {
  const auto stream = Stream::create(kCpu);
  Gate gate;
  auto buffer = Buffer::allocate(stream, 777'777);
  const void* const address = buffer->data();
  stream->enqueue(gate.waiter());
  buffer.reset();
  const auto meanwhile = Buffer::allocate(stream, 777'777);
  CHECK(meanwhile->data() != address);
  gate.open();
  stream->synchronize();
  const auto after = Buffer::allocate(stream, 777'777);
  CHECK(after->data() == address);
}

TEST("record_use: a release waits for the other stream, too") {
  {
    const auto owner = Stream::create(kCpu), user = Stream::create(kCpu);
    Gate gate;
    auto buffer = Buffer::allocate(owner, 555'555);
    const void* const address = buffer->data();
    user->enqueue(gate.waiter());
    buffer->record_use(user);
    buffer.reset();
    owner->synchronize();
    CHECK(Buffer::allocate(owner, 555'555)->data() != address);
  }
  for (const auto device : devices()) {
    const auto owner = Stream::create(device), user = Stream::create(device);
    const auto written = Event::create(device);
    for (int i = 0; i < 5; ++i) {
      auto buffer = Buffer::allocate(owner, 3 << 20);
      const auto out = Buffer::allocate(user, 3 << 20);
      owner->fill(buffer->data(), 100 + i, buffer->bytes());
      written->record(*owner);
      keep_busy(user);
      user->wait(*written);
      user->copy(out->data(), buffer->data(), out->bytes());
      buffer->record_use(user);
      buffer.reset();
      const auto next = Buffer::allocate(owner, 3 << 20);  // would be the same memory, were it free
      owner->fill(next->data(), 1, next->bytes());
      CHECK(all_equal(download(user, out->data(), out->bytes()), static_cast<uint8_t>(100 + i)));
    }
  }
}

TEST("an operation may outlive the references to its buffers") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto out = Buffer::allocate(stream, 1 << 20);
    {
      keep_busy(stream);
      const auto temporary = Buffer::allocate(stream, 1 << 20);
      stream->fill(temporary->data(), 7, temporary->bytes());
      stream->copy(out->data(), temporary->data(), out->bytes());
    }
    {
      const auto other = Buffer::allocate(stream, 1 << 20);
      stream->fill(other->data(), 9, other->bytes());
    }
    CHECK(all_equal(download(stream, out->data(), out->bytes()), 7));
  }
}

TEST("an allocation that cannot be had is refused with the bytes asked for and free, and harms nothing") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto before = memory_stats(device);
    for (const size_t bytes : {static_cast<size_t>(before.total_bytes) + 1, size_t{1} << 60, SIZE_MAX}) {
      try {
        Buffer::allocate(stream, bytes);
        NEXUS_FAIL("was granted");
      } catch (const Error& e) {
        CHECK_EQ(static_cast<int>(e.code), static_cast<int>(ErrorCode::kOutOfMemory));
        CHECK_EQ(e.requested, bytes > INT64_MAX ? INT64_MAX : static_cast<int64_t>(bytes));
        CHECK_LE(1, e.available);
        CHECK_LE(e.available, before.total_bytes);
        CHECK(std::string(e.what()).find(std::to_string(bytes)) != std::string::npos);
        CHECK_EQ(e.native, device.is_cpu() ? "" : "cudaErrorMemoryAllocation");
      }
      expect_error(ErrorCode::kOutOfMemory,
                   [&] { HostBuffer::allocate(device, bytes < size_t{1} << 60 ? size_t{1} << 60 : bytes); });
    }
    CHECK_EQ(memory_stats(device).live_bytes, before.live_bytes);
    const auto small = Buffer::allocate(stream, 4096);
    stream->fill(small->data(), 5, 4096);
    CHECK(all_equal(download(stream, small->data(), 4096), 5));
  }
}

TEST("host buffers are recycled by size class and aligned") {
  for (const auto device : devices()) {
    CHECK(HostBuffer::allocate(device, 0)->data() == nullptr);
    auto first = HostBuffer::allocate(device, 100'000);
    CHECK_EQ(first->bytes(), 100'000u);
    CHECK_EQ(reinterpret_cast<uintptr_t>(first->data()) % 64, 0u);
    void* const address = first->data();
    std::memset(address, 1, first->bytes());
    CHECK(HostBuffer::allocate(device, 100'000)->data() != address);
    first.reset();
    CHECK(HostBuffer::allocate(device, 99'990)->data() == address);
  }
}

TEST("size classes waste at most an eighth and are multiples of 64") {
  Random random(3);
  for (int i = 0; i < 100'000; ++i) {
    const auto bytes = static_cast<size_t>(random.next() >> random.integer(20, 63)) + 1;
    const size_t size = size_class(bytes);
    CHECK_EQ(size % 64, 0u);
    CHECK_LE(bytes, size);
    CHECK_LE(size, std::max<size_t>(bytes + bytes / 8 + 1, (bytes + 63) / 64 * 64));
    CHECK_EQ(size_class(size), size);  // a class is its own
  }
}

TEST("the block cache stays within its bound and gives up what lay longest") {
  alignas(64) static char memory[8][64 * 16];
  BlockCache cache(3072);
  for (int i = 0; i < 3; ++i) CHECK(cache.give(memory[i], 1024).empty());
  CHECK_EQ(cache.cached_bytes(), 3072u);
  const auto evicted = cache.give(memory[3], 1024);
  CHECK_EQ(evicted.size(), 1u);
  CHECK(evicted[0].first == memory[0] && evicted[0].second == 1024);
  CHECK(cache.take(512) == nullptr);
  CHECK(cache.take(1024) == memory[3]);  // the one used last
  CHECK_EQ(cache.cached_bytes(), 2048u);
  const auto refused = cache.give(memory[4], 4096);  // larger than all
  CHECK(refused.size() == 1 && refused[0].first == memory[4]);
  CHECK_EQ(cache.drain().size(), 2u);
  CHECK_EQ(cache.cached_bytes(), 0u);
  CHECK(cache.take(1024) == nullptr);
}

TEST("more host memory than the pool keeps is freed, and the pool goes on") {
  for (const auto device : devices()) {
    for (size_t i = 0; i < 6; ++i) {
      const auto buffer = HostBuffer::allocate(device, (150 + 20 * i) << 20);
      static_cast<char*>(buffer->data())[buffer->bytes() - 1] = static_cast<char>(i);
    }
    const auto small = HostBuffer::allocate(device, 100);
    std::memset(small->data(), 1, 100);
  }
}

// ---- completions -------------------------------------------------------------------------------------------------

TEST("a completion comes once, after the work and in the order of its stream") {
  for (const auto device : devices()) {
    std::vector<std::shared_ptr<Stream>> streams;
    for (int s = 0; s < 4; ++s) streams.push_back(Stream::create(device));
    std::vector<std::vector<int>> order(4);  // written by the one completion thread
    std::set<std::thread::id> threads;
    for (int i = 0; i < 250; ++i)
      for (size_t s = 0; s < 4; ++s) {
        if (i % 100 == 0) keep_busy(streams[s]);
        on_complete(streams[s], [&order, &threads, s, i](std::exception_ptr e) {
          order[s].push_back(e ? -1 : i);
          threads.insert(std::this_thread::get_id());
        });
      }
    for (const auto& stream : streams) CHECK_EQ(message_of(completion_of(stream)), "");
    for (const auto& list : order) {
      CHECK_EQ(list.size(), 250u);
      for (int i = 0; i < 250; ++i) CHECK_EQ(list[static_cast<size_t>(i)], i);
    }
    CHECK_EQ(threads.size(), 1u);
    CHECK(!threads.contains(std::this_thread::get_id()));
  }
}

TEST("a completion is not delivered before the stream is there") {
  const auto stream = Stream::create(kCpu);
  Gate gate;
  std::atomic<int> calls{0};
  stream->enqueue(gate.waiter());
  on_complete(stream, [&](std::exception_ptr) { ++calls; });
  std::this_thread::sleep_for(20ms);
  CHECK_EQ(calls.load(), 0);
  gate.open();
  completion_of(stream);
  CHECK_EQ(calls.load(), 1);
}

TEST("a completion survives the last reference to its stream") {
  for (const auto device : devices()) {
    std::promise<bool> promise;
    {
      const auto stream = Stream::create(device);
      keep_busy(stream);
      on_complete(stream, [&](std::exception_ptr e) { promise.set_value(!e); });
    }
    auto future = promise.get_future();
    CHECK(future.wait_for(20s) == std::future_status::ready);
    CHECK(future.get());
  }
}

TEST("background work runs beside completions, and its error arrives") {
  const auto stream = Stream::create(kCpu);
  Gate gate;
  std::promise<std::string> slow, failing;
  run_in_background(gate.waiter(), [&](std::exception_ptr e) { slow.set_value(message_of(e)); });
  run_in_background([] { throw std::runtime_error("cannot convert"); },
                    [&](std::exception_ptr e) { failing.set_value(message_of(e)); });
  CHECK_EQ(message_of(completion_of(stream)), "");  // while the helper is busy
  gate.open();
  CHECK_EQ(slow.get_future().get(), "");
  CHECK_EQ(failing.get_future().get(), "cannot convert");
}

// ---- parallel loops ----------------------------------------------------------------------------------------------

TEST("parallel_for runs every index exactly once, for any number of threads") {
  const KeepThreads keep;
  for (const int threads : {1, 2, 3, 8, 5, 2}) {  // grows and shrinks
    set_cpu_threads(threads);
    CHECK_EQ(cpu_threads(), threads);
    for (const int64_t n : {0, 1, 2, 7, 64, 1009, 20'011}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(n));
      parallel_for(n, [&](int64_t i) { hits[static_cast<size_t>(i)].fetch_add(1); });
      for (auto& h : hits) CHECK_EQ(h.load(), 1);
    }
  }
}

TEST("at most cpu_threads() threads run a loop, and with two of them two do") {
  const KeepThreads keep;
  for (const int threads : {1, 2, 4}) {
    set_cpu_threads(threads);
    std::mutex mutex;
    std::set<std::thread::id> seen;
    parallel_for(64, [&](int64_t) {
      std::this_thread::sleep_for(1ms);
      std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    CHECK_LE(seen.size(), static_cast<size_t>(threads));
    if (threads > 1) CHECK_LE(2u, seen.size());
    if (threads == 1) CHECK(seen.contains(std::this_thread::get_id()));
  }
}

TEST("the first exception of a loop comes out of it, and the pool goes on") {
  const KeepThreads keep;
  set_cpu_threads(4);
  for (int round = 0; round < 100; ++round) {
    std::atomic<int> ran{0};
    const auto message = expect_error(ErrorCode::kInternal, [&] {
      parallel_for(1000, [&](int64_t i) {
        if (i % 100 == 50) throw Error(ErrorCode::kInternal, "index");
        ++ran;
      });
    });
    CHECK_EQ(message, "index");
    CHECK_LE(ran.load(), 999);
    std::atomic<int> again{0};
    parallel_for(100, [&](int64_t) { ++again; });
    CHECK_EQ(again.load(), 100);
  }
}

TEST("a loop inside a loop runs inline") {
  const KeepThreads keep;
  set_cpu_threads(4);
  std::atomic<int> ran{0}, moved{0};
  parallel_for(2, [&](int64_t) {  // two of the four threads stay free, and would join the inner loops
    const auto outer = std::this_thread::get_id();
    parallel_for(64, [&](int64_t) {
      std::this_thread::sleep_for(200us);
      ++ran;
      if (std::this_thread::get_id() != outer) ++moved;
    });
  });
  CHECK_EQ(ran.load(), 128);
  CHECK_EQ(moved.load(), 0);
}

TEST("loops of several streams and host threads run at the same time without mixing") {
  const KeepThreads keep;
  set_cpu_threads(4);
  std::vector<std::shared_ptr<Stream>> streams;
  std::vector<std::vector<int64_t>> sums(4, std::vector<int64_t>(500));
  for (size_t s = 0; s < 4; ++s) {
    streams.push_back(Stream::create(kCpu));
    for (int round = 0; round < 200; ++round)
      streams[s]->enqueue([&sums, s] {
        parallel_for(500, [&](int64_t i) { sums[s][static_cast<size_t>(i)] += i + static_cast<int64_t>(s); });
      });
  }
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> mine{0};
    parallel_for(300, [&](int64_t) { ++mine; });
    CHECK_EQ(mine.load(), 300);
    set_cpu_threads(2 + round % 5);  // while loops are open
  }
  for (const auto& stream : streams) stream->synchronize();
  for (size_t s = 0; s < 4; ++s)
    for (int64_t i = 0; i < 500; ++i) CHECK_EQ(sums[s][static_cast<size_t>(i)], 200 * (i + static_cast<int64_t>(s)));
}

TEST("idle workers sleep") {
  const KeepThreads keep;
  set_cpu_threads(4);
  const auto stream = Stream::create(kCpu);
  stream->enqueue([] { parallel_for(100, [](int64_t) {}); });
  stream->synchronize();
  completion_of(stream);
  std::this_thread::sleep_for(20ms);
  const std::clock_t begin = std::clock();  // processor time of all threads
  std::this_thread::sleep_for(200ms);
  const double busy_ms = 1e3 * static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  CHECK_LE(busy_ms, 20);
}

TEST("NEXUS_NUM_THREADS sets the number of threads; a bad value is named on first use") {
  constexpr const char* kName = "NEXUS_NUM_THREADS sets";
  if (!is_child()) {
    for (const char* value : {"1", "3", "0", "-2", "4x", "many", "99999"})
      CHECK_EQ(run_in_child(kName, "NEXUS_NUM_THREADS", value), 0);
    return;
  }
  const std::string value = std::getenv("NEXUS_NUM_THREADS");
  if (value == "1" || value == "3") {
    CHECK_EQ(cpu_threads(), std::atoi(value.c_str()));
    return;
  }
  for (int i = 0; i < 2; ++i) {
    const auto message = expect_error(ErrorCode::kInvalidArgument, [] { parallel_for(8, [](int64_t) {}); });
    CHECK(message.find("NEXUS_NUM_THREADS") != std::string::npos &&
          message.find("'" + value + "'") != std::string::npos);
  }
  CHECK_EQ(system_info().cpu_threads, 0);  // never throws
  set_cpu_threads(2);
  CHECK_EQ(cpu_threads(), 2);
}

TEST("a process may end with streams busy and completions pending") {
  constexpr const char* kName = "a process may end";
  if (!is_child()) {
    for (int i = 0; i < 5; ++i) CHECK_EQ(run_in_child(kName, "NEXUS_NUM_THREADS", "4"), 0);
    return;
  }
  for (const auto device : devices()) {
    static std::vector<std::shared_ptr<Stream>> streams;  // destroyed after main, as a careless host would do
    static std::vector<std::shared_ptr<Buffer>> buffers;
    for (int i = 0; i < 4; ++i) {
      streams.push_back(Stream::create(device));
      buffers.push_back(Buffer::allocate(streams.back(), 1 << 20));
      keep_busy(streams.back());
      if (device.is_cpu())
        streams.back()->enqueue([] { parallel_for(1000, [](int64_t) { std::this_thread::sleep_for(1ms); }); });
      on_complete(streams.back(), [](std::exception_ptr) {});
    }
  }
}

// ---- CUDA only ---------------------------------------------------------------------------------------------------

TEST("a CUDA error carries CUDA's own name and does not stick to the thread") {
  require_cuda();
  const auto stream = Stream::create(DeviceId{0});
  const auto buffer = Buffer::allocate(stream, 64);
  try {
    stream->fill(buffer->data(), 0, size_t{1} << 50);
    NEXUS_FAIL("was accepted");
  } catch (const Error& e) {
    CHECK_EQ(static_cast<int>(e.code), static_cast<int>(ErrorCode::kDevice));
    CHECK_EQ(e.native, "cudaErrorInvalidValue");
  }
  CHECK_EQ(message_of(completion_of(stream)), "");
  stream->fill(buffer->data(), 3, 64);
  CHECK(all_equal(download(stream, buffer->data(), 64), 3));
}

TEST("events, buffers and streams of different devices are refused") {
  require_cuda();
  const auto cuda = Stream::create(DeviceId{0}), cpu = Stream::create(kCpu);
  const auto cuda_event = Event::create(DeviceId{0}), cpu_event = Event::create(kCpu);
  for (const auto& f : std::vector<std::function<void()>>{
           [&] { cuda_event->record(*cpu); }, [&] { cpu_event->record(*cuda); }, [&] { cuda->wait(*cpu_event); },
           [&] { cpu->wait(*cuda_event); }, [&] { Buffer::allocate(cuda, 8)->record_use(cpu); },
           [&] { Buffer::allocate(cpu, 8)->record_use(cuda); }})
    expect_error(ErrorCode::kInvalidArgument, f);
  expect_error(ErrorCode::kUnsupported, [&] { cuda->enqueue([] {}); });
  expect_error(ErrorCode::kUnsupported, [&] { cpu->cuda_stream(); });
}

TEST("buffers work without a memory pool, too") {
  require_cuda();
  if (!is_child()) CHECK_EQ(run_in_child("create and release loop", "NEXUS_CUDA_POOL", "0"), 0);
}

TEST("a context that fails under way is reported to every completion, once") {
  require_cuda();
  if (!is_child()) {  // the context does not recover: not in this process
    CHECK_EQ(run_in_child("a context that fails", "NEXUS_TEST_FAULT", "1"), 0);
    return;
  }
  const auto stream = Stream::create(DeviceId{0});
  const auto buffer = Buffer::allocate(stream, 4096);
  std::atomic<int> calls{0};
  on_complete(stream, [&](std::exception_ptr) { ++calls; });
  cast(*stream, reinterpret_cast<const void*>(4096), DType::kF32, buffer->data(), DType::kBF16,
       1024);  // reads nobody's memory
  for (int i = 0; i < 2; ++i) {
    const auto error = completion_of(stream);
    try {
      if (error) std::rethrow_exception(error);
      NEXUS_FAIL("no error came");
    } catch (const Error& e) {
      CHECK_EQ(static_cast<int>(e.code), static_cast<int>(ErrorCode::kDevice));
      CHECK_EQ(e.native, "cudaErrorIllegalAddress");
    }
  }
  CHECK_EQ(calls.load(), 1);
  expect_error(ErrorCode::kDevice, [&] { stream->synchronize(); });
  expect_error(ErrorCode::kDevice, [&] { Buffer::allocate(stream, 64); });
}  // buffer and stream go here, without ending the process
