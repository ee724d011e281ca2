// The CPU's variants of a grouped linear layer: which kernel takes the rows of an expert (gemm.cpp).
#pragma once
#include "data/cpu/gemm.h"

namespace nexus::cpu {

/// By the table, else `dot` for few rows of an expert and `panel` for more; when batch-invariant one of the two
/// for all.
RowKernel choose(const GroupedLinearDesc& desc, int64_t rows, const VariantChoice& choice);
/// The one for all numbers of rows that needs no measured table: as fast as any for few rows, a quarter slower than
/// `panel` for hundreds, where `panel` takes up to twice the time for few (docs/kernels/cpu-log.md).
constexpr RowKernel kInvariantKernel = RowKernel::kDot;

}  // namespace nexus::cpu
