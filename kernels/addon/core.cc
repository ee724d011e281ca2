// @nexus/core: the whole layer, one native call a step.
#include <cstring>

#include "boundary.h"

namespace nexus::addon {
namespace {

using Napi::CallbackInfo;
using Napi::Value;

std::shared_ptr<Buffer> optional_buffer(const Value& value, const char* name) {
  return absent(value) ? nullptr : unwrap<BufferHandle>(value, name).object;
}

std::array<std::shared_ptr<Buffer>, 3> buffers(const Napi::Object& from, const char* name) {
  const auto value = from.Get(name);
  if (!value.IsArray()) throw Napi::TypeError::New(from.Env(), std::string("weights.") + name + ": expected an array");
  const auto array = value.As<Napi::Array>();
  if (array.Length() > 3) throw_invalid(std::string("weights.") + name + ": expected at most 3 entries");
  std::array<std::shared_ptr<Buffer>, 3> result;
  for (uint32_t i = 0; i < array.Length(); ++i) {
    result[i] = optional_buffer(array.Get(i), (std::string("weights.") + name + "[" + std::to_string(i) + "]").c_str());
  }
  return result;
}

Value LayerCreate(const CallbackInfo& info) {
  const auto device = device_of(info[0]);
  if (!info[1].IsObject() || !info[2].IsObject())
    throw Napi::TypeError::New(info.Env(), "desc, weights: expected objects");
  const auto from = info[1].As<Napi::Object>(), tensors = info[2].As<Napi::Object>();
  LayerDesc desc;
  desc.router = router_desc(from.Get("router"));
  desc.router_dtype = float_dtype_of(from.Get("routerDtype"), "desc.routerDtype");
  desc.scale_input = from.Get("scaleInput").ToBoolean();
  desc.experts = mlp_desc(from.Get("experts"), "desc.experts");
  desc.combine = static_cast<CombineMode>(integer32(from.Get("combine"), "desc.combine", 0, 1));
  desc.has_shared = !absent(from.Get("shared"));
  if (desc.has_shared) desc.shared = mlp_desc(from.Get("shared"), "desc.shared");
  desc.shared_gate = from.Get("sharedGate").ToBoolean();

  LayerWeights weights;
  weights.router_weight = optional_buffer(tensors.Get("routerWeight"), "weights.routerWeight");
  weights.router_bias = optional_buffer(tensors.Get("routerBias"), "weights.routerBias");
  weights.select_bias = optional_buffer(tensors.Get("selectBias"), "weights.selectBias");
  weights.expert_weight = buffers(tensors, "expertWeight");
  weights.expert_bias = buffers(tensors, "expertBias");
  weights.shared_weight = buffers(tensors, "sharedWeight");
  weights.shared_bias = buffers(tensors, "sharedBias");
  weights.shared_gate = optional_buffer(tensors.Get("sharedGate"), "weights.sharedGate");
  return wrap(info.Env(), std::make_unique<LayerHandle>(Layer::create(desc, std::move(weights), device)));
}

/// The checked arguments that both kinds of step share: layer, stream, x, tokens, logits, out.
struct Step {
  Layer& layer;
  const StreamHandle& stream;
  const void* x;
  int64_t tokens;
  const float* logits;
  void* out;
};

Step step_of(const CallbackInfo& info) {
  Layer& layer = *unwrap<LayerHandle>(info[0], "layer").object;
  const auto& stream = stream_of(info[1]);
  const auto& desc = layer.desc();
  const int64_t tokens = integer(info[3], "tokens", 0, INT32_MAX / desc.router.top_k);
  const int64_t width =
      desc.combine == CombineMode::kConcat ? desc.experts.output * desc.router.top_k : desc.experts.output;
  const void* x = view(stream, info[2], "x", desc.experts.dtype, product("x", {tokens, desc.experts.input}));
  const float* logits = optional_view<float>(stream, info[4], "logits", tokens * desc.router.experts);
  void* out = view(stream, info[5], "out", desc.experts.dtype, product("out", {tokens, width}));
  return {layer, stream, x, tokens, logits, out};
}

Value LayerEnqueue(const CallbackInfo& info) {
  const Step s = step_of(info);
  s.layer.enqueue(s.stream.object, s.x, s.tokens, s.logits, s.out, nullptr, nullptr, nullptr);
  return info.Env().Undefined();
}

/// Plain data of a finished step, read on the completion thread so that the JS thread only makes the object.
struct StepStats {
  std::vector<int32_t> counts;
  std::array<double, 4> phases{};
  double total = 0;
};

StepStats read_record(const StepRecord& record, int experts) {
  StepStats stats;
  stats.counts.resize(static_cast<size_t>(experts));
  std::memcpy(stats.counts.data(), record.counts->data(), stats.counts.size() * sizeof(int32_t));
  for (size_t i = 0; i < stats.phases.size(); ++i) stats.phases[i] = record.marks[i]->elapsed_ms(*record.marks[i + 1]);
  stats.total = record.marks.front()->elapsed_ms(*record.marks.back());
  return stats;
}

Value stats_object(Napi::Env env, const StepStats& stats) {
  auto counts = Napi::Int32Array::New(env, stats.counts.size());
  std::memcpy(counts.Data(), stats.counts.data(), stats.counts.size() * sizeof(int32_t));
  auto o = Napi::Object::New(env);
  o.Set("counts", counts);
  o.Set("routerMs", stats.phases[0]);
  o.Set("expertsMs", stats.phases[1]);
  o.Set("sharedMs", stats.phases[2]);
  o.Set("combineMs", stats.phases[3]);
  o.Set("totalMs", stats.total);
  return o;
}

Value LayerForward(const CallbackInfo& info) {
  const Step s = step_of(info);
  const auto& desc = s.layer.desc();
  const int64_t slots = s.tokens * desc.router.top_k;
  auto* ids = optional_view<int32_t>(s.stream, info[6], "idsOut", slots);
  auto* weights = optional_view<float>(s.stream, info[7], "weightsOut", slots);
  const auto layer = unwrap<LayerHandle>(info[0], "layer").object;
  const auto environment = Environment::of(info.Env());
  const auto started = environment->start(info.Env());
  try {
    auto record = std::make_shared<StepRecord>();
    s.layer.enqueue(s.stream.object, s.x, s.tokens, s.logits, s.out, record.get(), ids, weights);
    // The layer is held until its step is done, also when it is disposed meanwhile.
    on_complete(s.stream.object, [=, id = started.id, experts = desc.router.experts](std::exception_ptr error) {
      (void)layer;
      if (error) return environment->settle(id, std::move(error));
      try {
        auto stats = read_record(*record, experts);
        environment->settle(id, nullptr,
                            [stats = std::move(stats)](Napi::Env env, Value) { return stats_object(env, stats); });
      } catch (...) {
        environment->settle(id, std::current_exception());
      }
    });
  } catch (...) {
    environment->abandon(info.Env(), started.id);
    throw;
  }
  return started.promise;
}

Value LayerWeightBytes(const CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           static_cast<double>(unwrap<LayerHandle>(info[0], "layer").object->weight_bytes()));
}

Value LayerWorkspaceBytes(const CallbackInfo& info) {
  return Napi::Number::New(info.Env(),
                           static_cast<double>(unwrap<LayerHandle>(info[0], "layer").object->workspace_bytes()));
}

}  // namespace

Napi::Object core_functions(Napi::Env env) {
  auto o = Napi::Object::New(env);
  define<LayerCreate>(o, "layerCreate");
  define<LayerEnqueue>(o, "layerEnqueue");
  define<LayerForward>(o, "layerForward");
  define<LayerWeightBytes>(o, "layerWeightBytes");
  define<LayerWorkspaceBytes>(o, "layerWorkspaceBytes");
  return o;
}

}  // namespace nexus::addon
