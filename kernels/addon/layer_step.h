// What the functions of a layer share: its handles, and the checked arguments of a step.
#pragma once
#include <memory>

#include "capture.h"

namespace nexus::addon {

using LayerPlanHandle = HandleOf<ExecPlan, Kind::kLayerPlan>;
using LayerGraphHandle = HandleOf<LayerGraph, Kind::kLayerGraph>;

/// Why a layer's own graphs are refused on a stream that is being recorded.
inline constexpr const char* kNoGraphInGraph = "a layer's own graph cannot be part of another one: enqueue the step";

/// Where the arguments of a step stand: layer, stream, x, tokens, logits, out.
struct StepPositions {
  size_t layer, stream, x, tokens, logits, out;
};

struct Step {
  const LayerHandle& layer;
  const StreamHandle& stream;
  StepArgs args;
};

/// Sizes are those of the step's tokens, also where a graph was recorded for more. `Info` is a CallbackInfo or
/// Arguments.
template <class Info>
Step step_of(const Info& info, const StepPositions& at) {
  const auto& layer = unwrap<LayerHandle>(info[at.layer], "layer");
  const auto& stream = stream_of(info[at.stream]);
  const auto& desc = layer.object->desc();
  StepArgs args;
  args.tokens = integer(info[at.tokens], "tokens", 0, INT32_MAX / desc.router.top_k);
  const int64_t width =
      desc.combine == CombineMode::kConcat ? desc.experts.output * desc.router.top_k : desc.experts.output;
  args.x = view(stream, info[at.x], "x", desc.experts.dtype, product("x", {args.tokens, desc.experts.input}));
  args.logits = optional_view<float>(stream, info[at.logits], "logits", args.tokens * desc.router.experts);
  args.out = view(stream, info[at.out], "out", desc.experts.dtype, product("out", {args.tokens, width}));
  return {layer, stream, args};
}

/// null stays null. The layer keeps what the plan names until the step is done.
inline std::shared_ptr<ExecPlan> plan_of(const Napi::Value& plan) {
  return absent(plan) ? nullptr : unwrap<LayerPlanHandle>(plan, "plan").object;
}

/// binding.ts: planCreate, layerCapture, layerReplay, layerGraphInfo (layer_graph.cc).
void define_layer_graphs(Napi::Object& target);

}  // namespace nexus::addon
