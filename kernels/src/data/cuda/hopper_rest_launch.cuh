// The launch of hopper_rest.cuh's kernel, and which shape it has for a variant.
#pragma once
#include "data/cuda/hopper_launch.cuh"
#include "data/cuda/hopper_rest.cuh"

namespace nexus::cuda::hopper {

template <class S>
void launch_rest_shape(const Variant& variant, GroupedParams params, DType dtype, const Target& target) {
  const unsigned tiles = plan_grid(variant, params);
  const auto weights = [&](int box_rows, int panels) { return weights_map(dtype, params, box_rows, panels); };
  const int rest = static_cast<int>(params.n % S::COLUMNS);
  const auto both = [&](int panels) -> WeightMaps {
    const CUtensorMap whole = weights(S::BOX_COLUMNS, panels);
    return {whole, rest > 0 ? weights(rest, panels) : whole};
  };
  RestMapsOf<S> maps;
  maps.steps = both(S::PANELS);
  maps.rows =
      params.copy_rows ? maps.steps.whole : rows_map(dtype, params.input, params.max_rows, params.k, S::BOX_ROWS);
  if constexpr (S::PANELS > 1) maps.panels = params.k % S::BK != 0 ? both(1) : maps.steps;
  static KernelFacts facts;
  launch_clusters<S>(variant, &grouped_wgmma_rest_kernel<S>, facts, tiles, params, 0, target, maps);
}

template <class T>
void launch_rest(const Variant& variant, const GroupedParams& params, DType dtype, const Target& target) {
  if (&variant == &kWgmmaRest) return launch_rest_shape<Chosen<T, 1>>(variant, params, dtype, target);
  if (&variant == &kWgmmaPairRest) return launch_rest_shape<Chosen<T, 2>>(variant, params, dtype, target);
  if (&variant == &kWgmmaFewRest) return launch_rest_shape<Few<T>>(variant, params, dtype, target);
  launch_rest_shape<NarrowFewerRest<T>>(variant, params, dtype, target);
}

}  // namespace nexus::cuda::hopper
