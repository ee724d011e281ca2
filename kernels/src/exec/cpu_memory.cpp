// Buffers of the CPU: 64-byte aligned blocks from a bounded arena of size classes, given back when the streams that
// used them have come that far.
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>

#include "exec/block_cache.h"
#include "exec/cpu_graph.h"
#include "telemetry/host_machine.h"

namespace nexus::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
/// From here on a fresh block is checked against what the machine has: Linux would grant it and kill somebody later.
constexpr size_t kCheckedBytes = size_t{64} << 20;

BlockCache& arena() {
  static auto* cache = [] {
    const int64_t total = host_memory().total;
    return new BlockCache(static_cast<size_t>(std::clamp<int64_t>(total / 8, int64_t{64} << 20, int64_t{2} << 30)));
  }();
  return *cache;
}

void release(const std::vector<BlockCache::Block>& blocks) {
  for (const auto& [memory, size] : blocks) std::free(memory);
}

[[noreturn]] void out_of_memory(size_t bytes, int64_t available) {
  Error error(ErrorCode::kOutOfMemory, "cpu: out of memory: " + std::to_string(bytes) + " bytes requested, " +
                                           (available < 0 ? "an unknown number" : std::to_string(available)) +
                                           " available");
  error.requested = static_cast<int64_t>(std::min<size_t>(bytes, INT64_MAX));
  error.available = available;
  throw error;
}

int64_t available_memory() {
  const int64_t available = host_memory().available;
  return available < 0 ? -1 : available + static_cast<int64_t>(arena().cached_bytes());
}

void* fresh(size_t size) {
  const bool large = size >= 2 * kHugePage;
  void* memory = nullptr;
  if (posix_memalign(&memory, large ? kHugePage : 64, size) != 0) return nullptr;
  if (large) (void)madvise(memory, size, MADV_HUGEPAGE);  // advice only: weights then miss the TLB less
  return memory;
}

void* allocate_block(size_t bytes) {
  // Its size class would overflow, and no machine has it.
  if (bytes > static_cast<size_t>(INT64_MAX / 2)) out_of_memory(bytes, available_memory());
  const size_t size = size_class(bytes);
  if (void* memory = arena().take(size)) return memory;
  require_host_memory(bytes);
  if (void* memory = fresh(size)) return memory;
  release(arena().drain());
  if (void* memory = fresh(size)) return memory;
  out_of_memory(bytes, available_memory());
}

/// The memory itself. Queues hold references behind the work that uses it; the last one to let go recycles it.
struct Block {
  void* memory;
  size_t size;
  std::atomic<bool> lost{false};
  ~Block() {
    if (!lost) release(arena().give(memory, size));
  }
};

class CpuBuffer final : public Buffer {
 public:
  CpuBuffer(std::shared_ptr<Stream> owner, std::shared_ptr<Block> block, size_t bytes)
      : Buffer(owner->device(), block->memory, bytes),
        live_(std::make_shared<LiveBytes>(owner->device(), bytes)),
        block_(std::move(block)) {
    streams_.push_back(std::move(owner));
  }
  ~CpuBuffer() override {
    // During a capture recorded work may use the memory: the graph takes it over.
    for (const auto& stream : streams_) {
      const auto recording = static_cast<CpuStream&>(*stream).capture().recording;
      if (!recording) continue;
      try {
        recording->keep(
            [live = live_, block = block_, streams = streams_]() mutable { release_behind(streams, block); });
      } catch (...) {
        block_->lost = true;
      }
      return;
    }
    release_behind(streams_, block_);
  }
  void record_use(const std::shared_ptr<Stream>& stream) override {
    if (!stream) throw_invalid("Buffer::record_use: stream is null");
    if (!stream->device().is_cpu())
      throw_invalid("Buffer::record_use: a buffer of cpu, a stream of " + stream->device().name());
    std::lock_guard lock(mutex_);
    if (std::find(streams_.begin(), streams_.end(), stream) == streams_.end()) streams_.push_back(stream);
  }

 private:
  static void release_behind(const std::vector<std::shared_ptr<Stream>>& streams, const std::shared_ptr<Block>& block) {
    for (const auto& stream : streams) {
      try {
        static_cast<CpuStream&>(*stream).queue().push_marker([block](std::exception_ptr) {});
      } catch (...) {
        block->lost = true;  // no memory for the marker: queued work may still use the block, so it is never recycled
      }
    }
  }

  std::shared_ptr<LiveBytes> live_;
  std::shared_ptr<Block> block_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Stream>> streams_;  // the owner first
};

}  // namespace

void require_host_memory(size_t bytes) {
  if (bytes < kCheckedBytes) return;
  const int64_t available = available_memory();
  if (available < 0) return;  // unknown: the kernel decides
  if (bytes > static_cast<size_t>(available)) out_of_memory(bytes, available);
  if (bytes + arena().cached_bytes() > static_cast<size_t>(available)) release(arena().drain());
}

std::shared_ptr<Buffer> allocate_buffer(const std::shared_ptr<Stream>& stream, size_t bytes) {
  static_cast<CpuStream&>(*stream).refuse_in_capture(
      "Buffer::allocate: the stream is being captured into a graph, which has no memory of its own; allocate before");
  void* memory = allocate_block(bytes);
  return std::make_shared<CpuBuffer>(stream, std::shared_ptr<Block>(new Block{memory, size_class(bytes), false}),
                                     bytes);
}

void* host_allocate(DeviceId, size_t bytes) {
  require_host_memory(bytes);
  void* memory = fresh(bytes);
  if (memory == nullptr) out_of_memory(bytes, host_memory().available);
  return memory;
}
void host_free(void* memory, size_t) noexcept { std::free(memory); }

void memory_info(DeviceId, MemoryStats& stats) {
  const HostMemory memory = host_memory();
  stats.free_bytes = memory.available;
  stats.total_bytes = memory.total;
}

}  // namespace nexus::cpu
