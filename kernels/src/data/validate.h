// Argument checks of the data plane's public functions: each names the argument, what came and what was expected.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>

#include "nexus/dtype.h"
#include "nexus/error.h"
#include "nexus/step.h"

namespace nexus::validate {

inline std::string text(double v) {
  if (std::nearbyint(v) == v && std::fabs(v) < 1e15) return std::to_string(static_cast<int64_t>(v));
  return std::to_string(v);
}

inline void in_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    throw_invalid(std::string(name) + ": expected " + std::to_string(low) + ".." + std::to_string(high) + ", got " +
                  std::to_string(value));
}
inline void at_least(const char* name, int64_t value, int64_t low) {
  if (value < low)
    throw_invalid(std::string(name) + ": expected at least " + std::to_string(low) + ", got " + std::to_string(value));
}
inline void finite(const char* name, double value) {
  if (!std::isfinite(value)) throw_invalid(std::string(name) + ": expected a finite number, got " + text(value));
}
inline void finite_not_negative(const char* name, double value) {
  if (!std::isfinite(value) || value < 0)
    throw_invalid(std::string(name) + ": expected a finite number >= 0, got " + text(value));
}
inline void pointer(const char* name, const void* value) {
  if (!value) throw_invalid(std::string(name) + ": expected memory, got null");
}
inline void floating(const char* name, DType t) {
  if (t != DType::kF32 && t != DType::kBF16 && t != DType::kF16)
    throw_invalid(std::string(name) + ": expected f32, bf16 or f16, got " + name_of(t));
}
/// Slots are int32 on the device. Both factors have been checked to be >= 0.
inline void slots(int64_t tokens, int64_t top_k, const char* name = "tokens") {
  if (tokens > INT32_MAX / top_k)
    throw_invalid(std::string(name) + " * top_k: expected below 2^31, got " + std::to_string(tokens) + " * " +
                  std::to_string(top_k));
}
/// Of a ring whose slots are memory.
inline void ring(const CountRingView& view, int64_t experts) {
  pointer("ring.counter", view.counter);
  at_least("ring.capacity", view.capacity, 1);
  at_least("ring.stride", view.stride, 2 + experts);
}
/// A view without a table is none, whatever its lane.
inline void lanes(const LaneView& view, int64_t experts) {
  if (!view.table) return;
  in_range("lanes.lane", view.lane, -1, kMaxLanes - 1);
  if (experts > kLaneExperts)
    throw_invalid("lanes.table: expected at most " + std::to_string(kLaneExperts) + " experts, got " +
                  std::to_string(experts));
}

}  // namespace nexus::validate
