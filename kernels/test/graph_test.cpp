// Graphs as runtime.h promises them: recorded stream work, launched again and again, on the CPU and, where there is
// one, on cuda:0.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <thread>

#include "exec/graph_bytes.h"
#include "execution.h"
#include "harness.h"
#include "nexus/step.h"

using namespace nexus;
using namespace nexus::test;
using namespace std::chrono_literals;

namespace {

const DeviceId kCpu{-1};

/// Each byte of `cells` takes its left neighbour's value: what a launch computes depends on every launch before it.
void shift(const std::shared_ptr<Stream>& stream, void* cells, void* spare, size_t n) {
  stream->copy(spare, cells, n);
  stream->copy(static_cast<char*>(cells) + 1, spare, n - 1);
}

void keep_busy(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Buffer>& scratch) {
  if (stream->device().is_cpu()) return stream->enqueue([] { std::this_thread::sleep_for(5ms); });
  for (int i = 0; i < 40; ++i) stream->fill(scratch->data(), i, scratch->bytes());
}

std::string capture_fails(const std::function<void()>& f) { return expect_error(ErrorCode::kGraphCapture, f); }

}  // namespace

TEST("a graph: what is recorded does not run; each launch runs it once, in order") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto a = Buffer::allocate(stream, 4096), b = Buffer::allocate(stream, 4096);
    stream->fill(a->data(), 1, 4096);
    stream->fill(b->data(), 2, 4096);
    CHECK(!stream->capturing());
    const auto graph = Graph::capture(stream, [&] {
      CHECK(stream->capturing());
      stream->copy(b->data(), a->data(), 4096);
      stream->fill(a->data(), 7, 4096);
    });
    CHECK(!stream->capturing());
    CHECK(graph->device() == device);
    CHECK_EQ(graph->nodes(), 2);
    CHECK_LE(0, graph->bytes());
    if (device.is_cpu())
      CHECK(!graph->bytes_estimated());
    else
      CHECK_LE(graph->bytes(), graph_bytes_bound(graph->nodes(), 1));  // whatever others do on the device
    CHECK_LE(1e-6, graph->capture_ms());
    CHECK(all_equal(download(stream, b->data(), 4096), 2));
    graph->launch(stream);
    CHECK(all_equal(download(stream, b->data(), 4096), 1));
    CHECK(all_equal(download(stream, a->data(), 4096), 7));
    graph->launch(stream);
    CHECK(all_equal(download(stream, b->data(), 4096), 7));
  }
}

TEST("a graph's bytes: what the free memory lost, as far as one graph explains it; what others take does not count") {
  constexpr size_t kMiB = size_t{1} << 20, kFree = 1000 * kMiB;
  // Pieces of the driver's: none, one, or a few.
  for (const size_t lost : {size_t{0}, 2 * kMiB, 6 * kMiB}) {
    const GraphBytes told = graph_bytes(kFree, kFree - lost, 30, 4);
    CHECK_EQ(told.bytes, static_cast<int64_t>(lost));
    CHECK(!told.estimated);
  }
  // Somebody else took 414 MiB meanwhile, or gave some back.
  const GraphBytes much = graph_bytes(kFree, kFree - 414 * kMiB, 30, 5);
  CHECK_EQ(much.bytes, graph_bytes_bound(30, 5));
  CHECK(much.estimated);
  CHECK_LE(much.bytes, static_cast<int64_t>(16 * kMiB));
  const GraphBytes less = graph_bytes(kFree, kFree + 2 * kMiB, 30, 5);
  CHECK_EQ(less.bytes, 0);
  CHECK(!less.estimated);
  // The bound grows with nodes and streams, and is itself believed.
  Random random;
  for (int i = 0; i < 1000; ++i) {
    const int64_t nodes = random.integer(0, 5000), streams = random.integer(1, 64);
    const int64_t bound = graph_bytes_bound(nodes, streams);
    CHECK(bound <= graph_bytes_bound(nodes + 1, streams) && bound < graph_bytes_bound(nodes, streams + 1));
    CHECK_LE(nodes * int64_t{32764}, bound);
    const auto lost = static_cast<size_t>(random.integer(0, 2 * bound));
    const GraphBytes told = graph_bytes(size_t{1} << 40, (size_t{1} << 40) - lost, nodes, streams);
    CHECK_EQ(told.bytes, std::min(static_cast<int64_t>(lost), bound));
    CHECK_EQ(told.estimated, static_cast<int64_t>(lost) > bound);
  }
}

