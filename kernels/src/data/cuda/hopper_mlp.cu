// The launches of hopper_mlp.cuh's kernel: in the two plain shapes for one block's weights (hopper_launch.cuh), bf16
// and f16.
#include <algorithm>

#include "data/cuda/check.h"
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_mlp.cuh"
#include "data/cuda/hopper_mlp.h"
#include "data/cuda/launch.h"
#include "data/cuda/mlp_path.h"
#include "data/cuda/path_switch.h"

namespace nexus::cuda {
namespace {

// Off until it has been timed on a GPU (docs/kernels/log.md).
PathSwitch path("NEXUS_MLP", "set_mlp_path", false);

// As many registers for a consumer as the rows of its sums want; the rest is the producers'.
template <class T>
using Few = hopper::Shape<T, kWgmmaFewRows, kWgmmaFewStages, 1, 168, 64, 216>;
template <class T>
using Many = hopper::Shape<T, kWgmmaRows, kWgmmaStages, 1, 168, 56, 224>;

template <class S>
void launch_shape(DType dtype, const hopper::MlpParams& params, const Target& target) {
  const auto map_of = [&](const GroupedParams& p) {
    return swizzled_map(dtype, p.weight, static_cast<int64_t>(p.experts) * p.n, p.k, S::BOX_COLUMNS);
  };
  hopper::MlpParams p = params;
  int64_t tiles = 0;
  for (GroupedParams& layer : p.layer) {
    layer.n_tiles = static_cast<int>((layer.n + S::COLUMNS - 1) / S::COLUMNS);
    tiles += layer.n_tiles * max_row_tiles(layer.max_rows, layer.experts, S::ROWS);
  }
  const CUtensorMap first = map_of(p.layer[0]), second = map_of(p.layer[1]);
  static KernelFacts facts;
  const auto kernel = &hopper::mlp_wgmma_kernel<S>;
  const int at_once = facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, S::THREADS,
                                                      hopper::kMlpShared<S>, false);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, std::max(1, target.width * at_once)));
  launch("grouped_mlp", kernel, blocks, S::THREADS, hopper::kMlpShared<S>, target.device, target.stream, p, first,
         second);
}

template <template <class> class S>
void launch_for(DType dtype, const hopper::MlpParams& params, const Target& target) {
  if (dtype == DType::kBF16) return launch_shape<S<__nv_bfloat16>>(dtype, params, target);
  launch_shape<S<__half>>(dtype, params, target);
}

/// Places of rows in 16 bytes are 32-bit numbers there; so are tiles.
bool small_enough(const GroupedParams& p) {
  return p.max_rows * (p.k / 8) < int64_t{1} << 31 && p.k < int64_t{1} << 31 && p.n < int64_t{1} << 31;
}

}  // namespace

bool mlp_path() { return path.fused(); }
void set_mlp_path(const std::string& way) { path.set(way); }

bool launch_wgmma_mlp(DType dtype, const Variant& of_first, const Variant& of_second, const GroupedParams& first,
                      const GroupedParams& second, int32_t* sync, const Target& target) {
  const bool few = &of_first == &kWgmmaFew, many = &of_first == &kWgmma;
  if (&of_first != &of_second || !(few || many) || sync == nullptr || target.share_sm || with_lanes(first))
    return false;
  if (first.offsets == nullptr || first.experts > hopper::kMlpExperts) return false;
  if (!small_enough(first) || !small_enough(second)) return false;
  const int limit = mlp_row_tiles(first.experts);
  if (max_row_tiles(first.max_rows, first.experts, few ? kWgmmaFewRows : kWgmmaRows) > limit) return false;
  hopper::MlpParams params{{first, second}, {sync, sync + 1, sync + 2, limit}};
  few ? launch_for<Few>(dtype, params, target) : launch_for<Many>(dtype, params, target);
  return true;
}

}  // namespace nexus::cuda
