// The ring of counts: what the router of each step writes, and the host reads whenever it likes, without either waiting
// for the other. A slot is a sequence lock: the writer clears its sequence, writes, then sets it; a reader copies and
// looks at the sequence before and after. Sequences never repeat, so an equal one means that nothing was written
// between.
#include <algorithm>
#include <atomic>
#include <cstring>
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
    uint64_t written = 0;  // steps that are complete: slots are written in order, so all below the newest are
    for (int i = 0; i < capacity_; ++i)
      written = std::max(written, word(slot(static_cast<uint64_t>(i))).load(std::memory_order_acquire));
    Reading reading;
    reading.next = std::max(from, written);
    if (from >= written) return reading;
    const uint64_t held = static_cast<uint64_t>(capacity_);
    const uint64_t first = std::max(from, written > held ? written - held : 0);
    reading.lost = first - from;
    std::vector<uint64_t> copy(static_cast<size_t>(stride_));
    for (uint64_t step = first; step < written; ++step) {
      // Not this step's any more: the writer has come round.
      if (!copy_slot(step, copy)) {
        ++reading.lost;
        continue;
      }
      reading.steps.push_back(step);
      reading.tokens.push_back(static_cast<int32_t>(copy[1]));
      const size_t at = reading.counts.size();
      reading.counts.resize(at + static_cast<size_t>(experts_));
      std::memcpy(reading.counts.data() + at, copy.data() + 2, static_cast<size_t>(experts_) * sizeof(int32_t));
    }
    return reading;
  }

 private:
  uint64_t* slot(uint64_t step) const {
    return memory_->host + static_cast<size_t>(step % static_cast<uint64_t>(capacity_)) * static_cast<size_t>(stride_);
  }
  bool copy_slot(uint64_t step, std::vector<uint64_t>& to) const {
    uint64_t* from = slot(step);
    if (word(from).load(std::memory_order_acquire) != step + 1) return false;
    const int used = 2 + (experts_ + 1) / 2;
    for (int i = 1; i < used; ++i) to[static_cast<size_t>(i)] = word(from + i).load(std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_acquire);
    return word(from).load(std::memory_order_relaxed) == step + 1;
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
  explicit CpuRingMemory(size_t words) : words_(words, 0) {
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
  word(slot).store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  word(slot + 1).store(static_cast<uint64_t>(tokens), std::memory_order_relaxed);
  for (int e = 0; e < experts; e += 2) {
    int32_t pair[2] = {counts[e], e + 1 < experts ? counts[e + 1] : 0};
    uint64_t both;
    std::memcpy(&both, pair, sizeof both);
    word(slot + 2 + e / 2).store(both, std::memory_order_relaxed);
  }
  word(slot).store(step + 1, std::memory_order_release);
  *ring.counter = step + 1;
}

}  // namespace cpu
}  // namespace nexus
