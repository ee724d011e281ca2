// The wgmma grouped linear layer for bf16, in the shapes whose kernels have lanes, and what variants all shapes are.
// One dtype per file so that they compile in parallel.
#include "data/cuda/hopper_launch.cuh"

namespace nexus::cuda {

namespace {

template <class S>
constexpr Variant variant(const char* name, bool share_sm = false) {
  return {name,  Kernel::kWgmma, SumOrder::kWgmma64, S::ROWS * S::CLUSTER, S::COLUMNS,
          S::BK, S::STAGES,      S::THREADS / 32,    S::SHARED_BYTES,      share_sm};
}
using T = __nv_bfloat16;

}  // namespace

const Variant kWgmma = variant<hopper::Chosen<T, 1>>("wgmma_256x160x64_s4");
const Variant kWgmmaPair = variant<hopper::Chosen<T, 2>>("wgmma_256x320x64_s4_pair");
const Variant kWgmmaFew = variant<hopper::Few<T>>("wgmma_256x64x64_s5");
const Variant kWgmmaFewer = variant<hopper::Fewer<T>>("wgmma_256x32x128_s3");
const Variant kWgmmaNarrow = variant<hopper::Narrow<T>>("wgmma_128x64x128_s4");
const Variant kWgmmaNarrowFewer = variant<hopper::NarrowFewer<T>>("wgmma_128x32x128_s5");
const Variant kWgmmaNarrowMore = variant<hopper::NarrowMore<T>>("wgmma_128x96x64_s7");
const Variant kWgmmaRest = variant<hopper::Chosen<T, 1>>("wgmma_256x160x64_s4_rest");
const Variant kWgmmaPairRest = variant<hopper::Chosen<T, 2>>("wgmma_256x320x64_s4_pair_rest");
const Variant kWgmmaFewRest = variant<hopper::Few<T>>("wgmma_256x64x64_s5_rest");
const Variant kWgmmaNarrowFewerRest = variant<hopper::NarrowFewerRest<T>>("wgmma_128x32x128_s5_rest");
const Variant kWgmmaShare = variant<hopper::Sharing<T, 1>>("wgmma_256x96x64_s3", true);
const Variant kWgmmaSharePair = variant<hopper::Sharing<T, 2>>("wgmma_256x192x64_s3_pair", true);

void launch_wgmma_bf16(const Variant& variant, const GroupedParams& params, const Target& target) {
  hopper::launch_plain<T>(variant, params, DType::kBF16, target);
}

bool wgmma_loaded() {
  cudaFuncAttributes attributes{};
  const auto kernel = &hopper::grouped_wgmma_kernel<hopper::Chosen<T, 2>, false>;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)), "cudaFuncGetAttributes");
  return attributes.ptxVersion >= 90;  // 80: compiled by the driver from the PTX of 8.0, where the kernel is empty
}

}  // namespace nexus::cuda
