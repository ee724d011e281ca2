// @nexus/router-kernels: routing, grouped experts, combine, and the unfused operations of the baseline.
// All stream-ordered: sizes are checked, the work is queued, nothing waits.
#include "capture.h"

namespace nexus::addon {
namespace {

using Napi::CallbackInfo;
using Napi::Value;

/// int32 on the device: the number of slots must stay below 2^31.
int64_t slots(int64_t tokens, int64_t top_k) {
  const int64_t n = product("tokens", {tokens, top_k});
  if (n > INT32_MAX) throw_invalid("tokens: tokens * topK must be below 2^31, got " + std::to_string(n));
  return n;
}

Value RouteWorkspaceBytes(const CallbackInfo& info) {
  const auto desc = router_desc(info[1]);
  const int64_t tokens = integer(info[2], "tokens");
  slots(tokens, desc.top_k);
  return Napi::Number::New(info.Env(), static_cast<double>(route_workspace_bytes(device_of(info[0]), desc, tokens)));
}

Value Route(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const auto desc = router_desc(info[1]);
  RouteArgs args;
  args.tokens = integer(info[4], "tokens");
  const int64_t n = slots(args.tokens, desc.top_k);
  args.logits = view<float>(stream, info[2], "logits", product("logits", {args.tokens, desc.experts}));
  args.select_bias = optional_view<float>(stream, info[3], "selectBias", desc.experts);
  args.expert_ids = view<int32_t>(stream, info[5], "expertIds", n);
  args.weights = view<float>(stream, info[6], "weights", n);
  args.counts = view<int32_t>(stream, info[7], "counts", desc.experts);
  args.offsets = view<int32_t>(stream, info[8], "offsets", desc.experts + 1);
  args.order = view<int32_t>(stream, info[9], "order", n);
  const size_t workspace = route_workspace_bytes(stream.object->device(), desc, args.tokens);
  args.workspace = view_bytes(stream, info[10], "workspace", static_cast<int64_t>(workspace), 0, 1);
  if (const CountRing* ring = ring_of(stream, info[11], desc.experts)) args.ring = ring->view();
  route(*stream.object, desc, args);
  return info.Env().Undefined();
}

Value RouterLogits(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  RouterLogitsArgs args;
  args.x_dtype = float_dtype_of(info[2], "xDtype");
  args.weight_dtype = float_dtype_of(info[4], "weightDtype");
  args.tokens = integer(info[6], "tokens", 0, INT32_MAX);
  args.hidden = integer(info[7], "hidden", 1, INT32_MAX);
  args.experts = integer32(info[8], "experts", 1, kMaxExperts);
  args.x = view(stream, info[1], "x", args.x_dtype, product("x", {args.tokens, args.hidden}));
  args.weight = view(stream, info[3], "weight", args.weight_dtype, product("weight", {args.experts, args.hidden}));
  args.bias = optional_view<float>(stream, info[5], "bias", args.experts);
  args.logits = view<float>(stream, info[9], "logits", product("logits", {args.tokens, args.experts}));
  router_logits(*stream.object, args);
  return info.Env().Undefined();
}

Value MlpWorkspaceBytes(const CallbackInfo& info) {
  const auto desc = mlp_desc(info[1], "desc");
  const int64_t rows = integer(info[2], "rows", 0, INT32_MAX);
  return Napi::Number::New(info.Env(), static_cast<double>(mlp_workspace_bytes(device_of(info[0]), desc, rows)));
}

Napi::Array layers_of(const Value& value, const char* name, int layers) {
  if (!value.IsArray()) throw Napi::TypeError::New(value.Env(), std::string(name) + ": expected an array");
  auto array = value.As<Napi::Array>();
  if (static_cast<int>(array.Length()) < layers) {
    throw_invalid(std::string(name) + ": expected " + std::to_string(layers) + " entries, got " +
                  std::to_string(array.Length()));
  }
  return array;
}

Value GroupedMlp(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const auto desc = mlp_desc(info[1], "desc");
  const int layers = mlp_layers(desc.kind);
  const auto weight = layers_of(info[2], "weight", layers), bias = layers_of(info[3], "bias", layers);
  MlpWeights weights;
  for (int i = 0; i < layers; ++i) {
    const auto layer = mlp_layer(desc, i);
    const auto index = static_cast<uint32_t>(i);
    const auto suffix = "[" + std::to_string(i) + "]";
    weights.weight[i] = view(stream, weight.Get(index), ("weight" + suffix).c_str(), desc.dtype,
                             product("weight", {layer.experts, layer.n, layer.k}));
    weights.bias[i] = optional_view<float>(stream, bias.Get(index), ("bias" + suffix).c_str(),
                                           product("bias", {layer.experts, layer.n}));
  }
  MlpArgs args;
  args.tokens = integer(info[5], "tokens");
  args.top_k = integer32(info[6], "topK", 1, kMaxTopK);
  const int64_t rows = slots(args.tokens, args.top_k);
  if (absent(info[8]) && (desc.experts != 1 || args.top_k != 1)) {
    throw_invalid("order: null only for one expert and topK 1, got " + std::to_string(desc.experts) +
                  " experts and topK " + std::to_string(args.top_k));
  }
  args.x = view(stream, info[4], "x", desc.dtype, product("x", {args.tokens, desc.input}));
  args.offsets = view<int32_t>(stream, info[7], "offsets", desc.experts + 1);
  args.order = optional_view<int32_t>(stream, info[8], "order", rows);
  args.input_scale = optional_view<float>(stream, info[9], "inputScale", rows);
  args.rows = view(stream, info[10], "rows", desc.dtype, product("rows", {rows, desc.output}));
  const size_t workspace = mlp_workspace_bytes(stream.object->device(), desc, rows);
  args.workspace = view_bytes(stream, info[11], "workspace", static_cast<int64_t>(workspace), 0, 1);
  args.lanes = lane_view(stream, info[12], desc.experts, info[13]);
  grouped_mlp(*stream.object, desc, weights, args);
  return info.Env().Undefined();
}

Value Variant(const CallbackInfo& info) {
  const auto desc = mlp_desc(info[1], "desc");
  const int layer = integer32(info[2], "layer", 0, mlp_layers(desc.kind) - 1);
  const int64_t rows = integer(info[3], "rows", 0, INT32_MAX);
  VariantChoice choice;
  if (!absent(info[4])) choice = unwrap<LayerHandle>(info[4], "of").object->choice();
  const auto linear = mlp_layer(desc, layer);
  return Napi::String::New(info.Env(), grouped_linear_variant(device_of(info[0]), linear, rows, false, choice));
}

Value Combine(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  CombineArgs args;
  args.mode = static_cast<CombineMode>(integer32(info[1], "mode", 0, 1));
  args.dtype = float_dtype_of(info[2], "dtype");
  args.tokens = integer(info[7], "tokens");
  args.width = integer(info[8], "width", 1, INT32_MAX);
  args.top_k = integer32(info[9], "topK", 1, kMaxTopK);
  const int64_t rows = slots(args.tokens, args.top_k);
  const bool concat = args.mode == CombineMode::kConcat;
  if (concat && !absent(info[5])) throw_invalid("shared: expected null with mode concat");
  args.rows = view(stream, info[3], "rows", args.dtype, product("rows", {rows, args.width}));
  args.weights = optional_view<float>(stream, info[4], "weights", rows);
  if (!absent(info[5]))
    args.shared = view(stream, info[5], "shared", args.dtype, product("shared", {args.tokens, args.width}));
  args.shared_scale = optional_view<float>(stream, info[6], "sharedScale", args.tokens);
  args.out = view(stream, info[10], "out", args.dtype, product("out", {concat ? rows : args.tokens, args.width}));
  combine(*stream.object, args);
  return info.Env().Undefined();
}

Value SharedGate(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  SharedGateArgs args;
  args.dtype = float_dtype_of(info[3], "dtype");
  args.tokens = integer(info[4], "tokens", 0, INT32_MAX);
  args.hidden = integer(info[5], "hidden", 1, INT32_MAX);
  args.x = view(stream, info[1], "x", args.dtype, product("x", {args.tokens, args.hidden}));
  args.weight = view(stream, info[2], "weight", args.dtype, args.hidden);
  args.scale = view<float>(stream, info[6], "scale", args.tokens);
  shared_gate(*stream.object, args);
  return info.Env().Undefined();
}

// ---- unfused, for the baseline
// ------------------------------------------------------------------------------------------

Value Linear(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  GroupedLinearDesc desc;
  desc.dtype = float_dtype_of(info[1], "dtype");
  GroupedLinearArgs args;
  args.max_rows = integer(info[3], "rows", 0, INT32_MAX);
  desc.k = integer(info[4], "k", 1, INT32_MAX);
  desc.n = integer(info[5], "n", 1, INT32_MAX);
  args.input = view(stream, info[2], "input", desc.dtype, product("input", {args.max_rows, desc.k}));
  args.weight = view(stream, info[6], "weight", desc.dtype, product("weight", {desc.n, desc.k}),
                     integer(info[7], "weightOffset"));
  args.bias = optional_view<float>(stream, info[8], "bias", desc.n, integer(info[9], "biasOffset"));
  args.output = view(stream, info[10], "output", desc.dtype, product("output", {args.max_rows, desc.n}));
  args.offsets = view<int32_t>(stream, info[11], "offsets", 2);
  grouped_linear(*stream.object, desc, args);
  return info.Env().Undefined();
}

Value GatherRows(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const DType dtype = float_dtype_of(info[1], "dtype");
  const int64_t first = integer(info[4], "first", 0, INT32_MAX), n = integer(info[5], "n", 0, INT32_MAX);
  const int32_t rows_per_input = integer32(info[6], "rowsPerInput", 1, kMaxTopK);
  const int64_t width = integer(info[7], "width", 1, INT32_MAX);
  const void* x = view(stream, info[2], "x", dtype, 0);
  const auto* order = view<int32_t>(stream, info[3], "order", first + n);
  void* out = view(stream, info[8], "out", dtype, product("out", {n, width}));
  if (n > 0) gather_rows(*stream.object, dtype, x, order, first, n, rows_per_input, width, out);
  return info.Env().Undefined();
}

Value Activate(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const DType dtype = float_dtype_of(info[1], "dtype");
  const int32_t code = integer32(info[2], "epilogue", 0, static_cast<int32_t>(Epilogue::kClampedSwiglu));
  const auto epilogue = static_cast<Epilogue>(code);
  if (!is_gated(epilogue) && code > static_cast<int32_t>(Epilogue::kSilu)) {
    throw_invalid("epilogue: there is no " + std::to_string(code));
  }
  EpilogueParams params;
  params.limit = static_cast<float>(number(info[3], "limit"));
  params.alpha = static_cast<float>(number(info[4], "alpha"));
  const int64_t n = integer(info[6], "n", 0, INT32_MAX), width = integer(info[7], "width", 1, INT32_MAX);
  const void* in = view(stream, info[5], "input", dtype, product("input", {n, width, is_gated(epilogue) ? 2 : 1}));
  void* out = view(stream, info[8], "out", dtype, product("out", {n, width}));
  if (n > 0) activate(*stream.object, dtype, epilogue, params, in, n, width, out);
  return info.Env().Undefined();
}

Value IndexAdd(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const DType dtype = float_dtype_of(info[1], "dtype");
  const int64_t first = integer(info[5], "first", 0, INT32_MAX), n = integer(info[6], "n", 0, INT32_MAX);
  const int32_t top_k = integer32(info[7], "topK", 1, kMaxTopK);
  const int64_t width = integer(info[8], "width", 1, INT32_MAX);
  const void* rows = view(stream, info[2], "rows", dtype, product("rows", {n, width}));
  // The weights are [tokens, topK]: their size says how many tokens `order` may point at.
  const auto weight_bytes = static_cast<int64_t>(unwrap<BufferHandle>(info[3], "weights").object->bytes());
  const auto* weights = view<float>(stream, info[3], "weights", weight_bytes / 4);
  const auto* order = view<int32_t>(stream, info[4], "order", first + n);
  float* acc = view<float>(stream, info[9], "acc", product("acc", {weight_bytes / 4 / top_k, width}));
  if (n > 0) index_add(*stream.object, dtype, rows, weights, order, first, n, top_k, width, acc);
  return info.Env().Undefined();
}

}  // namespace

Napi::Object router_kernels_functions(Napi::Env env) {
  auto o = Napi::Object::New(env);
  define<RouteWorkspaceBytes>(o, "routeWorkspaceBytes");
  define<Route>(o, "route");
  define<RouterLogits>(o, "routerLogits");
  define<MlpWorkspaceBytes>(o, "mlpWorkspaceBytes");
  define<GroupedMlp>(o, "groupedMlp");
  define<Variant>(o, "variant");
  define<Combine>(o, "combine");
  define<SharedGate>(o, "sharedGate");
  define<Linear>(o, "linear");
  define<GatherRows>(o, "gatherRows");
  define<Activate>(o, "activate");
  define<IndexAdd>(o, "indexAdd");
  define_variants(o);
  return o;
}

}  // namespace nexus::addon