TEST("a graph: launched 100 times it advances 100 times, with eager work in between") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto cells = Buffer::allocate(stream, 256), spare = Buffer::allocate(stream, 256);
    stream->fill(cells->data(), 0, 256);
    const auto graph = Graph::capture(stream, [&] { shift(stream, cells->data(), spare->data(), 256); });
    stream->fill(cells->data(), 200, 1);
    for (int i = 0; i < 100; ++i) {
      graph->launch(stream);
      stream->fill(cells->data(), i + 1, 1);
    }
    const auto got = download(stream, cells->data(), 256);
    for (size_t i = 0; i < 256; ++i)
      CHECK_EQ(static_cast<int>(got[i]), i <= 99 ? 100 - static_cast<int>(i) : i == 100 ? 200 : 0);
  }
}

TEST("a graph: fork and join through events, any number of launches, on any stream") {
  for (const auto device : devices()) {
    const auto origin = Stream::create(device), other = Stream::create(device), elsewhere = Stream::create(device);
    const auto in = Buffer::allocate(origin, 1024), left = Buffer::allocate(origin, 1024),
               right = Buffer::allocate(origin, 1024), out = Buffer::allocate(origin, 2048);
    const auto forked = Event::create(device), joined = Event::create(device);
    origin->synchronize();
    const auto graph = Graph::capture(origin, [&] {
      origin->copy(left->data(), in->data(), 1024);
      forked->record(*origin);
      CHECK(!other->capturing());
      other->wait(*forked);
      CHECK(other->capturing());
      other->copy(right->data(), left->data(), 1024);
      other->copy(static_cast<char*>(out->data()) + 1024, right->data(), 1024);
      joined->record(*other);
      origin->copy(out->data(), left->data(), 1024);
      origin->wait(*joined);
      origin->copy(in->data(), static_cast<char*>(out->data()) + 1024, 512);
    });
    CHECK(!other->capturing());
    for (const auto& stream : {origin, other, elsewhere}) {
      for (int i = 1; i < 30; ++i) {
        stream->fill(in->data(), i, 1024);
        graph->launch(stream);
        stream->fill(in->data(), 0, 1024);
        const auto got = download(stream, out->data(), 2048);
        CHECK(all_equal(got, i));
      }
    }
    // The events are the graph's no longer: recorded again they are events like all others.
    forked->record(*origin);
    forked->synchronize();
    CHECK(forked->ready());
  }
}

TEST("a graph: runs on different streams never overlap and keep the order of the launches") {
  for (const auto device : devices()) {
    const auto a = Stream::create(device), b = Stream::create(device);
    const auto cells = Buffer::allocate(a, 256), spare = Buffer::allocate(a, 256);
    a->fill(cells->data(), 0, 256);
    a->fill(cells->data(), 9, 1);
    a->synchronize();
    const auto graph = Graph::capture(a, [&] { shift(a, cells->data(), spare->data(), 256); });
    for (int i = 0; i < 50; ++i) graph->launch(i % 2 == 0 ? a : b);
    b->synchronize();
    const auto got = download(a, cells->data(), 256);
    for (size_t i = 0; i < 256; ++i) CHECK_EQ(static_cast<int>(got[i]), i <= 50 ? 9 : 0);
  }
}

TEST("a graph: 64 launches with different blocks are queued without waiting, and each sees its own") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto current = Buffer::allocate(stream, sizeof(StepBlock)),
               spare = Buffer::allocate(stream, sizeof(StepBlock));
    const auto log = Buffer::allocate(stream, 64 * sizeof(StepBlock));
    const auto busy = Buffer::allocate(stream, device.is_cpu() ? 0 : size_t{512} << 20);
    StepBlock recorded;
    recorded.tokens = 5;
    const auto graph = Graph::capture(stream, [&] {
      begin_step(*stream, recorded, static_cast<StepBlock*>(current->data()));
      stream->copy(spare->data(), current->data(), sizeof(StepBlock));
    });
    keep_busy(stream, busy);
    for (int i = 0; i < 64; ++i) {
      StepBlock block;
      block.x = reinterpret_cast<const void*>(static_cast<uintptr_t>(4096 + i));
      block.tokens = 1000 + i;
      graph->launch(stream, block);
      stream->copy(static_cast<char*>(log->data()) + i * sizeof(StepBlock), spare->data(), sizeof(StepBlock));
    }
    const auto bytes = download(stream, log->data(), 64 * sizeof(StepBlock));
    for (size_t i = 0; i < 64; ++i) {
      StepBlock got;
      std::memcpy(&got, bytes.data() + i * sizeof(StepBlock), sizeof got);
      CHECK_EQ(got.tokens, static_cast<int32_t>(1000 + i));
      CHECK_EQ(got.dense[1], static_cast<int32_t>(1000 + i));
      CHECK_EQ(reinterpret_cast<uintptr_t>(got.x), 4096 + i);
    }
    graph->launch(stream);  // without a block: the recorded one
    StepBlock got;
    std::memcpy(&got, download(stream, spare->data(), sizeof got).data(), sizeof got);
    CHECK_EQ(got.tokens, 5);
  }
}

