// Both layers of an MLP in one launch for bf16.
#include "data/cuda/hopper_mlp_launch.cuh"

namespace nexus::cuda {

void launch_wgmma_mlp_bf16(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters,
                           const Target& target) {
  hopper::launch_mlp<__nv_bfloat16>(variant, layers, counters, DType::kBF16, target);
}

}  // namespace nexus::cuda
