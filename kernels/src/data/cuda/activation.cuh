// Activations in float32 with the accurate library functions (expf, erff, tanhf: within 2 ulp), shared by the fused
// epilogues and the unfused `activate`. Comparisons are written so that a NaN passes through, as in torch.
#pragma once
#include "nexus/experts.h"

namespace nexus::cuda {

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
__device__ __forceinline__ float relu(float x) { return x < 0.f ? 0.f : x; }
__device__ __forceinline__ float silu(float x) { return x / (1.f + expf(-x)); }
__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }
__device__ __forceinline__ float gelu_tanh(float x) {
  return 0.5f * x * (1.f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}
__device__ __forceinline__ float clamped_swiglu(float gate, float up, float limit, float alpha) {
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : (up < -limit ? -limit : up);
  return gate * sigmoid(alpha * gate) * (up + 1.f);
}

/// v[0..N) in; ungated: N results in v; gated: v[2i], v[2i+1] = gate, up and N/2 results in v[0..N/2). The switch
/// stands outside the loops: it is uniform over the grid.
template <int N>
__device__ __forceinline__ void apply_epilogue(Epilogue epilogue, float limit, float alpha, float (&v)[N]) {
#define NEXUS_EACH(expression)                    \
  _Pragma("unroll") for (int i = 0; i < N; ++i) { \
    const float x = v[i];                         \
    v[i] = expression;                            \
  }                                               \
  break
#define NEXUS_PAIRS(expression)                       \
  _Pragma("unroll") for (int i = 0; i < N / 2; ++i) { \
    const float gate = v[2 * i], up = v[2 * i + 1];   \
    v[i] = expression;                                \
  }                                                   \
  break
  switch (epilogue) {
    case Epilogue::kIdentity:
      break;
    case Epilogue::kRelu:
      NEXUS_EACH(relu(x));
    case Epilogue::kGelu:
      NEXUS_EACH(gelu(x));
    case Epilogue::kGeluTanh:
      NEXUS_EACH(gelu_tanh(x));
    case Epilogue::kSilu:
      NEXUS_EACH(silu(x));
    case Epilogue::kSwiglu:
      NEXUS_PAIRS(silu(gate) * up);
    case Epilogue::kGeglu:
      NEXUS_PAIRS(gelu(gate) * up);
    case Epilogue::kGegluTanh:
      NEXUS_PAIRS(gelu_tanh(gate) * up);
    case Epilogue::kReglu:
      NEXUS_PAIRS(relu(gate) * up);
    case Epilogue::kClampedSwiglu:
      NEXUS_PAIRS(clamped_swiglu(gate, up, limit, alpha));
  }
#undef NEXUS_EACH
#undef NEXUS_PAIRS
}

}  // namespace nexus::cuda
