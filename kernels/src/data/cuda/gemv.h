// The grouped linear layer for a handful of rows. See gemv.cu.
#pragma once
#include "data/cuda/grouped.h"

namespace nexus::cuda {

/// Up to so many rows it is a candidate at all: each reads its expert's weights for itself.
constexpr int64_t kGemvMostRows = 64;
/// When it is taken without a measurement: few rows over many experts, so that hardly any two share weights; rows of
/// input and weight 16-byte aligned. At most 160 MB of weights, beyond which the deep pipelines of the tensor-core
/// kernel read faster.
constexpr bool gemv_fits(DType dtype, int64_t k, int64_t n, int experts, int64_t max_rows, bool aligned) {
  constexpr double kMostBytes = 160e6;
  const bool few = max_rows == 1 || (max_rows <= 16 && 4 * max_rows <= experts);
  const double bytes = static_cast<double>(k) * static_cast<double>(n) * static_cast<double>(max_rows) * size_of(dtype);
  return aligned && few && bytes <= kMostBytes;
}

void launch_gemv(DType dtype, GroupedParams params, const Target& target);

}  // namespace nexus::cuda
