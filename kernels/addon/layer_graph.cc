// @nexus/core: plans, and steps recorded as graphs. A replay is the hot path of a layer: it makes no object, allocates
// nothing and looks each handle up once.
#include "layer_step.h"

namespace nexus::addon {
namespace {

using Napi::CallbackInfo;
using Napi::Value;

void check_plan(const ExecPlan& plan) {
  const bool lanes = plan.strategy != Strategy::kFused;
  const bool streams = plan.strategy == Strategy::kTiered || plan.strategy == Strategy::kStreams;
  if (lanes && !plan.lanes) throw_invalid("plan.lanes: expected a lane set with this strategy, got null");
  if (!lanes && plan.lanes) throw_invalid("plan.lanes: expected null with the strategy fused");
  const size_t expected = streams ? static_cast<size_t>(plan.lanes->lanes()) : 0;
  if (plan.streams.size() != expected) {
    throw_invalid("plan.streams: expected " + std::to_string(expected) + " streams, got " +
                  std::to_string(plan.streams.size()));
  }
}

/// Devices are checked by the layer, which knows its own.
Value PlanCreate(const CallbackInfo& info) {
  const auto& desc = unwrap<LayerHandle>(info[0], "layer").object->desc();
  if (!info[1].IsObject()) throw Napi::TypeError::New(info.Env(), "plan: expected an object");
  const auto from = info[1].As<Napi::Object>();
  auto plan = std::make_shared<ExecPlan>();
  plan->strategy = static_cast<Strategy>(
      integer32(from.Get("strategy"), "plan.strategy", 0, static_cast<int32_t>(Strategy::kCooperative)));
  if (const Value lanes = from.Get("lanes"); !absent(lanes)) {
    plan->lanes = unwrap<LaneSetHandle>(lanes, "plan.lanes").object;
    if (plan->lanes->experts() != desc.router.experts) {
      throw_invalid("plan.lanes: expected lanes of " + std::to_string(desc.router.experts) + " experts, got lanes of " +
                    std::to_string(plan->lanes->experts()));
    }
  }
  const Value streams = from.Get("streams");
  if (!streams.IsArray()) throw Napi::TypeError::New(info.Env(), "plan.streams: expected an array");
  const auto array = streams.As<Napi::Array>();
  if (array.Length() > kMaxLanes) {
    throw_invalid("plan.streams: expected at most " + std::to_string(kMaxLanes) + ", got " +
                  std::to_string(array.Length()));
  }
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const auto name = "plan.streams[" + std::to_string(i) + "]";
    plan->streams.push_back(unwrap<StreamHandle>(array.Get(i), name.c_str()).object);
  }
  if (const Value shared = from.Get("sharedStream"); !absent(shared)) {
    plan->shared_stream = unwrap<StreamHandle>(shared, "plan.sharedStream").object;
  }
  check_plan(*plan);
  return wrap(info.Env(), std::make_unique<LayerPlanHandle>(std::move(plan)));
}

Value LayerCapture(const CallbackInfo& info) {
  const auto& layer = unwrap<LayerHandle>(info[0], "layer");
  const auto& stream = stream_of(info[1]);
  refuse_capture(stream, kNoGraphInGraph);
  const auto& desc = layer.object->desc();
  const int64_t bucket = integer(info[2], "bucket", 0, INT32_MAX / desc.router.top_k);
  const bool with_logits = info[3].ToBoolean();
  const auto plan = plan_of(info[4]);
  CountRing* ring = ring_of(stream, info[5], desc.router.experts);
  auto graph = layer.object->capture(stream.object, bucket, with_logits, plan.get(), ring);
  return wrap(info.Env(), std::make_unique<LayerGraphHandle>(std::move(graph)));
}

void LayerReplay(const Arguments<7>& info) {
  const Step s = step_of(info, {.layer = 0, .stream = 2, .x = 3, .tokens = 4, .logits = 5, .out = 6});
  refuse_capture(s.stream, kNoGraphInGraph);
  s.layer.object->replay(s.stream.object, *unwrap<LayerGraphHandle>(info[1], "graph").object, s.args);
}

Value LayerGraphInfo(const CallbackInfo& info) {
  const LayerGraph& graph = *unwrap<LayerGraphHandle>(info[0], "graph").object;
  return graph_info(info.Env(), graph.nodes(), graph.bytes(), graph.bytes_estimated(), graph.capture_ms());
}

Value TokenBucket(const CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(token_bucket(integer(info[0], "tokens", 0, INT32_MAX))));
}

}  // namespace

void define_layer_graphs(Napi::Object& target) {
  define<TokenBucket>(target, "tokenBucket");
  define<PlanCreate>(target, "planCreate");
  define<LayerCapture>(target, "layerCapture");
  define_hot<7, LayerReplay>(target, "layerReplay");
  define<LayerGraphInfo>(target, "layerGraphInfo");
}

}  // namespace nexus::addon
