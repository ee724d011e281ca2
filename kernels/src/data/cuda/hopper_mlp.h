// Host side of hopper_mlp.cuh and hopper_mlp_pairs.cuh: both layers of an MLP in one launch.
#pragma once
#include <cstdint>

#include "data/cuda/grouped.h"
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_shape.h"

namespace nexus::cuda {

/// Launches both layers, where this is a problem for it: both variants the same one of its shapes, or both the pair's,
/// no lanes, nobody beside it on its SMs, no limit of bytes under way. `first`, `second`: as for launches of their own;
/// `choice_rows`: rows that the variants were chosen by. False: nothing was launched.
bool launch_wgmma_mlp(DType dtype, const Variant& of_first, const Variant& of_second, const GroupedParams& first,
                      const GroupedParams& second, int64_t choice_rows, int32_t* counters, const Target& target);

/// Turns of pairs in a layer of `columns` column tiles, for an expert with the mean of `rows` rows of all.
inline int mean_pair_turns(int64_t rows, int experts, int columns) {
  const int64_t span = int64_t{kWgmmaRows} * experts;
  return hopper::pair_turns(static_cast<int>((rows + span - 1) / span), columns);
}

// Its parts, in the files that compile their kernels.
void launch_wgmma_mlp_bf16(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters,
                           const Target& target);
void launch_wgmma_mlp_f16(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters,
                          const Target& target);
void launch_wgmma_mlp_pairs_bf16(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters,
                                 const Target& target);
void launch_wgmma_mlp_pairs_f16(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters,
                                const Target& target);

}  // namespace nexus::cuda
