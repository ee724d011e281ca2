#include "exec/block_cache.h"

#include <algorithm>
#include <bit>

// Under AddressSanitizer a cached block is off limits, so that recycling hides no use after release.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(memory, size) ((void)(memory), (void)(size))
#endif

namespace nexus {

size_t size_class(size_t bytes) {
  const size_t step = std::max<size_t>(64, std::bit_floor(std::max<size_t>(bytes, 2) - 1) / 8);
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}

void* BlockCache::take(size_t size) {
  std::lock_guard lock(mutex_);
  const auto found = by_size_.find(size);
  if (found == by_size_.end()) return nullptr;
  const auto newest = found->second.back();  // the likeliest to be in a cache of the processor
  void* memory = newest->first;
  found->second.pop_back();
  if (found->second.empty()) by_size_.erase(found);
  by_age_.erase(newest);
  bytes_ -= size;
  ASAN_UNPOISON_MEMORY_REGION(memory, size);
  return memory;
}

std::vector<BlockCache::Block> BlockCache::give(void* memory, size_t size) {
  if (size > max_bytes_) return {{memory, size}};
  std::vector<Block> evicted;
  std::lock_guard lock(mutex_);
  while (bytes_ + size > max_bytes_) {
    const Block oldest = by_age_.front();
    by_age_.pop_front();
    auto& same_size = by_size_[oldest.second];
    same_size.pop_front();
    if (same_size.empty()) by_size_.erase(oldest.second);
    bytes_ -= oldest.second;
    ASAN_UNPOISON_MEMORY_REGION(oldest.first, oldest.second);
    evicted.push_back(oldest);
  }
  by_age_.emplace_back(memory, size);
  by_size_[size].push_back(std::prev(by_age_.end()));
  bytes_ += size;
  ASAN_POISON_MEMORY_REGION(memory, size);
  return evicted;
}

std::vector<BlockCache::Block> BlockCache::drain() {
  std::lock_guard lock(mutex_);
  std::vector<Block> all(by_age_.begin(), by_age_.end());
  for (const auto& block : all) ASAN_UNPOISON_MEMORY_REGION(block.first, block.second);
  by_age_.clear();
  by_size_.clear();
  bytes_ = 0;
  return all;
}

size_t BlockCache::cached_bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace nexus
