// The wgmma grouped linear layer for f16.
#include "data/cuda/hopper_launch.cuh"

namespace nexus::cuda {

void launch_wgmma_f16(const Variant& variant, const GroupedParams& params, const Target& target) {
  hopper::launch<__half>(variant, params, DType::kF16, target);
}

}  // namespace nexus::cuda
