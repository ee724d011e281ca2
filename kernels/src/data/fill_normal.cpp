// Public fill_normal: validation, then the backend of the stream's device. The sequence itself is in philox.h.
#include "data/backend.h"
#include "data/validate.h"

namespace nexus {

void fill_normal(Stream& s, void* dst, DType dtype, int64_t n, uint64_t seed, float scale) {
  using namespace validate;
  floating("dtype", dtype);
  at_least("n", n, 0);
  finite("scale", scale);
  if (n == 0) return;
  pointer("dst", dst);
  const auto run = s.device().is_cpu() ? cpu::fill_normal : cuda::fill_normal;
  run(s, dst, dtype, n, seed, scale);
}

}  // namespace nexus
