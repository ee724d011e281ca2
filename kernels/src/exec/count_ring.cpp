// The ring of counts: what the router of each step writes, and the host reads whenever it likes, without either waiting
// for the other. Every word of a slot carries the lower half of its step, so a copy in which all words are of one step
// is whole, in whatever order they arrived; steps never repeat.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <string>

#include "exec/backend.h"
#include "exec/fault.h"
#include "exec/step.h"

namespace nexus {
namespace {

constexpr int kRingExperts = 1024;  // kMaxExperts of router.h
constexpr int kMaxCapacity = 65536;

/// Memory that another thread or the device writes meanwhile: every word goes through an atomic access.
std::atomic_ref<uint64_t> word(uint64_t* p) { return std::atomic_ref<uint64_t>(*p); }

class DeviceCountRing final : public CountRing {
 public:
  DeviceCountRing(DeviceId device, int experts, int capacity)
      : device_(device), experts_(experts), capacity_(capacity), stride_(ring_stride(experts)) {
    const size_t words = static_cast<size_t>(capacity) * static_cast<size_t>(stride_);
    memory_ = device.is_cpu() ? cpu::ring_memory(words) : cuda::ring_memory(device, words);
  }

  /// The memory goes once every stream that wrote it has come this far. Nobody is told of a failure here: it is a
  /// broken context, which every later call reports.
  ~DeviceCountRing() override {
    try {
      std::shared_ptr<RingMemory> memory(memory_.release(), [](RingMemory* m) {
        try {
          run_in_background([m] { delete m; }, [](std::exception_ptr) {});
        } catch (...) {  // no thread for it: the memory stays ours
        }
      });
      for (const auto& stream : users_) on_complete(stream, [memory](std::exception_ptr) {});
    } catch (...) {
    }
  }

  CountRingView view() const override { return {memory_->slots, memory_->counter, capacity_, stride_}; }
  int experts() const override { return experts_; }
  int capacity() const override { return capacity_; }

  void record_use(const std::shared_ptr<Stream>& stream) override {
    if (!stream) throw_invalid("stream: expected a stream, got null");
    if (!(stream->device() == device_))
      throw_invalid("stream: expected one of " + device_.name() + ", got one of " + stream->device().name());
    std::lock_guard lock(mutex_);
    if (std::find(users_.begin(), users_.end(), stream) == users_.end()) users_.push_back(stream);
  }

  Reading read(uint64_t from) const override {
    uint64_t begun = 0;  // steps of which something has arrived: in order, so all below the newest have
    for (int i = 0; i < capacity_; ++i) {
      const uint64_t head = word(slot(static_cast<uint64_t>(i))).load(std::memory_order_relaxed);
      if (head != kEmptyRingWord) begun = std::max(begun, (head << 32 | head >> 32) + 1);
    }
    Reading reading;
    const uint64_t held = static_cast<uint64_t>(capacity_);
    uint64_t step = std::max(from, begun > held ? begun - held : 0);
    reading.lost = step - from;
    std::vector<int32_t> copy(static_cast<size_t>(experts_) + 1);
    for (; step < begun; ++step) {
      const Slot found = copy_slot(step, copy);
      if (found == Slot::kArriving) break;  // the next reading has it
      if (found == Slot::kOverwritten) {    // the writer has come round
        ++reading.lost;
        continue;
      }
      reading.steps.push_back(step);
      reading.tokens.push_back(copy[0]);
      reading.counts.insert(reading.counts.end(), copy.begin() + 1, copy.end());
    }
    reading.next = step;
    return reading;
  }

 private:
  uint64_t* slot(uint64_t step) const {
    return memory_->host + static_cast<size_t>(step % static_cast<uint64_t>(capacity_)) * static_cast<size_t>(stride_);
  }
  enum class Slot { kWhole, kArriving, kOverwritten };
  /// Tokens, then counts.
  Slot copy_slot(uint64_t step, std::vector<int32_t>& to) const {
    uint64_t* from = slot(step);
    const auto low = static_cast<uint32_t>(step), high = static_cast<uint32_t>(step >> 32);
    for (int i = 0; i < 2 + experts_; ++i) {
      const uint64_t value = word(from + i).load(std::memory_order_relaxed);
      // What is not of this step is of one before it (a multiple of the capacity earlier, or nothing), or of a later
      // one.
      const auto ahead = static_cast<int32_t>(static_cast<uint32_t>(value >> 32) - low);
      if (value == kEmptyRingWord || ahead < 0) return Slot::kArriving;
      if (ahead > 0 || (i == 0 && static_cast<uint32_t>(value) != high)) return Slot::kOverwritten;
      if (i > 0) to[static_cast<size_t>(i - 1)] = static_cast<int32_t>(static_cast<uint32_t>(value));
    }
    return Slot::kWhole;
  }

  DeviceId device_;
  int experts_, capacity_;
  int32_t stride_;
  std::unique_ptr<RingMemory> memory_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Stream>> users_;
};

class CpuRingMemory final : public RingMemory {
 public:
  explicit CpuRingMemory(size_t words) : words_(words, kEmptyRingWord) {
    host = slots = words_.data();
    counter = &count_;
  }

 private:
  std::vector<uint64_t> words_;
  uint64_t count_ = 0;
};

}  // namespace

std::shared_ptr<CountRing> CountRing::create(DeviceId device, int experts, int capacity) {
  const auto in_range = [](const char* name, int value, int high) {
    if (value < 1 || value > high)
      throw_invalid(std::string(name) + ": expected 1.." + std::to_string(high) + ", got " + std::to_string(value));
  };
  in_range("experts", experts, kRingExperts);
  in_range("capacity", capacity, kMaxCapacity);
  if (device.is_cpu()) cpu::require_device(device);
  fault_point("count_ring.create", device);
  return std::make_shared<DeviceCountRing>(device, experts, capacity);
}

namespace cpu {

std::unique_ptr<RingMemory> ring_memory(size_t slot_words) { return std::make_unique<CpuRingMemory>(slot_words); }

void write_counts(const CountRingView& ring, int experts, int32_t tokens, const int32_t* counts) {
  const uint64_t step = *ring.counter;
  uint64_t* slot =
      ring.slots + static_cast<size_t>(step % static_cast<uint64_t>(ring.capacity)) * static_cast<size_t>(ring.stride);
  const auto put = [&](int i, uint32_t value) {
    word(slot + i).store(ring_word(step, value), std::memory_order_relaxed);
  };
  put(0, static_cast<uint32_t>(step >> 32));
  put(1, static_cast<uint32_t>(tokens));
  for (int e = 0; e < experts; ++e) put(2 + e, static_cast<uint32_t>(counts[e]));
  *ring.counter = step + 1;
}

}  // namespace cpu
}  // namespace nexus