TEST("a graph: a block needs exactly one begin_step") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto current = Buffer::allocate(stream, 2 * sizeof(StepBlock));
    auto* const blocks = static_cast<StepBlock*>(current->data());
    const auto none = Graph::capture(stream, [&] { stream->fill(blocks, 0, 8); });
    const auto two = Graph::capture(stream, [&] {
      begin_step(*stream, {}, blocks);
      begin_step(*stream, {}, blocks + 1);
    });
    for (const auto& [graph, count] : {std::pair{none, "0"}, std::pair{two, "2"}})
      CHECK(expect_error(ErrorCode::kInvalidArgument, [&, g = graph] { g->launch(stream, StepBlock{}); }).find(count) !=
            std::string::npos);
    two->launch(stream);
    stream->synchronize();
  }
}

TEST("a capture that does what cannot be recorded is undone, says why, and leaves the streams usable") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device), other = Stream::create(device);
    const auto buffer = Buffer::allocate(stream, 4096);
    const auto eager = Event::create(device), event = Event::create(device);
    eager->record(*other);
    other->synchronize();
    const std::vector<std::pair<const char*, std::function<void()>>> bodies{
        {"Buffer::allocate", [&] { (void)Buffer::allocate(stream, 64); }},
        {"synchronize", [&] { stream->synchronize(); }},
        {"on_complete", [&] { on_complete(stream, [](std::exception_ptr) {}); }},
        {"outside", [&] { stream->wait(*eager); }},
        {"my reason", [] { throw std::runtime_error("my reason"); }},
        {"out of memory", [] { throw Error(ErrorCode::kOutOfMemory, "out of memory"); }},
        {"joined",
         [&] {
           event->record(*stream);
           other->wait(*event);
           other->fill(buffer->data(), 3, 64);
         }},
        {"capture", [&] { Graph::begin(stream); }},
        {"captured", [&] { Graph::capture(other, [&] { stream->fill(buffer->data(), 9, 4096); })->launch(stream); }},
        // What is refused undoes the capture even where body goes on.
        {"synchronize",
         [&] {
           try {
             stream->synchronize();
           } catch (const Error&) {
           }
           stream->fill(buffer->data(), 1, 64);
         }},
    };
    for (const auto& [says, body] : bodies) {
      const auto message = capture_fails([&, b = body] {
        (void)Graph::capture(stream, [&] {
          stream->fill(buffer->data(), 8, 4096);
          b();
        });
      });
      if (message.find(says) == std::string::npos) NEXUS_FAIL(message + " does not name " + says);
      CHECK(!stream->capturing() && !other->capturing());
      stream->fill(buffer->data(), 5, 4096);
      CHECK(all_equal(download(stream, buffer->data(), 4096), 5));
      other->fill(buffer->data(), 6, 4096);
      other->synchronize();
      const auto graph = Graph::capture(stream, [&] { stream->fill(buffer->data(), 4, 4096); });
      graph->launch(stream);
      CHECK(all_equal(download(stream, buffer->data(), 4096), 4));
    }
  }
}

TEST("an event recorded in a capture has no time and no state; waiting for it later is refused") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device), other = Stream::create(device);
    const auto event = Event::create(device), end = Event::create(device);
    const auto graph = Graph::capture(stream, [&] { event->record(*stream); });
    end->record(*stream);
    stream->synchronize();
    capture_fails([&] { (void)event->ready(); });
    capture_fails([&] { event->synchronize(); });
    capture_fails([&] { (void)event->elapsed_ms(*end); });
    capture_fails([&] { other->wait(*event); });
    event->record(*stream);
    other->wait(*event);
    other->synchronize();
    CHECK(event->ready());
    CHECK_LE(end->elapsed_ms(*event), 10'000);
  }
}

