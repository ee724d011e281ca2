// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC'11) and the normals made from it.
// Counter-based: element i depends on (seed, i) alone, so any split over threads or blocks gives the same bits, and a
// tensor can be refilled in part. One header for both compilers, so that the CPU and CUDA cannot drift apart.
#pragma once
#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define NEXUS_HOST_DEVICE __host__ __device__
#else
#define NEXUS_HOST_DEVICE
#endif

namespace nexus {

struct Philox4 {
  uint32_t v[4];
};

/// Ten rounds on the 128-bit counter {block, 0} under the 64-bit key `seed`.
NEXUS_HOST_DEVICE inline Philox4 philox4x32(uint64_t seed, uint64_t block) {
  uint32_t c0 = static_cast<uint32_t>(block), c1 = static_cast<uint32_t>(block >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(b);
    c3 = static_cast<uint32_t>(a);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Philox4{{c0, c1, c2, c3}};
}

/// Normals 4·block … 4·block+3 of the sequence `seed`, times scale, as float32: Box-Muller in float64, rounded once.
/// A 32-bit word w is the uniform (w + 0.5) / 2^32, exact in float64 and never 0 or 1.
NEXUS_HOST_DEVICE inline void philox_normal4(uint64_t seed, uint64_t block, double scale, float out[4]) {
  const Philox4 r = philox4x32(seed, block);
  for (int pair = 0; pair < 2; ++pair) {
    const double u = (static_cast<double>(r.v[2 * pair]) + 0.5) * 0x1.0p-32;
    const double turn = (static_cast<double>(r.v[2 * pair + 1]) + 0.5) * 0x1.0p-32;
    const double radius = std::sqrt(-2.0 * std::log(u));
    const double angle = 6.283185307179586476925 * turn;
    out[2 * pair] = static_cast<float>(scale * (radius * std::cos(angle)));
    out[2 * pair + 1] = static_cast<float>(scale * (radius * std::sin(angle)));
  }
}

}  // namespace nexus
