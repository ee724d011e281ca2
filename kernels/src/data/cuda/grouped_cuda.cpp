// Host side of the grouped linear layer: picking the tile shape, and dispatch by dtype. See grouped.h.
#include <algorithm>

#include "data/backend.h"
#include "data/cuda/check.h"
#include "data/cuda/gemv.h"
#include "data/cuda/grouped.h"
#include "data/cuda/hopper.h"

namespace nexus::cuda {
namespace {

// Shared memory: the pipeline's stages, or the float32 tile of the epilogue that follows in the same bytes; then 12
// bytes a row (its input row, output row and scale). The kernels static_assert the same sums.
constexpr size_t mma_shared(int bm, int bn, int bk, int stages) {
  const size_t pipeline = static_cast<size_t>(stages) * (bm + bn) * bk * 2;
  const size_t tile = static_cast<size_t>(bm) * (bn + 8) * 4;
  return std::max(pipeline, tile) + static_cast<size_t>(bm) * 12;
}
constexpr size_t simt_shared(int bm, int bn, int bk) {
  const size_t pipeline = static_cast<size_t>(2) * bk * (bm + bn + 8) * 4;
  const size_t tile = static_cast<size_t>(bm) * (bn + 8) * 4;
  return std::max(pipeline, tile) + static_cast<size_t>(bm) * 12;
}

// Decode: 16 rows, narrow so that a handful of experts still cover the chip, 40 KiB of weights in flight per block,
// three blocks per SM.
constexpr Variant kMma16{"mma_16x32x128_s6", Kernel::kMma, 16, 32, 128, 6, 4, mma_shared(16, 32, 128, 6)};
// Beside a neighbour's block: half the shared memory, and at most 72 registers a thread with lanes, too.
constexpr Variant kMma16Share{"mma_16x32x128_s3", Kernel::kMma, 16, 32, 128, 3, 4, mma_shared(16, 32, 128, 3), true};
constexpr Variant kMma64{"mma_64x128x64_s4", Kernel::kMma, 64, 128, 64, 4, 4, mma_shared(64, 128, 64, 4)};
// Prefill: 64×64 per warp, where ldmatrix traffic and mma.sync balance; 128×256 because L2 feeds no smaller tile at
// full rate.
constexpr Variant kMma128{"mma_128x256x64_s3", Kernel::kMma, 128, 256, 64, 3, 8, mma_shared(128, 256, 64, 3)};
// Short k: the tile's prologue and epilogue weigh more than L2 traffic, and two blocks per SM hide one another's.
constexpr Variant kMma128x128{"mma_128x128x64_s3", Kernel::kMma, 128, 128, 64, 3, 4, mma_shared(128, 128, 64, 3)};
constexpr int64_t kShortK = 1024;
// Hopper: over this many rows per expert, L2 and not HBM is the limit, and blocks share weights in pairs.
constexpr int64_t kPairRows = 160;
// Up to so many rows per expert some have none, and small tiles spread the others better over the chip.
constexpr int64_t kSparseRows = 2, kManyTiles = 512;
// Measured on an H200, 64 tokens: Qwen3 (4 rows) 308 us against 331 with 16-row tiles; with 6 and 8 rows and fewer
// tiles DeepSeek-V2 285 against 277, GPT-OSS 400 against 387, OLMoE 215 against 221.
constexpr int64_t kFewRows = 4;
constexpr Variant kMmaGuarded{"mma_guarded_64x128x64_s2", Kernel::kMmaGuarded, 64, 128, 64, 2, 4,
                              mma_shared(64, 128, 64, 2)};
constexpr Variant kGemv{"gemv_1x8", Kernel::kGemv, 1, 8, 256, 1, 2, 0};
constexpr Variant kSimt16{"simt_16x64x32", Kernel::kSimt, 16, 64, 32, 2, 4, simt_shared(16, 64, 32)};
constexpr Variant kSimt128{"simt_128x128x16", Kernel::kSimt, 128, 128, 16, 2, 8, simt_shared(128, 128, 16)};

bool rows_aligned(DType dtype, int64_t k) { return k * static_cast<int64_t>(size_of(dtype)) % 16 == 0; }

}  // namespace

constexpr Variant kSimt64Value{"simt_64x64x16", Kernel::kSimt, 64, 64, 16, 2, 8, simt_shared(64, 64, 16)};
const Variant kSimt64 = kSimt64Value;

const Variant& choose(DType dtype, int64_t k, int64_t n, int experts, int64_t max_rows, bool aligned,
                      size_t shared_limit, bool hopper) {
  // Mean rows per expert, rounded up. Routing is known on the device only; experts far over the mean take several
  // tiles.
  if (gemv_fits(dtype, k, n, experts, max_rows, aligned)) return kGemv;
  const int64_t mean = (max_rows + experts - 1) / experts;
  if (dtype == DType::kF32) {
    if (mean <= 8) return kSimt16;
    return mean <= 64 || n < 128 ? kSimt64 : kSimt128;
  }
  if (!aligned) return kMmaGuarded;
  // Below 64 columns most of the 256 of a tile would be idle; tensor maps count rows in 31 bits.
  const bool wgmma = hopper && n >= 64 && experts * n < int64_t{1} << 31;
  // Where nearly every expert has rows and there are tiles enough to go round, weights stream by best in large tiles.
  if (wgmma && mean > kSparseRows && mean <= kFewRows && experts * ((n + 255) / 256) >= kManyTiles) return kWgmmaFew;
  if (mean <= 8) return kMma16;
  if (wgmma) return mean > kPairRows ? kWgmmaPair : kWgmma;
  if (mean > 96 && n >= 256 && k > kShortK && kMma128.shared_bytes <= shared_limit) return kMma128;
  if (mean > 96 && n >= 128 && kMma128x128.shared_bytes <= shared_limit) return kMma128x128;
  return kMma64;
}

const Variant& share_sm(const Variant& chosen) {
  if (&chosen == &kMma16) return kMma16Share;
  if (&chosen == &kWgmma || &chosen == &kWgmmaFew) return kWgmmaShare;
  if (&chosen == &kWgmmaPair) return kWgmmaSharePair;
  return chosen;
}

unsigned plan_grid(const Variant& variant, GroupedParams& params) {
  if (params.k > 0x7fffff00 || params.n > 0x7fffff00)
    throw_unsupported("k, n: got " + std::to_string(params.k) + ", " + std::to_string(params.n) +
                      ", expected less than 2^31");
  const int64_t n_tiles = (params.n + variant.bn - 1) / variant.bn;
  const int64_t blocks = n_tiles * max_row_tiles(params.max_rows, params.experts, variant.bm);
  if (blocks > 0x7fffffff) throw_unsupported("rows × n: " + std::to_string(blocks) + " tiles exceed CUDA's grid limit");
  params.n_tiles = static_cast<int>(n_tiles);
  return static_cast<unsigned>(blocks);
}

void grouped_linear(Stream& stream, const GroupedLinearDesc& desc, const GroupedLinearArgs& args) {
  if (args.max_rows == 0) return;
  const Target to = target(stream);
  const DeviceFacts& device = device_facts(to.device);
  const bool gated = is_gated(desc.epilogue);
  // The x of a step is known on the device only; whoever writes the block answers for its alignment (step.h).
  const StepBlock* const step = args.step_input ? args.step : nullptr;
  const bool aligned = rows_aligned(desc.dtype, desc.k) && (step || aligned16(args.input)) && aligned16(args.weight);
  const Variant& chosen =
      choose(desc.dtype, desc.k, desc.n, desc.experts, args.choice_rows > 0 ? args.choice_rows : args.max_rows, aligned,
             device.shared_memory_limit, hopper_path(to.device));
  const Variant& variant = to.share_sm ? share_sm(chosen) : chosen;
  GroupedParams p{};
  p.step = step, p.lanes = args.lanes;
  p.input = args.input, p.weight = args.weight, p.bias = args.bias, p.output = args.output;
  p.offsets = args.offsets, p.order = args.order, p.row_scale = args.row_scale;
  p.k = desc.k, p.n = desc.n, p.max_rows = args.max_rows;
  p.experts = desc.experts, p.rows_per_input = args.rows_per_input;
  p.epilogue = static_cast<int>(desc.epilogue), p.limit = desc.params.limit, p.alpha = desc.params.alpha;
  p.gather = args.gather && args.order, p.scatter = args.scatter && args.order, p.gated = gated;
  p.settled = args.settled, p.copy_rows = p.gather || p.step;
  p.vector_store = desc.n % 8 == 0 && aligned16(args.output);
  if (variant.kernel == Kernel::kGemv) return launch_gemv(desc.dtype, p, to);
  switch (desc.dtype) {
    case DType::kBF16:
      if (variant.kernel == Kernel::kWgmma) return launch_wgmma_bf16(variant, p, to);
      return launch_mma_bf16(variant, p, to);
    case DType::kF16:
      if (variant.kernel == Kernel::kWgmma) return launch_wgmma_f16(variant, p, to);
      return launch_mma_f16(variant, p, to);
    case DType::kF32:
      return launch_simt_f32(variant, p, to);
    default:
      throw_invalid(std::string("dtype: got ") + name_of(desc.dtype) + ", expected f32, bf16 or f16");
  }
}

std::string grouped_linear_variant(const GroupedLinearDesc& desc, int64_t max_rows, bool shared) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const Variant& chosen = choose(desc.dtype, desc.k, desc.n, desc.experts, max_rows, rows_aligned(desc.dtype, desc.k),
                                 device_facts(device).shared_memory_limit, hopper_path(device));
  return (shared ? share_sm(chosen) : chosen).name;
}

}  // namespace nexus::cuda
