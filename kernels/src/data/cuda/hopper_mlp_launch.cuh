// The launch of hopper_mlp.cuh's kernel, and which shape it has for a variant.
#pragma once
#include <algorithm>

#include "data/cuda/check.h"
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_mlp.cuh"
#include "data/cuda/hopper_mlp.h"
#include "data/cuda/launch.h"

namespace nexus::cuda::hopper {

// The tiles of hopper_shapes.cuh. With up to 64 rows all threads have as many registers, as they do not need more:
// beside a block there is room for some of the next kernel's, which come while the last tiles are finished.
template <class T>
using MlpFewer = MlpShape<Shape<T, kWgmmaFewerRows, kWgmmaFewerStages, 1, 104, 104, 104, 0, Options<2, false, 2>>>;
template <class T>
using MlpNarrow = MlpShape<Shape<T, kWgmmaFewRows, kWgmmaNarrowStages, 1, 104, 104, 104, 0, Options<1, false, 2>>>;
template <class T>
using MlpNarrowFewer =
    MlpShape<Shape<T, kWgmmaFewerRows, kWgmmaNarrowFewerStages, 1, 104, 104, 104, 0, Options<1, false, 2>>>;
template <class T>
using MlpFew = MlpShape<Shape<T, kWgmmaFewRows, kWgmmaFewStages, 1, 128, 128, 128, 0, Options<2, true>>>;
template <class T>
using MlpMany = MlpShape<Shape<T, kWgmmaRows, kWgmmaStages, 1, 168, 88, 208, 0, Options<2, true>>>;

template <class S>
void launch_mlp_shape(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters, DType dtype,
                      const Target& target) {
  if (variant.bm != S::ROWS || variant.bn != S::COLUMNS || variant.stages != S::STAGES)
    throw Error(ErrorCode::kInternal,
                std::string("grouped_mlp: variant ") + variant.name + " does not match its kernel");
  MlpParams params{{layers[0], layers[1]}, counters, mlp_row_tiles(layers[0].experts)};
  const GroupedParams &one = layers[0], &two = layers[1];
  // Behind a word the sum may come at once at any size: the next step's routing, which it lets in, is worth its place.
  params.lets_in = one.ready != nullptr || mlp_lets_in(S::ROWS, one.max_rows / one.rows_per_input, two.n, target.width);
  params.layer[0].ahead = weights_ahead(static_cast<int64_t>(one.experts) * one.n * one.k * 2);
  unsigned tiles = 0;
  for (GroupedParams& p : params.layer) tiles = std::max(tiles, plan_grid(variant, p));
  const auto map_of = [&](const GroupedParams& p) { return weights_map(dtype, p, S::BOX_COLUMNS, S::PANELS); };
  const CUtensorMap first = map_of(params.layer[0]), second = map_of(params.layer[1]);
  static KernelFacts facts;
  const auto kernel = &mlp_wgmma_kernel<S>;
  const int at_once = facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, S::THREADS,
                                                      S::SHARED_BYTES);
  // As many blocks as fit at once on what the stream may use; no result, and no end, depends on their number.
  const unsigned blocks = std::min(tiles, static_cast<unsigned>(std::max(1, target.width * at_once)));
  launch("grouped_mlp", kernel, blocks, S::THREADS, S::SHARED_BYTES, target.device, target.stream, params, first,
         second);
}

template <class T>
void launch_mlp(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters, DType dtype,
                const Target& target) {
  if (&variant == &kWgmmaFewer) return launch_mlp_shape<MlpFewer<T>>(variant, layers, counters, dtype, target);
  if (&variant == &kWgmmaNarrow) return launch_mlp_shape<MlpNarrow<T>>(variant, layers, counters, dtype, target);
  if (&variant == &kWgmmaFew) return launch_mlp_shape<MlpFew<T>>(variant, layers, counters, dtype, target);
  if (&variant == &kWgmma) return launch_mlp_shape<MlpMany<T>>(variant, layers, counters, dtype, target);
  launch_mlp_shape<MlpNarrowFewer<T>>(variant, layers, counters, dtype, target);
}

}  // namespace nexus::cuda::hopper
