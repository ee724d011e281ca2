// The tensor-core grouped linear layer for f16; one dtype per file so that they compile in parallel.
#include "data/cuda/grouped_mma.cuh"

namespace nexus::cuda {

void launch_mma_f16(const Variant& variant, const GroupedParams& params, const Target& target) {
  launch_mma<__half>(variant, params, target);
}

}  // namespace nexus::cuda
