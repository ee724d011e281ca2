// The float32 grouped linear layer (FFMA), four tile shapes.
#include "data/cuda/grouped_simt.cuh"

namespace nexus::cuda {

void launch_simt_f32(const Variant& variant, const GroupedParams& params, const Target& target) {
  //                                           BM   BN   BK  TM TN min blocks
  if (variant.bm == 16)
    launch_simt_shape<SimtShape<float, float, 16, 64, 32, 2, 4, 4>>(variant, params, target);
  else if (variant.bm == 32)
    launch_simt_shape<SimtShape<float, float, 32, 128, 16, 8, 8, 6>>(variant, params, target);
  else if (variant.bm == 64)
    launch_simt_shape<SimtShape<float, float, 64, 64, 16, 4, 4, 3>>(variant, params, target);
  else
    launch_simt_shape<SimtShape<float, float, 128, 128, 16, 8, 8, 2>>(variant, params, target);
}

}  // namespace nexus::cuda
