// The fault seam and what a fault leaves behind. Linked with the execution plane of NEXUS_FAULTS; the variable is set
// anew by each test, sticky faults and hangs run in a process of their own.

#include <chrono>
#include <functional>
#include <thread>

#include "execution.h"
#include "harness.h"
#include "nexus/step.h"

using namespace nexus;
using namespace nexus::test;
using namespace std::chrono_literals;

namespace {

struct Fault {
  explicit Fault(const char* text) { setenv("NEXUS_FAULT", text, 1); }
  ~Fault() { unsetenv("NEXUS_FAULT"); }
};

}  // namespace

TEST("every point fails as it is told, at the pass it is told, once, and what was half made is undone") {
  for (const auto device : devices()) {
    const auto stream = Stream::create(device);
    const auto units = partition_info(device).minimum;
    const auto buffer = Buffer::allocate(stream, 64);
    const auto record = [&] { return Graph::capture(stream, [&] { stream->fill(buffer->data(), 1, 64); }); };
    const auto graph = record();
    const auto block = Buffer::allocate(stream, sizeof(StepBlock));
    const auto lanes = LaneSet::create(stream, {0, 1, 0}, 2, {}, false);
    const std::vector<std::pair<std::string, std::function<void()>>> points{
        {"stream.create", [&] { (void)Stream::create(device); }},
        {"buffer.allocate", [&] { (void)Buffer::allocate(stream, 64); }},
        {"host.allocate", [&] { (void)HostBuffer::allocate(device, 64); }},
        {"partition.create", [&] { (void)Partition::create(device, {units}); }},
        {"partition.stream", [&] { (void)Partition::create(device, {units})->create_stream(0, 0); }},
        {"graph.capture", [&] { (void)record(); }},
        {"graph.instantiate", [&] { (void)record(); }},
        {"graph.launch", [&] { graph->launch(stream); }},
        {"step.launch", [&] { begin_step(*stream, {}, static_cast<StepBlock*>(block->data())); }},
        {"count_ring.create", [&] { (void)CountRing::create(device, 8, 4); }},
        {"lane_set.update", [&] { lanes->update(stream, {1, 1, 0}, {}); }},
    };
    const auto live = memory_stats(device).live_buffers;
    for (const auto& [name, call] : points) {
      for (const auto& [suffix, code] : {std::pair<const char*, ErrorCode>{"", ErrorCode::kInternal},
                                         {":1:error", ErrorCode::kInternal},
                                         {":3:oom", ErrorCode::kOutOfMemory}}) {
        const Fault fault((name + suffix).c_str());
        if (std::string(suffix) == ":3:oom") call(), call();
        CHECK(expect_error(code, call).find(name) != std::string::npos);
        call();
        CHECK(!stream->capturing());
        stream->synchronize();
      }
    }
    CHECK_EQ(memory_stats(device).live_buffers, live);
  }
}

TEST("a wrong NEXUS_FAULT is named") {
  for (const char* text : {"buffer.allocate:0", "buffer.allocate:x", "buffer.allocate:1:fire"}) {
    const Fault fault(text);
    CHECK(expect_error(ErrorCode::kInvalidArgument, [] { (void)Stream::create(DeviceId{-1}); }).find(text) !=
          std::string::npos);
  }
}

TEST("a device that breaks stays broken: every later call and completion says so") {
  constexpr const char* kName = "a device that breaks";
  if (!is_child()) {
    CHECK_EQ(run_in_child(kName), 0);
    return;
  }
  for (const auto device : devices()) {
    const auto stream = Stream::create(device), other = Stream::create(device);
    const auto buffer = Buffer::allocate(stream, 64);
    auto graph = Graph::capture(stream, [&] { stream->fill(buffer->data(), 1, 64); });
    {
      const Fault fault("graph.launch:2:device");
      graph->launch(stream);
      expect_error(ErrorCode::kDevice, [&] { graph->launch(stream); });
    }
    expect_error(ErrorCode::kDevice, [&] { graph->launch(other); });
    // CUDA answers some calls on a broken context as if nothing were wrong; what it refuses must be the typed error.
    const auto refused = [&](const std::function<void()>& call) {
      if (device.is_cpu()) return (void)expect_error(ErrorCode::kDevice, call);
      try {
        call();
      } catch (const Error& e) {
        CHECK(e.code == ErrorCode::kDevice);
      }
    };
    refused([&] { stream->synchronize(); });
    refused([&] { other->fill(buffer->data(), 1, 64); });
    expect_error(ErrorCode::kDevice, [&] { (void)Buffer::allocate(other, 64); });
    expect_error(ErrorCode::kDevice, [&] { (void)Stream::create(device); });
    for (const auto& s : {stream, other}) {
      try {
        const auto error = completion_of(s);
        if (error) std::rethrow_exception(error);
        if (device.is_cpu()) NEXUS_FAIL("no error came");
      } catch (const Error& e) {
        CHECK(e.code == ErrorCode::kDevice);
        CHECK_EQ(e.native, "cudaErrorIllegalAddress");
      }
    }
    graph.reset();
  }
}

TEST("a stream that hangs holds up no other, and not the end of the process") {
  constexpr const char* kName = "a stream that hangs";
  if (!is_child()) {
    CHECK_EQ(run_in_child(kName), 0);
    return;
  }
  const DeviceId device{-1};
  static const auto stream = Stream::create(device);
  const auto other = Stream::create(device);
  {
    const Fault fault("buffer.allocate:1:hang");
    (void)Buffer::allocate(stream, 64);
  }
  static std::atomic<bool> ran{false};
  stream->enqueue([] { ran = true; });
  other->enqueue([] {});
  other->synchronize();
  std::this_thread::sleep_for(100ms);
  CHECK(!ran);
}
