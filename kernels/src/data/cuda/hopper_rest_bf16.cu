// The wgmma grouped linear layer for bf16, for odd widths.
#include "data/cuda/hopper_rest_launch.cuh"

namespace nexus::cuda {

void launch_wgmma_rest_bf16(const Variant& variant, const GroupedParams& params, const Target& target) {
  hopper::launch_rest<__nv_bfloat16>(variant, params, DType::kBF16, target);
}

}  // namespace nexus::cuda
