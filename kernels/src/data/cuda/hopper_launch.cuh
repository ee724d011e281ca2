// The launch of hopper_grouped.cuh's kernel, and which shape it has for a variant.
#pragma once
#include <algorithm>

#include "data/cuda/check.h"
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_shapes.cuh"
#include "data/cuda/mlp_tiles.h"

namespace nexus::cuda::hopper {

/// Queues `clusters` clusters of a kernel of shape S.
template <class S, class... Parameters, class... Arguments>
void launch_as_clusters(const char* name, void (*kernel)(Parameters...), unsigned clusters, const Target& target,
                        const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = S::CLUSTER, attributes[0].val.clusterDim.y = 1, attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;  // see launch.h
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(clusters * S::CLUSTER);
  config.blockDim = dim3(S::THREADS);
  config.dynamicSmemBytes = S::SHARED_BYTES;
  config.stream = target.stream;
  config.attrs = attributes;
  config.numAttrs = device_facts(target.device).dependent_launch ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}

/// So much of a first layer's weights to L2, where they are no more than this: 512/1024/8/2 has 16 MiB, and a step
/// takes 2 % less; 1024/2048/16/2 has 128, and would take 0.5 % more.
constexpr int64_t kFirstAhead = 4 << 20, kFirstAheadOf = 16 << 20;

/// Queues a kernel of shape S for up to `tiles` tiles, where `maps` follow its parameters. `read_ahead`: see
/// ring_quarters().
template <class S, class... M>
void launch_clusters(const Variant& variant, void (*kernel)(GroupedParams, M...), KernelFacts& facts, unsigned tiles,
                     GroupedParams params, int64_t read_ahead, const Target& target, const M&... maps) {
  if (variant.bm != S::ROWS * S::CLUSTER || variant.bn != S::COLUMNS || variant.shared_bytes != S::SHARED_BYTES)
    throw Error(ErrorCode::kInternal,
                std::string("grouped_linear: variant ") + variant.name + " does not match its kernel");
  const int at_once = facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, S::THREADS,
                                                      S::SHARED_BYTES, variant.share_sm);
  // As many clusters as fit at once on what the stream may use; beside a neighbour on the same SMs they take turns. No
  // result depends on their number.
  const unsigned clusters = std::min(tiles, static_cast<unsigned>(std::max(1, target.width * at_once / S::CLUSTER)));
  // The next kernel's blocks find SMs of their own, on which they set up meanwhile: two launches of 512/1024/8/2 take 3
  // us less. Where they would only wait for this kernel's to leave, at 4096 tokens, steps take 1 % longer.
  // So it is where there are few weights: 2 to 3 % of a step, though there are blocks for all SMs.
  params.lets_in = S::FEW_WEIGHTS || clusters * S::CLUSTER < static_cast<unsigned>(target.width);
  if (S::FEW_WEIGHTS && params.settled)  // a second layer: while the first is at work
    params.ahead = weights_ahead(static_cast<int64_t>(params.experts) * params.n * params.k * 2);
  // A first layer's, while the step before ends: of more weights too few of them are the ones that are read first.
  const int64_t all = static_cast<int64_t>(params.experts) * params.n * params.k * 2;
  if (S::FEW_WEIGHTS && params.ready != nullptr && all <= kFirstAheadOf) params.ahead = std::min(all, kFirstAhead);
  params.ring = ring_quarters(read_ahead, clusters, S::WEIGHT_BYTES, S::STAGES);
  launch_as_clusters<S>(variant.name, kernel, clusters, target, params, maps...);
}

/// LANES: there is a kernel for launches with lanes, too.
template <class S, bool LANES = true>
void launch_shape(const Variant& variant, GroupedParams params, DType dtype, const Target& target) {
  const unsigned tiles = plan_grid(variant, params);
  const CUtensorMap map = weights_map(dtype, params, S::BOX_COLUMNS, S::PANELS);
  const CUtensorMap row_map =
      params.copy_rows ? map : rows_map(dtype, params.input, params.max_rows, params.k, S::BOX_ROWS);
  static KernelFacts facts[2];
  const bool lanes = with_lanes(params);
  auto kernel = &grouped_wgmma_kernel<S, false>;
  if constexpr (LANES) kernel = lanes ? &grouped_wgmma_kernel<S, true> : kernel;
  if (lanes && !LANES)
    throw Error(ErrorCode::kInternal, std::string("grouped_linear: variant ") + variant.name + " has no lanes");
  launch_clusters<S>(variant, kernel, facts[lanes], tiles, params, lanes ? 0 : target.read_ahead, target, map, row_map);
}

/// For a variant whose kernels have lanes.
template <class T>
void launch_plain(const Variant& variant, const GroupedParams& params, DType dtype, const Target& target) {
  if (&variant == &kWgmma) return launch_shape<Chosen<T, 1>>(variant, params, dtype, target);
  if (&variant == &kWgmmaPair) return launch_shape<Chosen<T, 2>>(variant, params, dtype, target);
  if (&variant == &kWgmmaFew) return launch_shape<Few<T>>(variant, params, dtype, target);
  if (&variant == &kWgmmaShare) return launch_shape<Sharing<T, 1>>(variant, params, dtype, target);
  launch_shape<Sharing<T, 2>>(variant, params, dtype, target);
}

/// For one whose kernels have none.
template <class T>
void launch_without_lanes(const Variant& variant, const GroupedParams& params, DType dtype, const Target& target) {
  if (&variant == &kWgmmaFewer) return launch_shape<Fewer<T>, false>(variant, params, dtype, target);
  if (&variant == &kWgmmaNarrow) return launch_shape<Narrow<T>, false>(variant, params, dtype, target);
  if (&variant == &kWgmmaNarrowMore) return launch_shape<NarrowMore<T>, false>(variant, params, dtype, target);
  launch_shape<NarrowFewer<T>, false>(variant, params, dtype, target);
}

}  // namespace nexus::cuda::hopper
