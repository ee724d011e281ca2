// The launch of hopper_mlp_pairs.cuh's kernel.
#pragma once
#include <algorithm>

#include "data/cuda/check.h"
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_launch.cuh"
#include "data/cuda/hopper_mlp.h"
#include "data/cuda/hopper_mlp_pairs.cuh"

namespace nexus::cuda::hopper {

// The tile of hopper_shapes.cuh. The finder, which walks both layers, has registers of the producers, which need fewer.
template <class T>
using MlpPairs = PairsShape<Shape<T, kWgmmaRows, kWgmmaStages, 2, 128, 40, 216, 40, Options<2, true>>>;

template <class T>
void launch_mlp_pairs(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters, DType dtype,
                      const Target& target) {
  using S = MlpPairs<T>;
  if (variant.bm != S::ROWS * S::CLUSTER || variant.bn != S::COLUMNS || variant.stages != S::STAGES)
    throw Error(ErrorCode::kInternal,
                std::string("grouped_mlp: variant ") + variant.name + " does not match its kernel");
  PairsParams params{};
  params.layer[0] = layers[0], params.layer[1] = layers[1], params.counters = counters;
  params.limit = mlp_row_tiles(layers[0].experts);
  unsigned tiles = 0;
  for (GroupedParams& p : params.layer) tiles = std::max(tiles, plan_grid(variant, p));
  const auto map_of = [&](const GroupedParams& p) { return weights_map(dtype, p, S::BOX_COLUMNS, S::PANELS); };
  const CUtensorMap first = map_of(params.layer[0]), second = map_of(params.layer[1]);
  const GroupedParams& two = params.layer[1];
  const CUtensorMap rows = rows_map(dtype, two.input, two.max_rows, two.k, S::BOX_ROWS);
  static KernelFacts facts;
  const auto kernel = &mlp_pairs_kernel<S>;
  const int at_once = facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, S::THREADS,
                                                      S::SHARED_BYTES);
  // As many pairs as fit at once on what the stream may use; no result, and no end, depends on their number.
  const unsigned pairs = std::min(tiles, static_cast<unsigned>(std::max(1, target.width * at_once / S::CLUSTER)));
  const auto turns = [](const GroupedParams& p) { return mean_pair_turns(p.max_rows, p.experts, p.n_tiles); };
  params.delta = mlp_delta(static_cast<int>(pairs), turns(params.layer[0]), turns(params.layer[1]));
  params.lets_in = pairs * S::CLUSTER < static_cast<unsigned>(target.width);  // as in launch_clusters()
  launch_as_clusters<S>("grouped_mlp", kernel, pairs, target, params, first, second, rows);
}

}  // namespace nexus::cuda::hopper
