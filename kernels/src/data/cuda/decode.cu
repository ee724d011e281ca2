// Host side of decode steps (decode.h): when they are taken.
#include <algorithm>

#include "data/backend.h"
#include "data/cuda/arch.h"
#include "data/cuda/check.h"
#include "data/cuda/decode.h"
#include "data/cuda/decode_path.h"
#include "data/cuda/path_switch.h"

namespace nexus::cuda {
namespace {

PathSwitch path("NEXUS_DECODE", "set_decode_path");

/// Whether the chain would run the layer as matrix-vector products, whose order of sums is ours, too.
bool is_gemv(const GroupedLinearDesc& desc, int64_t rows, bool aligned, int device, const VariantChoice& choice) {
  Problem problem = problem_of(desc, rows, device);
  problem.aligned = problem.aligned && aligned;
  return choose(problem, variant_key(desc), choice).kernel == Kernel::kGemv;
}

}  // namespace

bool decode_path() { return path.fused(); }
void set_decode_path(const std::string& way) { path.set(way); }

bool decode_step(Stream& stream, const RouterDesc& router, const MlpDesc& experts, const DecodeArgs& args) {
  // No target() before it is known that the step is taken: what follows otherwise is to find what the stream knows.
  const int64_t tokens = args.route.tokens;
  const int device = stream.device().index;
  // A stream with neighbours on its SMs takes the chain, which has kernels made for that.
  if (!decode_path() || stream.share_sm() || !hopper_path(device) || !device_facts(device).dependent_launch)
    return false;
  if (mlp_layers(experts.kind) != 2 || router.experts > kDecodeExperts) return false;
  const int64_t most = std::max(tokens, args.choice_tokens);
  if (tokens == 0 || most * router.top_k > kDecodeSlots) return false;
  // Only a named or measured variant comes with more keys than that.
  if (decode_ranking(most, router.experts) + kDecodeResultBytes > kDecodeSharedBytes) return false;
  const GroupedLinearDesc first = mlp_layer(experts, 0), second = mlp_layer(experts, 1);
  constexpr int64_t kMostWidth = 1 << 24;  // items are counted in 32 bits
  if (std::max({first.k, first.n, second.n}) > kMostWidth || !aligned16(args.hidden)) return false;
  constexpr int64_t kMostInPanels = int64_t{1} << 32;  // where a row's chunks lie is told in 32 bits
  if (experts.in_panels && std::max(first.n * first.k, second.n * second.k) >= kMostInPanels) return false;
  const int64_t rows = args.choice_tokens * router.top_k;
  const bool aligned = args.route.step || aligned16(args.x);
  if (!is_gemv(first, rows, aligned && aligned16(args.weights.weight[0]), device, args.choice) ||
      !is_gemv(second, rows, aligned16(args.weights.weight[1]), device, args.choice))
    return false;

  DecodeParams p{};
  p.route.desc = router;
  p.route.logits = args.route.logits, p.route.tokens = tokens, p.route.step = args.route.step;
  p.route.expert_ids = args.route.expert_ids, p.route.weights = args.route.weights;
  p.route.counts = args.route.counts, p.route.offsets = args.route.offsets, p.route.order = args.route.order;
  p.route.ring = args.route.ring;
  p.x = args.x, p.out = args.out, p.hidden = args.hidden;
  const auto linear = [&](size_t i, const GroupedLinearDesc& d) -> DecodeLinear {
    return {args.weights.weight[i], args.weights.bias[i], static_cast<int>(d.k), static_cast<int>(d.n), d.in_panels};
  };
  p.first = linear(0, first), p.second = linear(1, second);
  p.epilogue = static_cast<int>(first.epilogue), p.limit = first.params.limit, p.alpha = first.params.alpha;
  p.gated = is_gated(first.epilogue), p.scale_input = args.scale_input;
  p.ranked = !args.route.select_bias && router.groups == 1 && router.weigh != Weigh::kSparsemixer && !args.scale_input;
  p.keys = kDecodeSlots * static_cast<int>(sizeof(int));
  if (!p.ranked && !args.prepare) cuda::route(stream, router, args.route);
  const Target to = target(stream);
  launch_decode_hidden(experts.dtype, p, to, !args.prepare);
  launch_decode_output(experts.dtype, p, to, !args.prepare);
  return !args.prepare;
}

}  // namespace nexus::cuda
