// The wgmma grouped linear layer for bf16; one dtype per file so that they compile in parallel.
#include "data/cuda/hopper_launch.cuh"

namespace nexus::cuda {

const Variant kWgmma{"wgmma_256x160x64_s4",
                     Kernel::kWgmma,
                     kWgmmaRows,
                     kWgmmaColumns,
                     64,
                     kWgmmaStages,
                     12,
                     static_cast<size_t>(hopper::Chosen<__nv_bfloat16, 1>::SHARED_BYTES)};
const Variant kWgmmaPair{"wgmma_256x320x64_s4_pair",
                         Kernel::kWgmma,
                         kWgmmaRows * 2,
                         kWgmmaColumns,
                         64,
                         kWgmmaStages,
                         12,
                         static_cast<size_t>(hopper::Chosen<__nv_bfloat16, 2>::SHARED_BYTES)};

void launch_wgmma_bf16(const Variant& variant, const GroupedParams& params, int device, cudaStream_t stream) {
  hopper::launch<__nv_bfloat16>(variant, params, DType::kBF16, device, stream);
}

bool wgmma_loaded() {
  cudaFuncAttributes attributes{};
  const auto kernel = &hopper::grouped_wgmma_kernel<hopper::Chosen<__nv_bfloat16, 2>>;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "cudaFuncGetAttributes");
  return attributes.ptxVersion >= 90;  // 80: compiled by the driver from the PTX of 8.0, where the kernel is empty
}

}  // namespace nexus::cuda
