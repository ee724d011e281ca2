// When both layers of an MLP share a launch. See hopper_mlp.h.
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_mlp.h"
#include "data/cuda/mlp_path.h"
#include "data/cuda/mlp_tiles.h"
#include "data/cuda/path_switch.h"

namespace nexus::cuda {
namespace {

PathSwitch path("NEXUS_MLP", "set_mlp_path");

}  // namespace

bool mlp_path() { return path.fused(); }
void set_mlp_path(const std::string& way) { path.set(way); }

bool launch_wgmma_mlp(DType dtype, const Variant& variant, const GroupedParams& first, const GroupedParams& second,
                      int64_t choice_rows, int32_t* counters, const Target& target) {
  const bool shape = &variant == &kWgmmaFewer || &variant == &kWgmmaNarrow || &variant == &kWgmmaNarrowFewer;
  if (!shape || target.share_sm || target.read_ahead > 0 || with_lanes(first)) return false;
  if (first.offsets == nullptr || choice_rows > int64_t{kMlpMostRows} * first.experts) return false;
  if (!path.forced() && second.experts * ((second.n + variant.bn - 1) / variant.bn) < kMlpFewestTiles) return false;
  const GroupedParams layers[2] = {first, second};
  (dtype == DType::kBF16 ? launch_wgmma_mlp_bf16 : launch_wgmma_mlp_f16)(variant, layers, counters, target);
  return true;
}

}  // namespace nexus::cuda
