// The end of the process: what drivers tear down at exit, threads of the library touch no more.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <future>
#include <memory>
#include <thread>

#include "exec/backend.h"
#include "exec/exit_gate.h"
#include "execution.h"
#include "harness.h"

using namespace nexus;
using namespace nexus::test;
using namespace std::chrono_literals;

namespace {

/// Set by the first exit handler; what is called or destroyed from then on would use a driver that goes away.
std::atomic<bool> ending{false};
/// Set once no thread of the library may call a driver.
std::atomic<bool> torn_down{false};

/// Stands for a stream or a graph: its destructor calls the driver.
struct Resource {
  ~Resource() {
    if (ending) _exit(3);
  }
};

double ms_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TEST("exit: nothing that is pending is asked, delivered or destroyed, and work under way ends first") {
  constexpr const char* kName = "exit: nothing that is pending";
  if (!is_child()) {
    for (int i = 0; i < 5; ++i) CHECK_EQ(run_in_child(kName), 0);
    return;
  }
  // Handlers run last in, first out: one before ours, and behind ours the driver's own, which takes a while.
  std::atexit([] {
    torn_down = true;
    std::this_thread::sleep_for(100ms);
  });
  std::atexit(stop_background_work);
  std::atexit([] { ending = true; });
  static int lanes[2];
  for (const auto& lane : lanes)
    for (int i = 0; i < 3; ++i)
      deliver_when(
          &lane,
          [resource = std::make_shared<Resource>()] {
            if (torn_down) _exit(4);
            return false;
          },
          [resource = std::make_shared<Resource>()](std::exception_ptr) { _exit(5); });
  static std::atomic<bool> at_work{false};
  run_in_background(
      [] {
        at_work = true;
        std::this_thread::sleep_for(50ms);
        if (torn_down) _exit(6);
      },
      [resource = std::make_shared<Resource>()](std::exception_ptr) { _exit(7); });
  run_in_background([resource = std::make_shared<Resource>()] { _exit(8); },
                    [resource = std::make_shared<Resource>()](std::exception_ptr) { _exit(8); });
  while (!at_work) std::this_thread::sleep_for(1ms);
}

TEST("exit: called in a completion, it ends the process at once") {
  constexpr const char* kName = "exit: called in a completion";
  if (!is_child()) {
    const auto start = std::chrono::steady_clock::now();
    CHECK_EQ(run_in_child(kName), 0);
    CHECK_LE(ms_since(start), 1500.0);  // the patience with a thread that hangs is 2 s
    return;
  }
  std::atexit(stop_background_work);
  deliver([](std::exception_ptr) { std::exit(0); }, nullptr);
  std::this_thread::sleep_for(10s);
  _exit(1);
}

TEST("a gate: whoever comes after it was closed stays, whoever is inside gets a moment") {
  // Never destroyed: the thread that stays uses it.
  static auto* const gate = new ExitGate;
  static std::atomic<bool> inside{false}, leave{false}, passed{false}, destroyed{false};
  std::thread([] {
    struct Held {
      ~Held() { destroyed = true; }
    } held;
    gate->enter();
    gate->leave();
    gate->enter();
    inside = true;
    while (!leave) std::this_thread::sleep_for(1ms);
    gate->leave();
    gate->enter();
    passed = true;
  }).detach();
  while (!inside) std::this_thread::sleep_for(1ms);
  const auto start = std::chrono::steady_clock::now();
  CHECK(!gate->close(30ms));
  CHECK_LE(30.0, ms_since(start));
  leave = true;
  CHECK(gate->close(20s));
  CHECK(gate->close(0ms));  // it stays out
  std::this_thread::sleep_for(20ms);
  CHECK(!passed);
  CHECK(!destroyed);
}

TEST("a gate: nobody is inside, or the thread that closes it") {
  ExitGate empty, own;
  CHECK(empty.close(0ms));
  own.enter();
  CHECK(own.close(0ms));
}
