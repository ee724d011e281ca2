// What the float64 oracles share: reading an element of any dtype, and the activations in their textbook form.
#pragma once
#include <algorithm>
#include <cmath>

#include "nexus/experts.h"

namespace nexus::reference {

inline double element(const void* base, DType t, int64_t i) {
  switch (t) {
    case DType::kF32:
      return static_cast<const float*>(base)[i];
    case DType::kBF16:
      return bf16_to_f32(static_cast<const uint16_t*>(base)[i]);
    case DType::kF16:
      return f16_to_f32(static_cast<const uint16_t*>(base)[i]);
    case DType::kI32:
      break;
  }
  throw_invalid("dtype: expected f32, bf16 or f16, got i32");
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
inline double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
}

/// `up` is read by the gated ones alone.
inline double activate(Epilogue e, const EpilogueParams& params, double x, double up) {
  switch (e) {
    case Epilogue::kIdentity:
      return x;
    case Epilogue::kRelu:
      return std::max(x, 0.0);
    case Epilogue::kGelu:
      return gelu(x);
    case Epilogue::kGeluTanh:
      return gelu_tanh(x);
    case Epilogue::kSilu:
      return x * sigmoid(x);
    case Epilogue::kSwiglu:
      return x * sigmoid(x) * up;
    case Epilogue::kGeglu:
      return gelu(x) * up;
    case Epilogue::kGegluTanh:
      return gelu_tanh(x) * up;
    case Epilogue::kReglu:
      return std::max(x, 0.0) * up;
    case Epilogue::kClampedSwiglu: {
      const double limit = params.limit, gate = std::min(x, limit);
      return gate * sigmoid(params.alpha * gate) * (std::clamp(up, -limit, limit) + 1);
    }
  }
  throw_invalid("epilogue: not a value of Epilogue");
}

}  // namespace nexus::reference
