// Both layers of an MLP in one launch of pairs for bf16.
#include "data/cuda/hopper_mlp_pairs_launch.cuh"

namespace nexus::cuda {

void launch_wgmma_mlp_pairs_bf16(const Variant& variant, const GroupedParams (&layers)[2], int32_t* counters,
                                 const Target& target) {
  hopper::launch_mlp_pairs<__nv_bfloat16>(variant, layers, counters, DType::kBF16, target);
}

}  // namespace nexus::cuda
