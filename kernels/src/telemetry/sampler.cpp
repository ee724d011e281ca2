// The sampler thread: one per process while something is metered, for all monitors of all devices.
//
// Who else calls in here holds the mutex for moments only, and the thread never holds it while it asks a device. So a
// call that hangs stops the thread and nobody else: readers find the ring as it was, and the call's name.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <thread>

#include "exec/background_thread.h"
#include "exec/exit_gate.h"
#include "telemetry/call_watch.h"
#include "telemetry/energy_source.h"

namespace nexus {
namespace telemetry {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Name and start belong together only roughly: a reader that mixes two calls sees a short wait, which is no alarm.
std::atomic<const char*> current_call{nullptr};
std::atomic<double> current_since{0};

/// One device's source and the lock under which it is read.
struct Slot {
  std::mutex reading;
  std::unique_ptr<EnergySource> source;        // a GPU's is made by the sampler thread
  std::string nvml_path, uuid;                 // empty for the CPU
  bool cheap() const { return uuid.empty(); }  // may be read on any thread
};

}  // namespace

CallWatch::CallWatch(const char* name) {
  current_since.store(telemetry_now_ms(), std::memory_order_relaxed);
  current_call.store(name, std::memory_order_release);
}
CallWatch::~CallWatch() { current_call.store(nullptr, std::memory_order_release); }

}  // namespace telemetry

using namespace telemetry;

struct EnergyMonitor::State {
  std::shared_ptr<Slot> slot;
  double interval_ms = 0;
  size_t history = 0;
  double due = 0;                                               // when the next regular sample is
  double requested = -std::numeric_limits<double>::infinity();  // a sample at or after this was asked for …
  bool waiting = false;                                         // … and has not come yet
  bool stopped = false;
  std::deque<EnergySample> ring;
  EnergyReasons reasons;
  int64_t dropped = 0;
};

namespace {

using State = EnergyMonitor::State;

class Sampler {
 public:
  static Sampler& instance() {
    static auto* sampler = new Sampler;  // outlives every thread
    return *sampler;
  }

  std::shared_ptr<State> add(const EnergyMonitorOptions& options) {
    auto state = std::make_shared<State>();
    state->interval_ms = options.interval_ms;
    state->history = static_cast<size_t>(options.history);
    state->reasons.fill("no sample was taken yet");
    const bool cpu = options.device == "cpu";
    const std::string path = cpu ? "" : Nvml::default_path();
    const char* rapl_root = std::getenv("NEXUS_RAPL_PATH");
    const std::string key =
        cpu ? std::string("cpu:") + (rapl_root != nullptr ? rapl_root : "") : path + ":" + uuid_digits(options.device);
    // Read outside the lock, and thrown away where the slot is there already.
    std::unique_ptr<EnergySource> source = cpu ? make_cpu_source(find_rapl()) : nullptr;
    std::lock_guard lock(mutex_);
    start();
    auto& known = slots_[key];
    state->slot = known.lock();
    if (state->slot == nullptr) {
      state->slot = std::make_shared<Slot>();
      state->slot->source = std::move(source);
      if (!cpu) state->slot->nvml_path = path, state->slot->uuid = options.device;
      known = state->slot;
    }
    state->due = telemetry_now_ms();
    states_.push_back(state);
    wake_.notify_one();
    return state;
  }

  void remove(const std::shared_ptr<State>& state) {
    std::lock_guard lock(mutex_);
    state->stopped = true;
    wake_.notify_one();
  }

  double request(State& state) {
    std::shared_ptr<Slot> slot;
    double now = 0;
    {
      std::lock_guard lock(mutex_);
      now = telemetry_now_ms();
      state.requested = now;
      state.waiting = true;
      slot = state.slot;
      if (!slot->cheap()) wake_.notify_one();
    }
    if (slot->cheap()) sample(slot);
    return now;
  }

  EnergyMonitor::View read(const State& state, double after) {
    EnergyMonitor::View view;
    {
      std::lock_guard lock(mutex_);
      const auto first = std::upper_bound(state.ring.begin(), state.ring.end(), after,
                                          [](double t, const EnergySample& s) { return t < s[kEnergyTime]; });
      view.samples.assign(first, state.ring.end());
      view.reasons = state.reasons;
      view.dropped = state.dropped;
    }
    const BlockedCall blocked = blocked_call();
    view.blocked_call = blocked.call;
    view.blocked_ms = blocked.ms;
    return view;
  }

  uint64_t ask() {
    Question question{0, Nvml::default_path(), find_rapl()};
    std::lock_guard lock(mutex_);
    start();
    question.id = next_question_++;
    questions_.push_back(std::move(question));
    wake_.notify_one();
    return next_question_ - 1;
  }

  std::optional<EnergyInventory> answer(uint64_t id) {
    std::lock_guard lock(mutex_);
    const auto found = answers_.find(id);
    if (found == answers_.end()) return std::nullopt;
    auto result = std::move(found->second);
    answers_.erase(found);
    return result;
  }

  /// At process exit: no more questions to NVML, and the one under way gets a moment, since the library's own teardown
  /// comes next. One that hangs is left alone.
  void stop() { gate_.close(std::chrono::milliseconds(500)); }

 private:
  static constexpr size_t kMostAnswers = 16;
  struct Question {
    uint64_t id;
    std::string path;
    Rapl rapl;
  };

