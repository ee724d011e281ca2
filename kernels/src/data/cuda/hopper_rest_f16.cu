// The wgmma grouped linear layer for f16, for odd widths.
#include "data/cuda/hopper_rest_launch.cuh"

namespace nexus::cuda {

void launch_wgmma_rest_f16(const Variant& variant, const GroupedParams& params, const Target& target) {
  hopper::launch_rest<__half>(variant, params, DType::kF16, target);
}

}  // namespace nexus::cuda
