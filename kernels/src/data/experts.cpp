// Public expert functions: validation, dispatch on the stream's device, and the MLPs as compositions of grouped_linear.
#include "nexus/experts.h"

#include "data/backend.h"
#include "data/panels.h"
#include "data/validate.h"

namespace nexus {
namespace {

bool known(Epilogue e) {
  const int v = static_cast<int>(e);
  return (v >= 0 && v <= 4) || (v >= 16 && v <= 20);
}

void check(const GroupedLinearDesc& d) {
  using namespace validate;
  floating("dtype", d.dtype);
  in_range("experts", d.experts, 1, INT32_MAX - 1);
  at_least("k", d.k, 1);
  at_least("n", d.n, 1);
  if (!known(d.epilogue))
    throw_invalid("epilogue: expected a value of Epilogue, got " + std::to_string(static_cast<int>(d.epilogue)));
  if (is_gated(d.epilogue) && d.n % 2 != 0)
    throw_invalid("n: expected an even number with a gated epilogue, got " + std::to_string(d.n));
  if (d.epilogue == Epilogue::kClampedSwiglu) {
    finite_not_negative("params.limit", d.params.limit);
    finite("params.alpha", d.params.alpha);
  }
  if (d.in_panels) check_panels(weights_of(d));
}

void check(const MlpDesc& d) {
  using namespace validate;
  floating("dtype", d.dtype);
  in_range("kind", static_cast<int>(d.kind), 0, 2);
  in_range("experts", d.experts, 1, INT32_MAX - 1);
  at_least("input", d.input, 1);
  at_least("hidden", d.hidden, 1);
  at_least("output", d.output, 1);
  const std::string got = ", got " + std::to_string(static_cast<int>(d.activation));
  if (!known(d.activation)) throw_invalid("activation: expected a value of Epilogue" + got);
  switch (d.kind) {
    case MlpKind::kTwoLayer:
      if (is_gated(d.activation) || d.activation == Epilogue::kIdentity)
        throw_invalid("activation: expected relu, gelu, gelu_tanh or silu with a two-layer MLP" + got);
      break;
    case MlpKind::kThreeLayer:
      if (d.activation != Epilogue::kRelu) throw_invalid("activation: expected relu with a three-layer MLP" + got);
      break;
    case MlpKind::kGated:
      if (!is_gated(d.activation)) throw_invalid("activation: expected a gated one with a gated MLP" + got);
      break;
  }
}

/// One intermediate, padded so that the next one is aligned for vector loads and tensor maps.
size_t intermediate_bytes(const MlpDesc& d, int64_t rows) {
  const size_t bytes = static_cast<size_t>(rows) * static_cast<size_t>(d.hidden) * size_of(d.dtype);
  return (bytes + 255) / 256 * 256;
}

}  // namespace

void grouped_linear(Stream& stream, const GroupedLinearDesc& desc, const GroupedLinearArgs& args) {
  using namespace validate;
  check(desc);
  in_range("max_rows", args.max_rows, 0, INT32_MAX);
  in_range("choice_rows", args.choice_rows, 0, INT32_MAX);
  at_least("rows_per_input", args.rows_per_input, 1);
  validate::lanes(args.lanes, desc.experts);
  if (args.step_input && !args.step) throw_invalid("step: expected memory with step_input, got null");
  if ((args.gather || args.scatter) && !args.order && args.max_rows > 0)
    throw_invalid(std::string("order: expected memory with ") + (args.gather ? "gather" : "scatter") + ", got null");
  if (args.max_rows == 0) return;
  if (args.step_input)
    pointer("offsets", args.offsets);  // where the true number of rows is
  else
    pointer("input", args.input);
  check_panels(desc.in_panels, stream.device());
  pointer("weight", args.weight);
  pointer("output", args.output);
  if (!args.offsets && desc.experts != 1)
    throw_invalid("offsets: expected memory unless experts = 1, got null with experts = " +
                  std::to_string(desc.experts));
  stream.device().is_cpu() ? cpu::grouped_linear(stream, desc, args) : cuda::grouped_linear(stream, desc, args);
}

std::string grouped_linear_variant(DeviceId device, const GroupedLinearDesc& desc, int64_t max_rows, bool share_sm,
                                   const VariantChoice& choice) {
  check(desc);
  validate::at_least("max_rows", max_rows, 0);
  return device.is_cpu() ? cpu::grouped_linear_variant(desc, max_rows, share_sm, choice)
                         : cuda::grouped_linear_variant(desc, max_rows, share_sm, choice);
}

std::vector<VariantCandidate> grouped_linear_candidates(DeviceId device, const GroupedLinearDesc& desc, int64_t rows) {
  check(desc);
  validate::in_range("rows", rows, 1, INT32_MAX);
  return device.is_cpu() ? cpu::grouped_linear_candidates(device, desc, rows)
                         : cuda::grouped_linear_candidates(device, desc, rows);
}

GroupedLinearDesc mlp_layer(const MlpDesc& desc, int i) {
  check(desc);
  const int layers = mlp_layers(desc.kind);
  validate::in_range("layer", i, 0, layers - 1);
  GroupedLinearDesc layer;
  layer.dtype = desc.dtype;
  layer.experts = desc.experts;
  layer.params = desc.params;
  layer.in_panels = desc.in_panels;
  layer.k = i == 0 ? desc.input : desc.hidden;
  layer.n = i == layers - 1 ? desc.output : desc.kind == MlpKind::kGated ? 2 * desc.hidden : desc.hidden;
  layer.epilogue = i == layers - 1 ? Epilogue::kIdentity : desc.activation;
  return layer;
}

size_t mlp_workspace_bytes(DeviceId, const MlpDesc& desc, int64_t rows) {
  check(desc);
  validate::in_range("rows", rows, 0, INT32_MAX);
  return static_cast<size_t>(mlp_layers(desc.kind) - 1) * intermediate_bytes(desc, rows);
}

size_t mlp_counter_bytes(DeviceId device, const MlpDesc& desc) {
  check(desc);
  return device.is_cpu() ? 0 : cuda::mlp_counter_bytes(desc);
}

void grouped_mlp(Stream& stream, const MlpDesc& desc, const MlpWeights& weights, const MlpArgs& args) {
  using namespace validate;
  check(desc);
  at_least("tokens", args.tokens, 0);
  at_least("top_k", args.top_k, 1);
  slots(args.tokens, args.top_k);
  at_least("choice_tokens", args.choice_tokens, 0);
  slots(args.choice_tokens, args.top_k, "choice_tokens");
  validate::lanes(args.lanes, desc.experts);
  if (!args.order && (desc.experts != 1 || args.top_k != 1))
    throw_invalid("order: expected memory unless experts = 1 and top_k = 1, got null with experts = " +
                  std::to_string(desc.experts) + " and top_k = " + std::to_string(args.top_k));
  check_panels(desc.in_panels, stream.device());
  const int layers = mlp_layers(desc.kind);
  for (int i = 0; i < layers; ++i)
    pointer(("weight[" + std::to_string(i) + "]").c_str(), weights.weight[static_cast<size_t>(i)]);
  if (args.tokens == 0) return;
  if (!args.step) pointer("x", args.x);
  if (args.order) pointer("offsets", args.offsets);
  pointer("rows", args.rows);
  pointer("workspace", args.workspace);

  // Intermediates lie in expert order: only the ends go through `order`.
  const int64_t rows = args.tokens * args.top_k;
  // A dense MLP's true number of rows is in the block, as the offsets of its one expert. Only the address is taken
  // here.
  const int32_t* offsets = args.offsets;
  if (!args.order && !offsets && args.step) offsets = args.step->dense;
  char* intermediate = static_cast<char*>(args.workspace);
  const auto result_of = [&](int i) {
    return i == layers - 1 ? args.rows : intermediate + static_cast<size_t>(i) * intermediate_bytes(desc, rows);
  };
  const auto linear_of = [&](int i) {
    const size_t at = static_cast<size_t>(i);
    const bool first = i == 0, last = i == layers - 1;
    GroupedLinearArgs linear;
    linear.input = first ? args.x : result_of(i - 1);
    linear.weight = weights.weight[at];
    linear.bias = weights.bias[at];
    linear.output = result_of(i);
    linear.offsets = offsets;
    linear.order = args.order;
    linear.rows_per_input = first ? args.top_k : 1;
    linear.gather = first && args.order;
    linear.scatter = last && args.order;
    linear.row_scale = first ? args.input_scale : nullptr;
    linear.settled = !first;
    linear.ready = first ? args.ready : nullptr;
    linear.max_rows = rows;
    linear.choice_rows = args.choice_tokens * args.top_k;
    linear.step = args.step;
    linear.step_input = first && args.step;
    linear.lanes = args.lanes;
    linear.choice = args.choice;
    return linear;
  };
  if (layers == 2 && args.counters != nullptr && !stream.device().is_cpu() &&
      cuda::grouped_pair(stream, mlp_layer(desc, 0), linear_of(0), mlp_layer(desc, 1), linear_of(1), args.counters))
    return;
  for (int i = 0; i < layers; ++i) grouped_linear(stream, mlp_layer(desc, i), linear_of(i));
}

}  // namespace nexus
