// Thread-block clusters (compute capability 9.0): up to eight blocks that are on the chip at the same time, by
// construction, and write one another's shared memory. Kernels built on them exist for the 9.0a code only: whoever
// launches one asks hopper_path() first.
#pragma once
#include <cuda_runtime.h>

#include <utility>

#include "data/cuda/check.h"

namespace nexus::cuda {

constexpr int kClusterBlocks = 8;  // the most that every device of compute capability 9.0 takes

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
#define NEXUS_CLUSTER_CODE(code) code
#else
constexpr bool kHasClusters = false;  // code for compute capability 8.0: its kernels with clusters are never launched
#define NEXUS_CLUSTER_CODE(code) __trap()
#endif

__device__ __forceinline__ int cluster_rank() {
  NEXUS_CLUSTER_CODE(return static_cast<int>(__clusterRelativeBlockRank()));
}
/// By every thread of every block, each arrival followed by a wait before the next one. What was written before an
/// arrival is seen behind the wait.
__device__ __forceinline__ void cluster_arrive() { NEXUS_CLUSTER_CODE(__cluster_barrier_arrive()); }
__device__ __forceinline__ void cluster_wait() { NEXUS_CLUSTER_CODE(__cluster_barrier_wait()); }
/// The same place in the shared memory of block `rank`, which must have started and must not have left.
template <class T>
__device__ __forceinline__ T* in_block(T* shared, int rank) {
  NEXUS_CLUSTER_CODE(return static_cast<T*>(__cluster_map_shared_rank(shared, static_cast<unsigned>(rank))));
}
#undef NEXUS_CLUSTER_CODE

/// One launch of `blocks` blocks in clusters of kClusterBlocks. The rule of launch.h holds here, too.
template <class... Parameters, class... Arguments>
void launch_clusters(const char* name, void (*kernel)(Parameters...), unsigned blocks, unsigned threads,
                     size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = kClusterBlocks;
  attributes[0].val.clusterDim.y = 1;
  attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...), name);
}

}  // namespace nexus::cuda
