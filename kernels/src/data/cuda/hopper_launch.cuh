// The launch of hopper_grouped.cuh's kernel.
#pragma once
#include <algorithm>

#include "data/cuda/check.h"
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_grouped.cuh"

namespace nexus::cuda::hopper {

template <class T, int CLUSTER>
using Chosen = Shape<T, kWgmmaRows, kWgmmaStages, CLUSTER>;

template <class S>
void launch_shape(const Variant& variant, GroupedParams params, DType dtype, int device, cudaStream_t stream) {
  if (variant.bm != S::ROWS * S::CLUSTER || variant.bn != S::COLUMNS || variant.shared_bytes != S::SHARED_BYTES)
    throw Error(ErrorCode::kInternal,
                std::string("grouped_linear: variant ") + variant.name + " does not match its kernel");
  const unsigned tiles = plan_grid(variant, params);
  const CUtensorMap map =
      swizzled_map(dtype, params.weight, static_cast<int64_t>(params.experts) * params.n, params.k, S::BOX_COLUMNS);
  const CUtensorMap row_map =
      params.gather ? map : swizzled_map(dtype, params.input, params.max_rows, params.k, S::BOX_ROWS);
  const auto kernel = &grouped_wgmma_kernel<S>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), device, S::SHARED_BYTES);
  // As many clusters as fit at once; on a slice of the device they take turns. No result depends on their number.
  const unsigned clusters = std::min(tiles, static_cast<unsigned>(std::max(1, multiprocessors(device) / S::CLUSTER)));
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = S::CLUSTER, attributes[0].val.clusterDim.y = 1, attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;  // see launch.h
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(clusters * S::CLUSTER);
  config.blockDim = dim3(S::THREADS);
  config.dynamicSmemBytes = S::SHARED_BYTES;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = has_dependent_launch(device) ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<const GroupedParams>(params), map, row_map), variant.name);
}

template <class T>
void launch(const Variant& variant, const GroupedParams& params, DType dtype, int device, cudaStream_t stream) {
  if (variant.bm == kWgmmaRows)
    launch_shape<Chosen<T, 1>>(variant, params, dtype, device, stream);
  else
    launch_shape<Chosen<T, 2>>(variant, params, dtype, device, stream);
}

}  // namespace nexus::cuda::hopper
