// The grouped linear layer for a handful of rows. See gemv.cu.
#pragma once
#include "data/cuda/grouped.h"

namespace nexus::cuda {

/// Up to so many rows it is a candidate at all: each reads its expert's weights for itself.
constexpr int64_t kGemvMostRows = 64;
/// When it is taken without a measurement: few rows over many experts, so that hardly any two share weights, or so
/// little to read that it does not matter; rows of input and weight 16-byte aligned. At most 240 MB of weights, beyond
/// which the deep pipelines of the tensor-core kernel read faster. A gated layer counts as half of what it is, which is
/// as much as the layer behind it: both choose alike.
constexpr bool gemv_fits(DType dtype, int64_t k, int64_t n, int experts, int64_t max_rows, bool aligned, bool gated) {
  constexpr double kMostBytes = 240e6, kFewBytes = 70e6;
  const double bytes = static_cast<double>(k) * static_cast<double>(gated ? n / 2 : n) * static_cast<double>(max_rows) *
                       static_cast<double>(size_of(dtype));
  const bool few = max_rows == 1 || (max_rows <= 16 && (4 * max_rows <= experts || bytes <= kFewBytes));
  return aligned && few && bytes <= kMostBytes;
}

void launch_gemv(DType dtype, GroupedParams params, const Target& target);

}  // namespace nexus::cuda
