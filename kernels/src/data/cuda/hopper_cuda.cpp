// See arch.h and hopper.h.
#include <atomic>
#include <cstdlib>

#include "data/cuda/check.h"
#include "data/cuda/hopper.h"
#include "exec/cuda_device.h"

namespace nexus::cuda {

namespace {

enum Arch { kUnread = -1, kAuto = 0, kAmpere = 80, kHopper = 90 };
std::atomic<int> chosen{kUnread};

Arch parse(const std::string& text, const char* argument) {
  if (text.empty()) return kAuto;
  if (text == "80") return kAmpere;
  if (text == "90") return kHopper;
  throw_invalid(std::string(argument) + ": got '" + text + "', expected 80 or 90");
}
Arch from_environment() {
  const char* text = std::getenv("NEXUS_CUDA_ARCH");
  return parse(text ? text : "", "NEXUS_CUDA_ARCH");
}

}  // namespace

bool hopper_path(int device) {
  int arch = chosen.load(std::memory_order_relaxed);
  if (arch == kUnread) {
    arch = from_environment();
    chosen.store(arch, std::memory_order_relaxed);  // racing threads store the same value
  }
  if (arch == kAmpere) return false;
  const bool hopper = device_facts(device).wgmma;
  if (arch == kHopper && !hopper)
    throw_unsupported(
        "NEXUS_CUDA_ARCH: 90 needs a GPU of compute capability 9.0 and this library's code for it; cuda:" +
        std::to_string(device) + " has not both");
  return hopper;
}

std::vector<std::string> cuda_archs(int device) {
  std::vector<std::string> all{"80"};
  if (device_facts(device).wgmma) all.push_back("90");
  return all;
}

void set_cuda_arch(const std::string& arch) {
  chosen.store(arch.empty() ? kUnread : parse(arch, "set_cuda_arch"), std::memory_order_relaxed);
}

CUtensorMap swizzled_map(DType dtype, const void* matrix, int64_t rows, int64_t k, int box_rows) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = reinterpret_cast<Encode>(driver_function("cuTensorMapEncodeTiled", 12000));
  if (!encode)
    throw_unsupported("grouped_linear: this driver has no cuTensorMapEncodeTiled; NEXUS_CUDA_ARCH=80 avoids it");
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t pitch[1] = {static_cast<cuuint64_t>(k) * 2};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)}, stride[2] = {1, 1};
  CUtensorMap map;
  // Promotion to 128 bytes, a box's own row: 256 reads 5 % slower from memory (4.2 against 4.4 TB/s on an H200).
  const CUresult status =
      encode(&map, dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
             const_cast<void*>(matrix), size, pitch, box, stride, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    Error error(ErrorCode::kDevice, "cuTensorMapEncodeTiled: CUresult " + std::to_string(static_cast<int>(status)) +
                                        " for a matrix [" + std::to_string(rows) + ", " + std::to_string(k) + "]");
    error.native = "CUresult " + std::to_string(static_cast<int>(status));
    throw error;
  }
  return map;
}

const Variant& plain_shape(const Variant& variant) {
  if (&variant == &kWgmmaNarrow || &variant == &kWgmmaNarrowFew) return kWgmmaFew;
  if (&variant == &kWgmmaStaged) return kWgmma;
  if (&variant == &kWgmmaPairStaged) return kWgmmaPair;
  return variant;
}

void launch_wgmma(const Variant& chosen, DType dtype, const GroupedParams& params, const Target& target) {
  const Variant& plain = plain_shape(chosen);
  const bool lanes = &plain == &chosen || with_lanes(params), bf16 = dtype == DType::kBF16;
  if (lanes) return (bf16 ? launch_wgmma_bf16 : launch_wgmma_f16)(plain, params, target);
  (bf16 ? launch_wgmma_without_lanes_bf16 : launch_wgmma_without_lanes_f16)(chosen, params, target);
}

}  // namespace nexus::cuda