TEST("begin, end and abort: the two-call form, and its misuse") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device), other = Stream::create(device);
    const auto buffer = Buffer::allocate(stream, 64);
    Graph::begin(stream);
    stream->fill(buffer->data(), 1, 64);
    Graph::abort(stream);
    Graph::abort(stream);
    CHECK(!stream->capturing());
    expect_error(ErrorCode::kInvalidArgument, [&] { Graph::end(stream); });
    Graph::begin(stream);
    expect_error(ErrorCode::kInvalidArgument, [&] { Graph::end(other); });
    stream->fill(buffer->data(), 2, 64);
    const auto graph = Graph::end(stream);
    graph->launch(other);
    CHECK(all_equal(download(other, buffer->data(), 64), 2));
    expect_error(ErrorCode::kInvalidArgument, [&] { graph->launch(nullptr); });
    expect_error(ErrorCode::kInvalidArgument, [&] { Graph::begin(nullptr); });
    expect_error(ErrorCode::kInvalidArgument, [&] { Graph::capture(stream, nullptr); });
    const auto empty = Graph::capture(stream, [] {});
    CHECK_EQ(empty->nodes(), 0);
    empty->launch(stream);
    stream->synchronize();
  }
}

TEST("a graph: two captures at a time, on streams of their own") {
  for (const auto device : devices()) {
    const auto a = Stream::create(device), b = Stream::create(device);
    const auto buffer = Buffer::allocate(a, 128);
    const auto event = Event::create(device);
    a->synchronize();
    Graph::begin(a);
    Graph::begin(b);
    a->fill(buffer->data(), 1, 64);
    b->fill(static_cast<char*>(buffer->data()) + 64, 2, 64);
    const auto second = Graph::end(b), first = Graph::end(a);
    first->launch(a);
    second->launch(a);
    const auto got = download(a, buffer->data(), 128);
    CHECK(got[0] == 1 && got[63] == 1 && got[64] == 2 && got[127] == 2);
    // They cannot be merged.
    Graph::begin(a);
    Graph::begin(b);
    event->record(*a);
    capture_fails([&] { b->wait(*event); });
    Graph::abort(a);
    Graph::abort(b);
    CHECK(!a->capturing() && !b->capturing());
    b->fill(buffer->data(), 3, 128);
    CHECK(all_equal(download(b, buffer->data(), 128), 3));
  }
}

TEST("a buffer whose last reference goes during a capture lives as long as the graph") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto out = Buffer::allocate(stream, 4096);
    auto temporary = Buffer::allocate(stream, 4096), aborted = Buffer::allocate(stream, 4096);
    const auto before = memory_stats(device).live_buffers;
    stream->fill(temporary->data(), 77, 4096);
    auto graph = Graph::capture(stream, [&] {
      stream->copy(out->data(), temporary->data(), 4096);
      temporary.reset();
    });
    CHECK_EQ(memory_stats(device).live_buffers, before);
    const auto next = Buffer::allocate(stream, 4096);  // would be the same memory, were it free
    stream->fill(next->data(), 1, 4096);
    graph->launch(stream);
    CHECK(all_equal(download(stream, out->data(), 4096), 77));
    graph.reset();
    for (int i = 0; i < 2000 && memory_stats(device).live_buffers > before; ++i) std::this_thread::sleep_for(1ms);
    CHECK_EQ(memory_stats(device).live_buffers, before);  // `next` came, `temporary` went
    capture_fails([&] {
      (void)Graph::capture(stream, [&] {
        aborted.reset();
        throw std::runtime_error("x");
      });
    });
    CHECK_EQ(memory_stats(device).live_buffers, before - 1);
  }
}

TEST("a graph may go while its launches are pending; nothing waits for them") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto cells = Buffer::allocate(stream, 256), spare = Buffer::allocate(stream, 256);
    const auto busy = Buffer::allocate(stream, device.is_cpu() ? 0 : size_t{512} << 20);
    stream->fill(cells->data(), 0, 256);
    stream->fill(cells->data(), 1, 1);
    stream->synchronize();
    for (int round = 0; round < 5; ++round) {
      const auto passed = Event::create(device);
      auto graph = Graph::capture(stream, [&] { shift(stream, cells->data(), spare->data(), 256); });
      keep_busy(stream, busy);
      for (int i = 0; i < 10; ++i) graph->launch(stream);
      passed->record(*stream);
      graph.reset();
      CHECK(!passed->ready());
    }
    const auto got = download(stream, cells->data(), 256);
    for (size_t i = 0; i < 256; ++i) CHECK_EQ(static_cast<int>(got[i]), i <= 50 ? 1 : 0);
    CHECK(!completion_of(stream));
  }
}

