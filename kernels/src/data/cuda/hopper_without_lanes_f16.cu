// The wgmma grouped linear layer for f16, in the shapes whose kernels have no lanes.
#include "data/cuda/hopper_launch.cuh"

namespace nexus::cuda {

void launch_wgmma_without_lanes_f16(const Variant& variant, const GroupedParams& params, const Target& target) {
  hopper::launch_without_lanes<__half>(variant, params, DType::kF16, target);
}

}  // namespace nexus::cuda
