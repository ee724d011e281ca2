// Further shapes of the Hopper kernel, for a table of measured choices (nexus/variants.h) to choose among; which of
// them is fastest where is not known before it is measured, so none is chosen without a table. All keep the plain
// shape's order of sums, so its bits. Compiled for bf16 and launches without lanes only, where they are to be compared:
// each costs a megabyte of code. A launch with lanes, or beside a neighbour on its SMs, takes the plain shape.
//
// X(name, rows, stages, cluster, registers of producer, of a consumer, blocks, staged, ahead, turns, mixed): see Shape
// and Options. The name is columns × rows × k of a cluster's tile.
#pragma once
#include <cstddef>

#include "data/cuda/grouped.h"

/// For few rows an expert, or few tiles: 128 columns instead of 256, twice the tiles and so half the last wave's loss,
/// and of 16 to 96 rows, so that 128 to 192 KiB of weights are in flight.
#define NEXUS_WGMMA_NARROW(X)                                                      \
  X("wgmma_128x16x64_s12_ahead", 16, 12, 1, 64, 216, 1, false, true, false, false) \
  X("wgmma_128x32x64_s11", 32, 11, 1, 64, 216, 1, false, false, false, false)      \
  X("wgmma_128x32x64_s11_ahead", 32, 11, 1, 64, 216, 1, false, true, false, false) \
  X("wgmma_128x64x64_s9", 64, 9, 1, 64, 216, 1, false, false, false, false)        \
  X("wgmma_128x64x64_s9_ahead", 64, 9, 1, 64, 216, 1, false, true, false, false)   \
  X("wgmma_128x96x64_s8_ahead", 96, 8, 1, 64, 216, 1, false, true, false, false)   \
  X("wgmma_256x64x64_s5_ahead", 64, 5, 1, 64, 216, 2, false, true, false, false)   \
  X("wgmma_256x96x64_s5", 96, 5, 1, 64, 216, 2, false, false, false, false)        \
  X("wgmma_256x96x64_s5_ahead", 96, 5, 1, 64, 216, 2, false, true, false, false)

/// For many: finished rows leave in whole lines, or beside the next tile's products.
#define NEXUS_WGMMA_WIDE(X)                                                                   \
  X("wgmma_256x160x64_s4_staged", 160, 4, 1, 64, 216, 2, true, false, false, false)           \
  X("wgmma_256x320x64_s4_pair_staged", 160, 4, 2, 64, 216, 2, true, false, false, false)      \
  X("wgmma_256x160x64_s4_staged_ahead", 160, 4, 1, 64, 216, 2, true, true, false, false)      \
  X("wgmma_256x320x64_s4_pair_staged_ahead", 160, 4, 2, 64, 216, 2, true, true, false, false) \
  X("wgmma_256x160x64_s4_staged_mixed", 160, 4, 1, 64, 216, 2, true, true, false, true)       \
  X("wgmma_256x320x64_s4_pair_staged_mixed", 160, 4, 2, 64, 216, 2, true, true, false, true)  \
  X("wgmma_128x320x64_s6_pair_turns", 160, 6, 2, 64, 216, 2, false, false, true, false)

namespace nexus::cuda {

#define NEXUS_COUNT(...) +1
constexpr size_t kWgmmaNarrowShapes = 0 NEXUS_WGMMA_NARROW(NEXUS_COUNT);
constexpr size_t kWgmmaWideShapes = 0 NEXUS_WGMMA_WIDE(NEXUS_COUNT);
#undef NEXUS_COUNT

extern const Variant kWgmmaNarrow[kWgmmaNarrowShapes];
extern const Variant kWgmmaWide[kWgmmaWideShapes];

/// Where `variant` is among `all`; COUNT: nowhere.
template <size_t COUNT>
constexpr size_t place_among(const Variant (&all)[COUNT], const Variant& variant) {
  size_t i = 0;
  while (i < COUNT && &all[i] != &variant) ++i;
  return i;
}

/// What stands in for a variant of these tables; any other is its own.
const Variant& plain_shape(const Variant& variant);

void launch_narrow_bf16(size_t shape, const GroupedParams& params, const Target& target);
void launch_wide_bf16(size_t shape, const GroupedParams& params, const Target& target);

}  // namespace nexus::cuda
