// Host side of hopper_mlp.cuh: both layers of an MLP in one launch.
#pragma once
#include <cstddef>
#include <cstdint>

#include "data/cuda/grouped.h"

namespace nexus::cuda {

/// Row tiles that its launches have counters for. With up to 160 rows an expert (the plain shapes' range) there are at
/// most so many; other problems take two launches.
constexpr int mlp_row_tiles(int experts) { return 2 * experts + 8; }
/// Of the memory by which its blocks know one another; zero before the first launch, and after each.
constexpr size_t mlp_sync_bytes(int experts) { return (2 + 2 * static_cast<size_t>(mlp_row_tiles(experts))) * 4; }

/// Launches both layers, where this is a problem for it. `first`, `second`: as for launches of their own by the
/// variants `of_first` and `of_second`. False: nothing was launched.
bool launch_wgmma_mlp(DType dtype, const Variant& of_first, const Variant& of_second, const GroupedParams& first,
                      const GroupedParams& second, int32_t* sync, const Target& target);

}  // namespace nexus::cuda
