// The narrow shapes of hopper_variants.h for bf16.
#include "data/cuda/hopper_shapes.cuh"

namespace nexus::cuda {

namespace {
using T = __nv_bfloat16;
}

const Variant kWgmmaNarrow[] = {NEXUS_WGMMA_NARROW(NEXUS_VARIANT)};

void launch_narrow_bf16(size_t shape, const GroupedParams& params, const Target& target) {
  constexpr hopper::Launch* launchers[] = {NEXUS_WGMMA_NARROW(NEXUS_LAUNCHER)};
  launchers[shape](kWgmmaNarrow[shape], params, DType::kBF16, target);
}

}  // namespace nexus::cuda