  /// Under the mutex.
  void start() {
    if (running_) return;
    start_background_thread("nexus-sampler", [this] { run(); });
    running_ = true;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      // Slots that nobody has any more go here, outside the lock, since closing NVML is a question to it.
      std::vector<std::shared_ptr<Slot>> unused;
      std::erase_if(states_, [&](const std::shared_ptr<State>& state) {
        if (state->stopped) unused.push_back(std::move(state->slot));
        return state->stopped;
      });
      std::deque<Question> questions;
      questions.swap(questions_);
      if (!unused.empty() || !questions.empty()) {
        lock.unlock();
        gate_.enter();
        unused.clear();
        for (auto& question : questions) settle(question);
        gate_.leave();
        lock.lock();
        std::erase_if(slots_, [](const auto& entry) { return entry.second.expired(); });
        continue;
      }
      if (states_.empty()) {
        running_ = false;
        return;
      }
      const double now = telemetry_now_ms();
      double next = kInfinity;
      std::vector<std::shared_ptr<Slot>> due;
      for (const auto& state : states_) {
        if (state->due > now && !(state->waiting && !state->slot->cheap())) {
          next = std::min(next, state->due);
        } else if (std::find(due.begin(), due.end(), state->slot) == due.end()) {
          due.push_back(state->slot);
        }
      }
      if (due.empty()) {
        wake_.wait_for(lock, std::chrono::duration<double, std::milli>(next - now));
        continue;
      }
      lock.unlock();
      gate_.enter();
      for (const auto& slot : due) sample(slot);
      due.clear();
      gate_.leave();
      lock.lock();
    }
  }

  /// The library, opened once for all sources that use it. Sampler thread only.
  std::shared_ptr<const Nvml> session(const std::string& path) {
    auto& known = sessions_[path];
    auto nvml = known.lock();
    if (nvml == nullptr) {
      const CallWatch watch("nvmlInit_v2");
      known = nvml = std::shared_ptr<const Nvml>(new Nvml(path), [](const Nvml* closing) {
        const CallWatch closing_watch("nvmlShutdown");
        delete closing;
      });
      // After the library's own exit handlers, so that ours runs before them.
      static const int registered = std::atexit([] { instance().stop(); });
      (void)registered;
    }
    return nvml;
  }

  void settle(const Question& question) {
    EnergyInventory inventory;
    try {
      inventory = take_inventory(*session(question.path), question.rapl);
    } catch (const std::exception& e) {
      inventory.nvml_detail = e.what();
    }
    std::lock_guard lock(mutex_);
    answers_.emplace(question.id, std::move(inventory));
    if (answers_.size() > kMostAnswers) answers_.erase(answers_.begin());  // nobody came for it
  }

  /// Reads a slot and hands the sample to those of its monitors for whom it is time.
  void sample(const std::shared_ptr<Slot>& slot) {
    const std::lock_guard reading(slot->reading);
    EnergySample sample;
    EnergyReasons reasons;
    try {
      if (slot->source == nullptr) slot->source = make_gpu_source(session(slot->nvml_path), slot->uuid);
      slot->source->sample(sample, reasons);
    } catch (const std::exception& e) {  // out of memory
      sample.fill(std::numeric_limits<double>::quiet_NaN());
      sample[kEnergyTime] = telemetry_now_ms();
      reasons.fill(e.what());
    }
    const double time = sample[kEnergyTime];
    std::lock_guard lock(mutex_);
    for (const auto& state : states_) {
      if (state->slot != slot || state->stopped) continue;
      const bool requested = state->waiting && time >= state->requested;
      if (!requested && state->due > time + 1) continue;
      if (requested) state->waiting = false;
      if (state->due <= time + 1) state->due = std::max(state->due + state->interval_ms, time);
      if (state->ring.size() == state->history) state->ring.pop_front(), ++state->dropped;
      state->ring.push_back(sample);
      state->reasons = reasons;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<State>> states_;
  std::map<std::string, std::weak_ptr<Slot>> slots_;
  std::map<std::string, std::weak_ptr<const Nvml>> sessions_;  // the thread's own
  std::deque<Question> questions_;
  std::map<uint64_t, EnergyInventory> answers_;
  uint64_t next_question_ = 1;
  bool running_ = false;
  ExitGate gate_;  // around questions to NVML
};

}  // namespace

double telemetry_now_ms() { return std::chrono::duration<double, std::milli>(Clock::now().time_since_epoch()).count(); }

std::shared_ptr<EnergyMonitor> EnergyMonitor::start(const EnergyMonitorOptions& options) {
  if (options.device.empty() || options.device.size() > 96)
    throw_invalid("device: expected 'cpu' or a UUID, got a text of " + std::to_string(options.device.size()) +
                  " characters");
  if (!(options.interval_ms >= 1 && options.interval_ms <= 3'600'000))
    throw_invalid("interval_ms: expected 1 to 3600000, got " + std::to_string(options.interval_ms));
  if (options.history < 2 || options.history > 10'000'000)
    throw_invalid("history: expected 2 to 10000000 samples, got " + std::to_string(options.history));
  return std::shared_ptr<EnergyMonitor>(new EnergyMonitor(Sampler::instance().add(options)));
}

EnergyMonitor::~EnergyMonitor() { Sampler::instance().remove(state_); }
double EnergyMonitor::request() { return Sampler::instance().request(*state_); }
EnergyMonitor::View EnergyMonitor::read(double after_ms) const { return Sampler::instance().read(*state_, after_ms); }

uint64_t request_inventory() { return Sampler::instance().ask(); }
std::optional<EnergyInventory> inventory_answer(uint64_t request) { return Sampler::instance().answer(request); }

BlockedCall blocked_call() {
  const char* call = current_call.load(std::memory_order_acquire);
  if (call == nullptr) return {};
  return {call, telemetry_now_ms() - current_since.load(std::memory_order_relaxed)};
}

}  // namespace nexus
