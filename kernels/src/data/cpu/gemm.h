// The CPU's grouped product, of which grouped_linear and router_logits are the two uses: they differ only in the dtypes
// of input, weight and output. See gemm.cpp for how it is split.
#pragma once
#include "nexus/experts.h"

namespace nexus::cpu {

/// Which kernel takes the rows of an expert: by their number (uses_dot_kernel), or one for all.
enum class RowKernel { kByRows, kDot, kPanel };

struct GroupedProduct {
  DType input_dtype, weight_dtype, output_dtype;
  int experts = 1;
  int64_t k = 0, n = 0;
  Epilogue epilogue = Epilogue::kIdentity;
  EpilogueParams params{};
  const void* input = nullptr;
  const void* weight = nullptr;
  const float* bias = nullptr;
  void* output = nullptr;
  const int32_t* offsets = nullptr;  ///< null: one expert with max_rows rows
  const int32_t* order = nullptr;
  int32_t rows_per_input = 1;
  bool gather = false, scatter = false;
  const float* row_scale = nullptr;
  int64_t max_rows = 0;
  const StepBlock* step = nullptr;  ///< without offsets the rows are its tokens, up to max_rows
  bool step_input = false;          ///< input is its x
  LaneView lanes{};
  RowKernel kernel = RowKernel::kByRows;
  int workers = 1;  ///< virtual workers of the stream, which cooperative lanes divide
};

/// Runs now, on all threads. `offsets`, `step` and the table of `lanes` are read here: call it inside the stream's
/// closure.
void run_grouped_product(const GroupedProduct& p);

/// True where rows of one expert go through the dot kernel, false for the packed-panel kernel.
bool uses_dot_kernel(DType weight_dtype, int64_t rows, int64_t n);

}  // namespace nexus::cpu
