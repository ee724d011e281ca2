// Element types and their host-side conversions (round to nearest even).
// The numeric values cross the addon boundary: keep them equal to lib/dtype.ts.
#pragma once
#include <cstddef>
#include <cstdint>

namespace nexus {

enum class DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI32 = 3 };

constexpr size_t size_of(DType t) { return t == DType::kBF16 || t == DType::kF16 ? 2 : 4; }
const char* name_of(DType t);  ///< "f32", "bf16", "f16", "i32"

float bf16_to_f32(uint16_t bits);
float f16_to_f32(uint16_t bits);
uint16_t f32_to_bf16(float v);  ///< NaN stays a (quiet) NaN
uint16_t f32_to_f16(float v);   ///< overflow becomes infinity, as IEEE says

/// Converts n elements between any two of f32, bf16 and f16 (or copies where equal). SIMD where the CPU has it.
void convert(const void* src, DType from, void* dst, DType to, size_t n);

}  // namespace nexus
