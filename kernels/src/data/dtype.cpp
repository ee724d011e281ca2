// Element types: names, the scalar conversions that define the bits, and `convert`, which runs the same rules in the
// CPU's vectors (dtype_test.cpp holds every set to every bit of these).
#include "nexus/dtype.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "data/cpu/isa.h"
#include "nexus/error.h"

namespace nexus {

const char* name_of(DType t) {
  switch (t) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kI32:
      return "i32";
  }
  return "unknown";
}

float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t f32_to_bf16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) {  // infinity, or a NaN made quiet as the hardware does
    const uint32_t quiet = mantissa ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  if (exponent == 0) {  // zero and subnormals: mantissa · 2^-24, exact in float32
    const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

uint16_t f32_to_f16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and above
  if (magnitude >= 0x38800000u) {  // normal: drop 13 bits to nearest even; a carry may reach infinity, as it should
    const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | (rounded >> 13));
  }
  // Subnormal: adding 0.5 puts the unit in the last place at 2^-24, so the addition itself rounds to nearest even.
  const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
  return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
}

void convert(const void* src, DType from, void* dst, DType to, size_t n) {
  if (from == DType::kI32 || to == DType::kI32)
    throw_invalid(std::string("convert: expected f32, bf16 or f16, got ") + name_of(from) + " to " + name_of(to));
  if (n == 0) return;
  if (from == to) {
    std::memcpy(dst, src, n * size_of(from));
    return;
  }
  const cpu::Isa& isa = cpu::isa();
  const int64_t count = static_cast<int64_t>(n);
  if (from == DType::kF32) return isa.from_f32[static_cast<int>(to)](static_cast<const float*>(src), dst, count);
  if (to == DType::kF32) return isa.to_f32[static_cast<int>(from)](src, static_cast<float*>(dst), count);
  constexpr int64_t kPiece = 1024;  // between the two 16-bit types: through float32, exact on the way in
  float piece[kPiece];
  for (int64_t i = 0; i < count; i += kPiece) {
    const int64_t m = std::min(kPiece, count - i);
    isa.to_f32[static_cast<int>(from)](static_cast<const uint16_t*>(src) + i, piece, m);
    isa.from_f32[static_cast<int>(to)](piece, static_cast<uint16_t*>(dst) + i, m);
  }
}

}  // namespace nexus
