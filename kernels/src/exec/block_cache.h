// Recycles host memory blocks by size class: fresh pages cost a fault each, page-locking costs far more. Bounded; the
// block that lay unused for longest makes room.
#pragma once
#include <cstddef>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace nexus {

/// Rounds up to one of eight classes per power of two (at most 1/8 is wasted), a multiple of 64.
size_t size_class(size_t bytes);

class BlockCache {
 public:
  using Block = std::pair<void*, size_t>;
  explicit BlockCache(size_t max_bytes) : max_bytes_(max_bytes) {}
  /// A cached block of exactly this class, or null.
  void* take(size_t size);
  /// Keeps the block; returns those that the caller must free instead (perhaps this one).
  std::vector<Block> give(void* memory, size_t size);
  /// Empties the cache; the caller frees what it returns.
  std::vector<Block> drain();
  size_t cached_bytes() const;

 private:
  mutable std::mutex mutex_;
  std::list<Block> by_age_;  // oldest first
  std::map<size_t, std::deque<std::list<Block>::iterator>> by_size_;
  size_t max_bytes_, bytes_ = 0;
};

}  // namespace nexus
