// The grouped linear layer for a handful of rows. See gemv.cu.
#pragma once
#include "data/cuda/grouped.h"

namespace nexus::cuda {

/// Up to so many rows it is a candidate at all: each reads its expert's weights for itself.
constexpr int64_t kGemvMostRows = 64;

void launch_gemv(DType dtype, GroupedParams params, const Target& target);

}  // namespace nexus::cuda
