// Router logits of half-precision tokens by a float32 weight: the CUDA-core tile of grouped_simt.cuh with a widened
// input.
#include "data/cuda/grouped_simt.cuh"

namespace nexus::cuda {

void launch_simt_router(DType input, const GroupedParams& params, const Target& target) {
  if (input == DType::kBF16)
    launch_simt_shape<SimtShape<__nv_bfloat16, float, 64, 64, 16, 4, 4, 3>>(kSimt64, params, target);
  else
    launch_simt_shape<SimtShape<__half, float, 64, 64, 16, 4, 4, 3>>(kSimt64, params, target);
}

}  // namespace nexus::cuda
