// Both layers of an MLP in one launch for f16.
#include "data/cuda/hopper_mlp_launch.cuh"

namespace nexus::cuda {

void launch_wgmma_mlp_f16(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters,
                          const Target& target) {
  hopper::launch_mlp<__half>(variant, layers, counters, DType::kF16, target);
}

}  // namespace nexus::cuda
