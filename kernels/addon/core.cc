// @nexus/core: the whole layer, one native call a step. Plans and graphs are in layer_graph.cc.
#include <cstring>

#include "layer_step.h"

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
  desc.batch_invariant = from.Get("batchInvariant").ToBoolean();

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

void LayerEnqueue(const Arguments<8>& info) {
  Step s = step_of(info, {.layer = 0, .stream = 1, .x = 2, .tokens = 3, .logits = 4, .out = 5});
  const auto plan = plan_of(info[6]);
  CountRing* ring = ring_of(s.stream, info[7], s.layer.object->desc().router.experts);
  s.args.plan = plan.get();
  s.args.ring = ring;
  s.layer.object->enqueue(s.stream.object, s.args);
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
  for (size_t i = 0; i < stats.phases.size(); ++i) {
    stats.phases[i] = record.phases ? record.marks[i]->elapsed_ms(*record.marks[i + 1]) : -1;
  }
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

/// A step whose counts and times are delivered when the device has finished it. `queue` puts it on the stream; `held`
/// is what must live until then besides the layer.
template <class Queue>
Value recorded_step(const CallbackInfo& info, Step& s, size_t first_out, Queue queue) {
  refuse_capture(s.stream, "its counts and times are those of a run: enqueue the step");
  const auto& desc = s.layer.object->desc();
  const int64_t slots = s.args.tokens * desc.router.top_k;
  s.args.ids_out = optional_view<int32_t>(s.stream, info[first_out], "idsOut", slots);
  s.args.weights_out = optional_view<float>(s.stream, info[first_out + 1], "weightsOut", slots);
  const auto environment = Environment::of(info.Env());
  const auto started = environment->start(info.Env());
  try {
    const auto record = std::make_shared<StepRecord>();
    s.args.record = record.get();
    const auto held = queue();
    // All of it is held until the step is done, also when it is disposed of meanwhile.
    on_complete(s.stream.object, [environment, record, held, layer = s.layer.object, id = started.id,
                                  experts = desc.router.experts](std::exception_ptr error) {
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

Value LayerForward(const CallbackInfo& info) {
  Step s = step_of(info, {.layer = 0, .stream = 1, .x = 2, .tokens = 3, .logits = 4, .out = 5});
  const auto plan = plan_of(info[8]);
  CountRing* ring = ring_of(s.stream, info[9], s.layer.object->desc().router.experts);
  return recorded_step(info, s, 6, [&] {
    s.args.plan = plan.get();
    s.args.ring = ring;
    s.layer.object->enqueue(s.stream.object, s.args);
    return plan;
  });
}

Value LayerReplayForward(const CallbackInfo& info) {
  Step s = step_of(info, {.layer = 0, .stream = 2, .x = 3, .tokens = 4, .logits = 5, .out = 6});
  const auto graph = unwrap<LayerGraphHandle>(info[1], "graph").object;
  return recorded_step(info, s, 7, [&] {
    s.layer.object->replay(s.stream.object, *graph, s.args);
    return graph;
  });
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
  define_layer_graphs(o);
  define_hot<8, LayerEnqueue>(o, "layerEnqueue");
  define<LayerForward>(o, "layerForward");
  define<LayerReplayForward>(o, "layerReplayForward");
  define<LayerWeightBytes>(o, "layerWeightBytes");
  define<LayerWorkspaceBytes>(o, "layerWorkspaceBytes");
  return o;
}

}  // namespace nexus::addon
