// Per-thread float scratch, aligned to 64 bytes, that grows to the largest task seen and is kept: a task allocates
// nothing.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace nexus::cpu {

class Scratch {
 public:
  /// Uninitialised; valid until the next call on this object.
  float* floats(int64_t n) {
    if (n > capacity_) {
      data_.reset(static_cast<float*>(::operator new(static_cast<size_t>(n) * sizeof(float), std::align_val_t{64})));
      capacity_ = n;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace nexus::cpu
