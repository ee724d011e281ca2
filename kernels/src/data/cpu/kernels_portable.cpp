// The leaf kernels in plain C++ ("scalar"): four lanes in the compiler's own vectors, for machines without AVX2 and as
// the check on the others. No fused multiply-add, no intrinsics: any architecture compiles it.
#include <cmath>

#include "data/cpu/isa.h"

namespace nexus::cpu {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

using Lanes = float __attribute__((vector_size(16)));

struct Vec {
  static constexpr int kWidth = 4;
  Lanes v;

  template <class F>
  static Vec each(F f) {
    Vec out;
    for (int i = 0; i < kWidth; ++i) out.v[i] = f(i);
    return out;
  }
  static Vec set1(float x) { return {Lanes{x, x, x, x}}; }
  static Vec load(const float* p) { return {Lanes{p[0], p[1], p[2], p[3]}}; }
  static Vec load(const Bf16* p) {
    return each([&](int i) {
      const uint32_t bits = static_cast<uint32_t>(p[i].bits) << 16;
      float f;
      __builtin_memcpy(&f, &bits, 4);
      return f;
    });
  }
  static Vec load(const F16* p) {
    return each([&](int i) { return f16_to_f32(p[i].bits); });
  }
  static void store(float* p, Vec x) {
    for (int i = 0; i < kWidth; ++i) p[i] = x.v[i];
  }
  static void store(Bf16* p, Vec x) {
    for (int i = 0; i < kWidth; ++i) p[i].bits = f32_to_bf16(x.v[i]);
  }
  static void store(F16* p, Vec x) {
    for (int i = 0; i < kWidth; ++i) p[i].bits = f32_to_f16(x.v[i]);
  }
  float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
  static void deinterleave(const float* p, Vec& even, Vec& odd) {
    for (int i = 0; i < kWidth; ++i) {
      even.v[i] = p[2 * i];
      odd.v[i] = p[2 * i + 1];
    }
  }
  static void transpose(Vec* t) {
    for (int i = 0; i < kWidth; ++i)
      for (int j = 0; j < i; ++j) {
        const float x = t[i].v[j];
        t[i].v[j] = t[j].v[i];
        t[j].v[i] = x;
      }
  }
};
inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
inline Vec min(Vec a, Vec b) {
  return Vec::each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec max(Vec a, Vec b) {
  return Vec::each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Vec abs(Vec a) {
  return Vec::each([&](int i) { return std::fabs(a.v[i]); });
}
inline Vec round(Vec a) {
  return Vec::each([&](int i) { return std::nearbyint(a.v[i]); });
}
inline Vec pow2(Vec n) {
  return Vec::each([&](int i) {
    const int32_t exponent = n.v[i] == n.v[i] ? static_cast<int32_t>(n.v[i]) : 0;
    const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
  });
}
inline Vec select_negative(Vec x, Vec if_negative, Vec otherwise) {
  return Vec::each([&](int i) { return x.v[i] < 0.f ? if_negative.v[i] : otherwise.v[i]; });
}

constexpr int kDotRows = 2, kDotColumns = 2, kPanelRows = 4;
constexpr int kDotMaxRows = 8, kDotMaxRows16Bit = 8;
#include "data/cpu/simd_kernels.h"
constexpr Isa kTable = make_table("scalar");

}  // namespace
const Isa* isa_portable() { return &kTable; }
}  // namespace nexus::cpu
