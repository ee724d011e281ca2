// Host side of the Hopper path (hopper_grouped.cuh): its shapes, its launchers, and its tensor maps. When it may run is
// in arch.h.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "data/cuda/arch.h"
#include "data/cuda/grouped.h"

namespace nexus::cuda {

/// Rows of a block's tile, of 256 columns, and stages: what hopper_shapes.cuh makes shapes of, once for blocks on their
/// own and once for clusters of two that share weights. Finished rows leave through shared memory.
constexpr int kWgmmaRows = 160, kWgmmaStages = 4;
extern const Variant kWgmma, kWgmmaPair;
/// For few rows an expert, where weights are all that matters: 160 KiB of them in flight on an SM, across tiles, so
/// that a third of the chip reads as fast as all of it. Finished rows leave through shared memory here, too. Same order
/// of sums, so the same bits as kWgmma.
constexpr int kWgmmaFewRows = 64, kWgmmaFewStages = 5;
extern const Variant kWgmmaFew;
/// The same by stages of 128 elements of k, which memory delivers faster (hopper_shape.h): for k a multiple of 64 and n
/// of 8. With 32 rows a tile, as more would leave room for two stages only, or with 128 columns: more and smaller
/// tiles, also for layers of few weights. Without lanes, for which each would cost another half megabyte of code: see
/// plain_shape().
constexpr int kWgmmaFewerRows = 32, kWgmmaFewerStages = 3, kWgmmaNarrowStages = 4, kWgmmaNarrowFewerStages = 5;
extern const Variant kWgmmaFewer, kWgmmaNarrow, kWgmmaNarrowFewer;
/// For layers of few weights and more rows: 128 columns, so that there are tiles for all SMs, and finished rows through
/// shared memory, since nothing hides what comes behind a block's only tiles. Without lanes.
constexpr int kWgmmaMoreRows = 96, kWgmmaNarrowMoreStages = 7;
extern const Variant kWgmmaNarrowMore;
/// For odd widths (hopper_rest.cuh): the shapes of those names over again. Without lanes.
extern const Variant kWgmmaRest, kWgmmaPairRest, kWgmmaFewRest, kWgmmaNarrowFewerRest;
/// Whether a variant is one of those.
bool for_odd_widths(const Variant& variant);
/// Beside a neighbour on the same SM: of its 228 KiB and 65536 registers, 92 KiB and 19456 are left. That is two blocks
/// of the 16-row mma variant, or a block of any other kernel of a step of up to 8 tokens and 256 experts: a tile of 128
/// rows would leave no room for a neighbour's router, and so hold up its whole step.
constexpr int kWgmmaShareRows = 96, kWgmmaShareStages = 3;
extern const Variant kWgmmaShare, kWgmmaSharePair;

/// What stands in for a shape without lanes in a launch that has them, or neighbours on its SMs: the same bits. Any
/// other variant is its own.
const Variant& plain_shape(const Variant& variant);

/// A matrix [rows, k] of 16-bit elements in boxes of box_rows × 64 elements, 128-byte swizzle, zeros outside.
CUtensorMap rows_map(DType dtype, const void* matrix, int64_t rows, int64_t k, int box_rows);
/// The same of all experts' weights, in boxes of box_rows × panels · 64 elements, for copy_weights_box(). In a box,
/// eight rows have all their panels before the next eight; and of a gated layer each sixteen rows, which alternate
/// between gate and up, come as eight gates and the eight ups that belong to them. So wgmma leaves a pair's two
/// products in one thread. Its coordinates are weights_at()'s.
CUtensorMap weights_map(DType dtype, const GroupedParams& params, int box_rows, int panels);

/// True where the current device's loaded code of the wgmma kernels is that for 9.0a.
bool wgmma_loaded();
void launch_wgmma(const Variant& variant, DType dtype, const GroupedParams& params, const Target& target);

// Its parts, in the files that compile their kernels: by dtype, by whether there are any for lanes, for odd widths.
void launch_wgmma_bf16(const Variant& variant, const GroupedParams& params, const Target& target);
void launch_wgmma_f16(const Variant& variant, const GroupedParams& params, const Target& target);
void launch_wgmma_without_lanes_bf16(const Variant& variant, const GroupedParams& params, const Target& target);
void launch_wgmma_without_lanes_f16(const Variant& variant, const GroupedParams& params, const Target& target);
void launch_wgmma_rest_bf16(const Variant& variant, const GroupedParams& params, const Target& target);
void launch_wgmma_rest_f16(const Variant& variant, const GroupedParams& params, const Target& target);

}  // namespace nexus::cuda
