// cpu::fill_normal: blocks of four normals by counter, so any split gives the same bits.
#include <algorithm>

#include "data/backend.h"
#include "data/philox.h"

namespace nexus::cpu {

void fill_normal(Stream& s, void* dst, DType dtype, int64_t n, uint64_t seed, float scale) {
  s.enqueue([=] {
    constexpr int64_t kElements = 4096;
    parallel_for((n + kElements - 1) / kElements, [&](int64_t task) {
      float values[kElements];
      const int64_t first = task * kElements, count = std::min(kElements, n - first);
      for (int64_t i = 0; i < count; i += 4)
        philox_normal4(seed, static_cast<uint64_t>((first + i) / 4), scale, values + i);
      convert(values, DType::kF32, static_cast<char*>(dst) + first * static_cast<int64_t>(size_of(dtype)), dtype,
              static_cast<size_t>(count));
    });
  });
}

}  // namespace nexus::cpu