TEST("graphs: captured, launched and dropped 200 times, they leave no memory and no thread behind") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device), other = Stream::create(device);
    const auto buffer = Buffer::allocate(stream, 4096);
    const auto forked = Event::create(device), joined = Event::create(device);
    int threads_when_warm = 0;
    int64_t held_when_warm = 0, held = 0;
    for (int i = 0; i < 200; ++i) {
      const auto graph = Graph::capture(stream, [&] {
        forked->record(*stream);
        other->wait(*forked);
        other->fill(buffer->data(), i, 2048);
        joined->record(*other);
        stream->wait(*joined);
      });
      graph->launch(stream);
      if (i % 50 == 49) {
        stream->synchronize();
        completion_of(stream);
        const auto now = memory_stats(device);
        held = device.is_cpu() ? now.live_bytes : now.total_bytes - now.free_bytes;
      }
      if (i == 49) held_when_warm = held, threads_when_warm = threads_of_process();
    }
    CHECK_LE(held, held_when_warm + (device.is_cpu() ? 0 : int64_t{8} << 20));
    CHECK_LE(threads_of_process(), threads_when_warm);
  }
}

// ---- the CPU's lanes ---------------------------------------------------------------------------------------------

TEST("CPU graph: forked lanes run at the same time") {
  const auto a = Stream::create(kCpu), b = Stream::create(kCpu);
  const auto forked = Event::create(kCpu), joined = Event::create(kCpu);
  std::atomic<int> met{0}, both{0};
  const auto meet = [&] {  // neither comes out before the other is in
    const int round = met++ / 2;
    for (const auto end = std::chrono::steady_clock::now() + 20s;
         met < 2 * (round + 1) && std::chrono::steady_clock::now() < end;)
      std::this_thread::yield();
    if (met >= 2 * (round + 1)) ++both;
  };
  const auto graph = Graph::capture(a, [&] {
    forked->record(*a);
    b->wait(*forked);
    b->enqueue(meet);
    a->enqueue(meet);
    joined->record(*b);
    a->wait(*joined);
  });
  for (int i = 0; i < 20; ++i) graph->launch(a);
  a->synchronize();
  CHECK_EQ(both.load(), 40);
}

TEST("CPU graph: an exception in a launch fails its streams as it would eagerly, and no later capture") {
  const auto a = Stream::create(kCpu), b = Stream::create(kCpu);
  const auto forked = Event::create(kCpu), joined = Event::create(kCpu);
  int runs = 0;
  const auto graph = Graph::capture(a, [&] {
    forked->record(*a);
    b->wait(*forked);
    b->enqueue([&] {
      if (++runs == 2) throw Error(ErrorCode::kInternal, "second run");
    });
    joined->record(*b);
    a->wait(*joined);
  });
  graph->launch(a);
  a->synchronize();
  graph->launch(a);
  CHECK_EQ(expect_error(ErrorCode::kInternal, [&] { a->synchronize(); }), "second run");
  CHECK_EQ(expect_error(ErrorCode::kInternal, [&] { b->synchronize(); }), "second run");
  const auto c = Stream::create(kCpu);
  int ran = 0;
  const auto fresh = Graph::capture(c, [&] { c->enqueue([&] { ++ran; }); });
  fresh->launch(c);
  c->synchronize();
  CHECK_EQ(ran, 1);
}

TEST("CPU graph: launches of two graphs from two threads, over the same streams in opposite roles, all end") {
  const auto a = Stream::create(kCpu), b = Stream::create(kCpu);
  const auto record = [](const std::shared_ptr<Stream>& from, const std::shared_ptr<Stream>& to,
                         std::atomic<int>& count) {
    const auto forked = Event::create(kCpu), joined = Event::create(kCpu);
    return Graph::capture(from, [&] {
      for (int i = 0; i < 3; ++i) {
        from->enqueue([&count] { ++count; });
        forked->record(*from);
        to->wait(*forked);
        to->enqueue([&count] { ++count; });
        joined->record(*to);
        from->wait(*joined);
      }
    });
  };
  std::atomic<int> first{0}, second{0};
  const auto ab = record(a, b, first), ba = record(b, a, second);
  std::thread one([&] {
    for (int i = 0; i < 300; ++i) ab->launch(a);
  });
  std::thread two([&] {
    for (int i = 0; i < 300; ++i) ba->launch(b);
  });
  one.join();
  two.join();
  a->synchronize();
  b->synchronize();
  CHECK_EQ(first.load(), 1800);
  CHECK_EQ(second.load(), 1800);
}
