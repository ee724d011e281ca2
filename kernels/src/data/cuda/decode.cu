// Host side of decode steps (decode.h): when they are taken, and the layout of their shared memory.
#include <algorithm>

#include "data/backend.h"
#include "data/cuda/arch.h"
#include "data/cuda/check.h"
#include "data/cuda/decode.h"
#include "data/cuda/decode_path.h"
#include "data/cuda/path_switch.h"

namespace nexus::cuda {
namespace {

// Off until it has been timed on a GPU (docs/kernels/log.md).
PathSwitch path("NEXUS_DECODE", "set_decode_path", false);

/// Whether the chain would run the layer as matrix-vector products, whose order of sums is ours, too.
bool is_gemv(const GroupedLinearDesc& desc, int64_t rows, bool aligned, int device, const VariantChoice& choice) {
  Problem problem{};
  problem.dtype = desc.dtype, problem.k = desc.k, problem.n = desc.n, problem.experts = desc.experts;
  problem.rows = rows;
  problem.aligned = aligned && desc.k * static_cast<int64_t>(size_of(desc.dtype)) % 16 == 0;
  problem.shared_limit = device_facts(device).shared_memory_limit;
  problem.hopper = hopper_path(device);
  return choose(problem, variant_key(desc), choice).kernel == Kernel::kGemv;
}

constexpr int align16(int64_t bytes) { return static_cast<int>((bytes + 15) / 16 * 16); }

/// False: it does not fit into `limit` bytes. Input rows lie there only if there is room for them.
bool lay_out(const RouterDesc& router, int64_t tokens, int64_t results_bytes, int64_t input_bytes, int limit,
             DecodeShared& shared) {
  const int64_t scratch = int64_t{4} * decode_scratch(router);
  const int64_t room = limit - DecodeShared::kScratch - results_bytes - 32;  // 32: alignment of the two behind
  if (room < scratch) return false;
  shared.route_warps = static_cast<int>(std::min({tokens, int64_t{kDecodeWarps}, room / scratch}));
  shared.results = align16(DecodeShared::kScratch + shared.route_warps * scratch);
  shared.input = align16(shared.results + results_bytes);
  shared.bytes = shared.input;
  if (shared.input + input_bytes <= limit)
    shared.bytes += static_cast<int>(input_bytes);
  else
    shared.input = 0;
  return true;
}

}  // namespace

bool decode_path() { return path.fused(); }
void set_decode_path(const std::string& way) { path.set(way); }

bool decode_step(Stream& stream, const RouterDesc& router, const MlpDesc& experts, const DecodeArgs& args) {
  const Target to = target(stream);
  const int64_t tokens = args.route.tokens, slots = tokens * router.top_k;
  // A stream with neighbours on its SMs takes the chain: these blocks would leave them no shared memory.
  if (!decode_path() || to.share_sm || !hopper_path(to.device) || !device_facts(to.device).dependent_launch)
    return false;
  if (mlp_layers(experts.kind) != 2 || router.experts > kDecodeExperts) return false;
  if (tokens == 0 || std::max(tokens, args.choice_tokens) * router.top_k > kDecodeSlots) return false;
  const GroupedLinearDesc first = mlp_layer(experts, 0), second = mlp_layer(experts, 1);
  constexpr int64_t kMostWidth = 1 << 24;  // items are counted in 32 bits
  if (std::max({first.k, first.n, second.n}) > kMostWidth || !aligned16(args.hidden)) return false;
  const int64_t rows = args.choice_tokens * router.top_k;
  const bool aligned = args.route.step || aligned16(args.x);
  if (!is_gemv(first, rows, aligned && aligned16(args.weights.weight[0]), to.device, args.choice) ||
      !is_gemv(second, rows, aligned16(args.weights.weight[1]), to.device, args.choice))
    return false;

  const auto size = static_cast<int64_t>(size_of(experts.dtype));
  const int64_t results_bytes = int64_t{kDecodeUnits} * router.top_k * kDecodeRows * 4;
  DecodeShared shared[2]{};
  if (!lay_out(router, tokens, 0, tokens * first.k * size, kHiddenSharedBytes, shared[0]) ||
      !lay_out(router, tokens, results_bytes, slots * second.k * size, kOutputSharedBytes, shared[1]))
    return false;

  DecodeParams p{};
  p.route.desc = router;
  p.route.logits = args.route.logits, p.route.select_bias = args.route.select_bias, p.route.tokens = tokens;
  p.route.step = args.route.step, p.route.ring = args.route.ring;
  p.route.expert_ids = args.route.expert_ids, p.route.weights = args.route.weights;
  p.route.counts = args.route.counts, p.route.offsets = args.route.offsets, p.route.order = args.route.order;
  p.x = args.x, p.out = args.out, p.hidden = args.hidden;
  p.first = {args.weights.weight[0], args.weights.bias[0], static_cast<int>(first.k), static_cast<int>(first.n)};
  p.second = {args.weights.weight[1], args.weights.bias[1], static_cast<int>(second.k), static_cast<int>(second.n)};
  p.epilogue = static_cast<int>(first.epilogue), p.limit = first.params.limit, p.alpha = first.params.alpha;
  p.gated = is_gated(first.epilogue), p.scale_input = args.scale_input;
  p.ranked =
      !args.route.select_bias && router.groups == 1 && tokens <= std::min(shared[0].route_warps, shared[1].route_warps);
  p.shared = shared[0];
  launch_decode_hidden(experts.dtype, p, to, !args.prepare);
  p.shared = shared[1];
  launch_decode_output(experts.dtype, p, to, !args.prepare);
  return !args.prepare;
}

}  // namespace nexus::cuda
