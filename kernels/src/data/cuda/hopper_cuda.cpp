// See arch.h and hopper.h.
#include <algorithm>
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

namespace {

/// 128-byte swizzle, zeros outside. `size`, `pitch` (bytes; of all dimensions but the first) and `box`: `rank` of them.
CUtensorMap encode_map(DType dtype, const void* matrix, cuuint32_t rank, const cuuint64_t* size,
                       const cuuint64_t* pitch, const cuuint32_t* box) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = reinterpret_cast<Encode>(driver_function("cuTensorMapEncodeTiled", 12000));
  if (!encode)
    throw_unsupported("grouped_linear: this driver has no cuTensorMapEncodeTiled; NEXUS_CUDA_ARCH=80 avoids it");
  const cuuint32_t stride[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  // Promotion to 128 bytes, a box's own row: 256 reads 5 % slower from memory (4.2 against 4.4 TB/s on an H200).
  const CUresult status =
      encode(&map, dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, rank,
             const_cast<void*>(matrix), size, pitch, box, stride, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    std::string sizes;
    for (cuuint32_t i = rank; i-- > 0;) sizes += std::to_string(size[i]) + (i > 0 ? ", " : "");
    Error error(ErrorCode::kDevice, "cuTensorMapEncodeTiled: CUresult " + std::to_string(static_cast<int>(status)) +
                                        " for [" + sizes + "]");
    error.native = "CUresult " + std::to_string(static_cast<int>(status));
    throw error;
  }
  return map;
}

}  // namespace

CUtensorMap rows_map(DType dtype, const void* matrix, int64_t rows, int64_t k, int box_rows) {
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  const cuuint64_t pitch[1] = {static_cast<cuuint64_t>(k) * 2};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
  return encode_map(dtype, matrix, 2, size, pitch, box);
}

CUtensorMap weights_map(DType dtype, const GroupedParams& p, int box_rows, int panels) {
  const auto width = static_cast<cuuint64_t>(p.k), rows = static_cast<cuuint64_t>(p.n), row = width * 2;
  const auto experts = static_cast<cuuint64_t>(p.experts), all = experts * rows;
  const auto box = static_cast<cuuint32_t>(box_rows), depth = static_cast<cuuint32_t>(panels);
  constexpr cuuint64_t kPanel = kPanelColumns;
  if (p.in_panels) {
    // By eights of rows as they lie, gates and ups as a box has them. An expert begins all its panels' rows behind the
    // one before; behind the last one's own rows there is nothing.
    const cuuint64_t own = width / kPanel;
    const cuuint64_t size[5] = {kPanel, 8, own, ((experts - 1) * own + 1) * rows / 8, 1};
    const cuuint64_t pitch[4] = {2 * kPanel, rows * 2 * kPanel, 16 * kPanel, row};
    const cuuint32_t boxes[5] = {kPanel, 8, depth, box / 8, 1};
    return encode_map(dtype, p.weight, 5, size, pitch, boxes);
  }
  cuuint64_t size[5] = {width, all, 1, 1, 1}, pitch[4] = {row, 2 * kPanel, row, row};
  cuuint32_t boxes[5] = {kPanel, box, 1, 1, 1};
  if (panels > 1) {
    size[0] = kPanel, size[2] = std::max<cuuint64_t>(1, width / kPanel), boxes[2] = depth;
    if (!p.gated) size[1] = 8, size[3] = all / 8, pitch[2] = 8 * row, boxes[1] = 8, boxes[3] = box / 8;
  }
  if (p.gated) {
    size[1] = 8, size[3] = 2, size[4] = all / 16;
    pitch[0] = 2 * row, pitch[3] = 16 * row;
    boxes[1] = 8, boxes[3] = 2, boxes[4] = box / 16;
  }
  return encode_map(dtype, p.weight, 5, size, pitch, boxes);
}

bool for_odd_widths(const Variant& variant) {
  return &variant == &kWgmmaRest || &variant == &kWgmmaPairRest || &variant == &kWgmmaFewRest ||
         &variant == &kWgmmaNarrowFewerRest;
}

const Variant& plain_shape(const Variant& variant) {
  if (&variant == &kWgmmaRest || &variant == &kWgmmaPairRest) return kWgmma;
  const bool few = &variant == &kWgmmaFewer || &variant == &kWgmmaNarrow || &variant == &kWgmmaNarrowFewer ||
                   &variant == &kWgmmaNarrowMore || for_odd_widths(variant);
  return few ? kWgmmaFew : variant;
}

void launch_wgmma(const Variant& chosen, DType dtype, const GroupedParams& params, const Target& target) {
  const Variant& plain = plain_shape(chosen);
  const bool lanes = &plain == &chosen || with_lanes(params), bf16 = dtype == DType::kBF16;
  if (lanes) return (bf16 ? launch_wgmma_bf16 : launch_wgmma_f16)(plain, params, target);
  if (for_odd_widths(chosen)) return (bf16 ? launch_wgmma_rest_bf16 : launch_wgmma_rest_f16)(chosen, params, target);
  (bf16 ? launch_wgmma_without_lanes_bf16 : launch_wgmma_without_lanes_f16)(chosen, params, target);
}

}  // namespace nexus::cuda
