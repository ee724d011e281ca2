// Public routing functions: validation, then the backend of the stream's device.
#include "nexus/router.h"

#include <algorithm>

#include "data/backend.h"
#include "data/validate.h"

namespace nexus {
namespace {

constexpr int64_t kInvariantChoiceTokens = 256;

void check(const RouterDesc& d) {
  using namespace validate;
  in_range("experts", d.experts, 1, kMaxExperts);
  in_range("top_k", d.top_k, 1, std::min(kMaxTopK, d.experts));
  in_range("score", static_cast<int>(d.score), 0, 2);
  in_range("weigh", static_cast<int>(d.weigh), 0, 3);
  in_range("normalize", static_cast<int>(d.normalize), 0, 2);
  in_range("group_value", static_cast<int>(d.group_value), 0, 1);
  in_range("groups", d.groups, 1, d.experts);
  if (d.experts % d.groups != 0)
    throw_invalid("groups: expected a divisor of experts = " + std::to_string(d.experts) + ", got " +
                  std::to_string(d.groups));
  in_range("keep_groups", d.keep_groups, 1, d.groups);
  const int reachable = d.keep_groups * (d.experts / d.groups);
  if (d.top_k > reachable)
    throw_invalid("top_k: expected at most keep_groups * experts / groups = " + std::to_string(reachable) + ", got " +
                  std::to_string(d.top_k));
  finite_not_negative("epsilon", d.epsilon);
  finite("scale", d.scale);
  if (d.weigh == Weigh::kSparsemixer) {
    finite_not_negative("jitter", d.jitter);
    if (d.groups != 1) throw_invalid("groups: expected 1 with sparsemixer weights, got " + std::to_string(d.groups));
  }
}

}  // namespace

size_t route_workspace_bytes(DeviceId device, const RouterDesc& desc, int64_t tokens) {
  check(desc);
  validate::at_least("tokens", tokens, 0);
  validate::slots(tokens, desc.top_k);
  return device.is_cpu() ? cpu::route_workspace_bytes(desc, tokens) : cuda::route_workspace_bytes(desc, tokens);
}

bool route(Stream& stream, const RouterDesc& desc, const RouteArgs& args) {
  using namespace validate;
  const size_t workspace = route_workspace_bytes(stream.device(), desc, args.tokens);
  if (desc.weigh == Weigh::kSparsemixer && args.select_bias)
    throw_invalid("select_bias: expected null with sparsemixer weights, whose choice is by the logits");
  if (args.tokens > 0) {
    if (!args.step) pointer("logits", args.logits);
    pointer("expert_ids", args.expert_ids);
    pointer("weights", args.weights);
    pointer("order", args.order);
    if (workspace > 0) pointer("workspace", args.workspace);
  }
  pointer("counts", args.counts);
  pointer("offsets", args.offsets);
  if (args.ring.slots) ring(args.ring, desc.experts);
  return stream.device().is_cpu() ? cpu::route(stream, desc, args) : cuda::route(stream, desc, args);
}

void router_logits(Stream& stream, const RouterLogitsArgs& args) {
  using namespace validate;
  floating("x_dtype", args.x_dtype);
  floating("weight_dtype", args.weight_dtype);
  if (args.weight_dtype != DType::kF32 && args.weight_dtype != args.x_dtype)
    throw_invalid(std::string("weight_dtype: expected f32 or x_dtype (") + name_of(args.x_dtype) + "), got " +
                  name_of(args.weight_dtype));
  in_range("tokens", args.tokens, 0, INT32_MAX);
  at_least("hidden", args.hidden, 1);
  in_range("experts", args.experts, 1, kMaxExperts);
  in_range("choice_tokens", args.choice_tokens, 0, INT32_MAX);
  if (args.tokens == 0) return;
  if (!args.step) pointer("x", args.x);
  pointer("weight", args.weight);
  pointer("logits", args.logits);
  if (stream.device().is_cpu()) return cpu::router_logits(stream, args);
  RouterLogitsArgs chosen = args;
  // A CUDA variant is chosen by choice_tokens and alignment: one number for all, large enough for the tensor cores.
  if (args.batch_invariant) chosen.choice_tokens = kInvariantChoiceTokens;
  cuda::router_logits(stream, chosen);
}

}  // namespace nexus
