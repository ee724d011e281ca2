// The tensor-core grouped linear layer for bf16; one dtype per file so that they compile in parallel.
#include "data/cuda/grouped_mma.cuh"

namespace nexus::cuda {

void launch_mma_bf16(const Variant& variant, const GroupedParams& params, const Target& target) {
  launch_mma<__nv_bfloat16>(variant, params, target);
}

}  // namespace nexus::cuda
