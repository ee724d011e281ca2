// The wide shapes of hopper_variants.h for bf16.
#include "data/cuda/hopper_shapes.cuh"

namespace nexus::cuda {

namespace {
using T = __nv_bfloat16;
}

const Variant kWgmmaWide[] = {NEXUS_WGMMA_WIDE(NEXUS_VARIANT)};

void launch_wide_bf16(size_t shape, const GroupedParams& params, const Target& target) {
  constexpr hopper::Launch* launchers[] = {NEXUS_WGMMA_WIDE(NEXUS_LAUNCHER)};
  launchers[shape](kWgmmaWide[shape], params, DType::kBF16, target);
}

}  // namespace nexus::cuda
