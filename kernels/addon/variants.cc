// @nexus/router-kernels: kernel variants of a grouped linear layer, for whoever measures them: what there is, one run
// of a named one, and the table of what was measured.
#include "capture.h"

namespace nexus::addon {
namespace {

using Napi::CallbackInfo;
using Napi::Value;

Napi::Object object_of(const Value& value, const std::string& name) {
  if (!value.IsObject()) throw Napi::TypeError::New(value.Env(), name + ": expected an object");
  return value.As<Napi::Object>();
}
Napi::Array array_of(const Value& value, const std::string& name) {
  if (!value.IsArray()) throw Napi::TypeError::New(value.Env(), name + ": expected an array");
  return value.As<Napi::Array>();
}
std::string string_of(const Value& value, const std::string& name) {
  if (!value.IsString()) throw Napi::TypeError::New(value.Env(), name + ": expected a string");
  return value.As<Napi::String>().Utf8Value();
}

GroupedLinearDesc linear_desc(const Value& value) {
  const auto from = object_of(value, "linear");
  GroupedLinearDesc desc;
  desc.dtype = float_dtype_of(from.Get("dtype"), "linear.dtype");
  desc.experts = integer32(from.Get("experts"), "linear.experts", 1, kMaxExperts);
  desc.k = integer(from.Get("k"), "linear.k", 1, INT32_MAX);
  desc.n = integer(from.Get("n"), "linear.n", 1, INT32_MAX);
  const int32_t code =
      integer32(from.Get("epilogue"), "linear.epilogue", 0, static_cast<int32_t>(Epilogue::kClampedSwiglu));
  desc.epilogue = static_cast<Epilogue>(code);
  if (!is_gated(desc.epilogue) && code > static_cast<int32_t>(Epilogue::kSilu))
    throw_invalid("linear.epilogue: there is no " + std::to_string(code));
  desc.params.limit = static_cast<float>(number(from.Get("limit"), "linear.limit"));
  desc.params.alpha = static_cast<float>(number(from.Get("alpha"), "linear.alpha"));
  desc.in_panels = from.Get("inPanels").ToBoolean();
  return desc;
}

Value Candidates(const CallbackInfo& info) {
  const int64_t rows = integer(info[2], "rows", 1, INT32_MAX);
  const auto all = grouped_linear_candidates(device_of(info[0]), linear_desc(info[1]), rows);
  auto result = Napi::Array::New(info.Env(), all.size());
  for (uint32_t i = 0; i < all.size(); ++i) {
    auto o = Napi::Object::New(info.Env());
    o.Set("name", all[i].name);
    o.Set("order", all[i].order);
    o.Set("heuristic", all[i].heuristic);
    o.Set("invariant", all[i].invariant);
    o.Set("fusedStep", all[i].fused_step);
    result.Set(i, o);
  }
  return result;
}

/// One linear layer as a step of a layer launches it. `order` addresses slots that must lie below `rows`, and inputs
/// below `rows / rowsPerInput`: the kernels refuse others.
Value GroupedLinear(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const auto desc = linear_desc(info[1]);
  GroupedLinearArgs args;
  args.max_rows = integer(info[2], "rows", 0, INT32_MAX);
  args.rows_per_input = integer32(info[3], "rowsPerInput", 1, kMaxTopK);
  args.gather = info[4].ToBoolean();
  args.scatter = info[5].ToBoolean();
  if (args.max_rows % args.rows_per_input != 0) throw_invalid("rows: expected a multiple of rowsPerInput");
  const int64_t inputs = args.gather ? args.max_rows / args.rows_per_input : args.max_rows;
  args.input = view(stream, info[6], "input", desc.dtype, product("input", {inputs, desc.k}));
  args.weight = view(stream, info[7], "weight", desc.dtype, product("weight", {desc.experts, desc.n, desc.k}),
                     integer(info[8], "weightOffset"));
  args.offsets = view<int32_t>(stream, info[9], "offsets", desc.experts + 1);
  args.order = view<int32_t>(stream, info[10], "order", args.max_rows);
  const int64_t width = is_gated(desc.epilogue) ? desc.n / 2 : desc.n;
  args.output = view(stream, info[11], "output", desc.dtype, product("output", {args.max_rows, width}));
  const std::string variant = string_of(info[12], "variant");
  args.choice.variant = variant;
  args.settled = !args.gather;
  grouped_linear(*stream.object, desc, args);
  return info.Env().Undefined();
}

Value PanelUse(const CallbackInfo& info) {
  const bool fit = fit_panels(weights_of(linear_desc(info[1])));
  auto o = Napi::Object::New(info.Env());
  o.Set("fit", fit);
  o.Set("pay", fit && panels_pay(device_of(info[0])));
  return o;
}

Value LayPanels(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const auto desc = linear_desc(info[1]);
  void* const weight = view(stream, info[2], "weight", desc.dtype, product("weight", {desc.experts, desc.n, desc.k}));
  const WeightMatrices matrices = weights_of(desc);
  const auto scratch = Buffer::allocate(stream.object, lay_panels_bytes(matrices));
  lay_panels(*stream.object, matrices, info[3].ToBoolean() ? PanelWay::kToRows : PanelWay::kFromRows, weight,
             scratch->data());
  return info.Env().Undefined();
}

Value DeviceClass(const CallbackInfo& info) { return Napi::String::New(info.Env(), device_class(device_of(info[0]))); }

VariantKey key_of(const Napi::Object& from, const std::string& name) {
  VariantKey key;
  key.dtype = float_dtype_of(from.Get("dtype"), (name + ".dtype").c_str());
  key.experts = integer32(from.Get("experts"), (name + ".experts").c_str(), 1, kMaxExperts);
  key.k = integer(from.Get("k"), (name + ".k").c_str(), 1, INT32_MAX);
  key.n = integer(from.Get("n"), (name + ".n").c_str(), 1, INT32_MAX);
  key.gated = from.Get("gated").ToBoolean();
  return key;
}

Value SetVariantTable(const CallbackInfo& info) {
  const std::string device = string_of(info[0], "deviceClass");
  if (absent(info[1])) {
    set_variant_table(device, nullptr);
    return info.Env().Undefined();
  }
  std::vector<VariantTable::Choice> choices;
  std::vector<VariantTable::Order> orders;
  const auto rows = array_of(info[1], "choices"), invariant = array_of(info[2], "orders");
  for (uint32_t i = 0; i < rows.Length(); ++i) {
    const std::string name = "choices[" + std::to_string(i) + "]";
    const auto from = object_of(rows.Get(i), name);
    VariantTable::Choice choice{
        key_of(from, name), integer(from.Get("rows"), (name + ".rows").c_str(), 1, INT32_MAX), {}};
    const auto names = array_of(from.Get("variants"), name + ".variants");
    for (uint32_t j = 0; j < names.Length(); ++j)
      choice.variants.push_back(string_of(names.Get(j), name + ".variants[" + std::to_string(j) + "]"));
    choices.push_back(std::move(choice));
  }
  for (uint32_t i = 0; i < invariant.Length(); ++i) {
    const std::string name = "orders[" + std::to_string(i) + "]";
    const auto from = object_of(invariant.Get(i), name);
    orders.push_back({key_of(from, name), string_of(from.Get("order"), name + ".order")});
  }
  set_variant_table(device, std::make_shared<const VariantTable>(std::move(choices), std::move(orders)));
  return info.Env().Undefined();
}

}  // namespace

void define_variants(Napi::Object& router_kernels) {
  define<Candidates>(router_kernels, "candidates");
  define<GroupedLinear>(router_kernels, "groupedLinear");
  define<PanelUse>(router_kernels, "panelUse");
  define<LayPanels>(router_kernels, "layPanels");
  define<DeviceClass>(router_kernels, "deviceClass");
  define<SetVariantTable>(router_kernels, "setVariantTable");
}

}  // namespace nexus::addon
