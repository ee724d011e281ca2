// When both layers of an MLP share a launch. See hopper_mlp.h.
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_mlp.h"
#include "data/cuda/mlp_path.h"
#include "data/cuda/mlp_tiles.h"
#include "data/cuda/path_switch.h"

namespace nexus::cuda {
namespace {

PathSwitch path("NEXUS_MLP", "set_mlp_path");

/// Whose tiles a layer has in the one launch: columns behind whole tiles are as good there as a tile that is not whole.
/// Few weights take two launches of their own tiles, unless one is asked for.
const Variant& shape_of(const Variant& variant, const GroupedParams& layer) {
  if (&variant == &kWgmmaNarrowMore && path.forced()) return kWgmma;
  return &variant == &kWgmmaRest && layer.k % 64 == 0 ? kWgmma : variant;
}

}  // namespace

bool mlp_path() { return path.fused(); }
void set_mlp_path(const std::string& way) { path.set(way); }

bool launch_wgmma_mlp(DType dtype, const Variant& of_first, const Variant& of_second, const GroupedParams& first,
                      const GroupedParams& second, int64_t choice_rows, int32_t* counters, const Target& target) {
  if (target.share_sm || target.read_ahead > 0 || with_lanes(first) || first.offsets == nullptr) return false;
  const GroupedParams layers[2] = {first, second};
  const bool bf16 = dtype == DType::kBF16;
  if (&of_first == &kWgmmaPair && &of_second == &kWgmmaPair) {
    const int columns = static_cast<int>((second.n + of_second.bn - 1) / of_second.bn);
    const int64_t turns = int64_t{second.experts} * mean_pair_turns(choice_rows, second.experts, columns);
    if (!path.forced() && turns < kMlpFewestTurns) return false;
    (bf16 ? launch_wgmma_mlp_pairs_bf16 : launch_wgmma_mlp_pairs_f16)(of_first, layers, counters, target);
    return true;
  }
  const Variant& variant = shape_of(of_first, first);
  if (&variant != &shape_of(of_second, second)) return false;
  const bool shape = &variant == &kWgmmaFewer || &variant == &kWgmmaNarrow || &variant == &kWgmmaNarrowFewer ||
                     &variant == &kWgmmaFew || &variant == &kWgmma;
  // No more row tiles than there are counters.
  if (!shape || choice_rows > int64_t{variant.bm} * first.experts) return false;
  if (!path.forced()) {
    if (choice_rows > int64_t{kMlpMostRows} * first.experts) return false;
    if (second.experts * ((second.n + variant.bn - 1) / variant.bn) < kMlpFewestTiles) return false;
  }
  (bf16 ? launch_wgmma_mlp_bf16 : launch_wgmma_mlp_f16)(variant, layers, counters, target);
  return true;
}

}  // namespace nexus::cuda
