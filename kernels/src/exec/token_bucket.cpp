// Token buckets: few enough that graphs of all batch sizes fit in memory, close enough that little of a step is padding
// (at most half of it up to 16 tokens, where launches cost more than rows, then at most a third).
#include <bit>

#include "nexus/layer.h"

namespace nexus {

int64_t token_bucket(int64_t tokens) {
  constexpr int64_t kMost = int64_t{1} << 62;
  if (tokens < 0 || tokens > kMost)
    throw_invalid("tokens: expected 0.." + std::to_string(kMost) + ", got " + std::to_string(tokens));
  if (tokens == 0) return 0;
  const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(tokens)));
  const int64_t between = power / 4 * 3;
  return power > 16 && tokens <= between ? between : power;
}

}  // namespace nexus
