// The checks of a layer. The data plane checks its own arguments at every call; what is checked here is what it cannot
// see (sizes of buffers, the parts of a layer against each other) or would see too late, with half of a step queued.
#include "exec/layer_check.h"

#include "data/panels.h"

namespace nexus {
namespace {

std::string got(int64_t v) { return ", got " + std::to_string(v); }

void need(const std::shared_ptr<Buffer>& b, const char* name, int64_t elements, DType dtype, DeviceId device) {
  if (b == nullptr) throw_invalid(std::string(name) + " is missing");
  if (!(b->device() == device))
    throw_invalid(std::string(name) + " must be on " + device.name() + ", it is on " + b->device().name());
  const size_t bytes = static_cast<size_t>(elements) * size_of(dtype);
  if (b->bytes() != bytes)
    throw_invalid(std::string(name) + " must have " + std::to_string(elements) + " elements of " + name_of(dtype) +
                  " (" + std::to_string(bytes) + " bytes)" + got(static_cast<int64_t>(b->bytes())) + " bytes");
}

void check_mlp(const MlpDesc& mlp, const std::array<std::shared_ptr<Buffer>, 3>& weight,
               const std::array<std::shared_ptr<Buffer>, 3>& bias, const char* what, DeviceId device) {
  check_panels(mlp.in_panels, device, (std::string(what) + ".in_panels").c_str());
  for (int i = 0; i < mlp_layers(mlp.kind); ++i) {
    const GroupedLinearDesc layer = mlp_layer(mlp, i);
    const std::string name = std::string(what) + " weight " + std::to_string(i);
    need(weight[i], name.c_str(), layer.experts * layer.n * layer.k, layer.dtype, device);
    if (bias[i] != nullptr)
      need(bias[i], (std::string(what) + " bias " + std::to_string(i)).c_str(), layer.experts * layer.n, DType::kF32,
           device);
  }
}

const char* strategy_name(Strategy s) {
  switch (s) {
    case Strategy::kFused:
      return "fused";
    case Strategy::kTiered:
      return "tiered";
    case Strategy::kStreams:
      return "streams";
    case Strategy::kCooperative:
      return "cooperative";
  }
  throw_invalid("plan.strategy: expected a value of Strategy" + got(static_cast<int64_t>(s)));
}

}  // namespace

void check_layer(const LayerDesc& desc, const LayerWeights& weights, DeviceId device) {
  const RouterDesc& r = desc.router;
  const MlpDesc& m = desc.experts;
  // The data plane checks descriptors on every call; running those checks here, on no tokens' worth of sizes, makes a
  // wrong layer fail where it is made.
  route_workspace_bytes(device, r, 0);
  mlp_workspace_bytes(device, m, 0);
  if (r.experts != m.experts)
    throw_invalid("router.experts (" + std::to_string(r.experts) + ") and experts.experts (" +
                  std::to_string(m.experts) + ") differ");
  if (desc.router_dtype != DType::kF32 && desc.router_dtype != m.dtype)
    throw_invalid(std::string("router_dtype must be f32 or ") + name_of(m.dtype) + ", got " +
                  name_of(desc.router_dtype));
  if (weights.router_weight != nullptr)
    need(weights.router_weight, "router weight", r.experts * m.input, desc.router_dtype, device);
  if (weights.router_bias != nullptr) need(weights.router_bias, "router bias", r.experts, DType::kF32, device);
  if (weights.select_bias != nullptr) need(weights.select_bias, "select bias", r.experts, DType::kF32, device);
  check_mlp(m, weights.expert_weight, weights.expert_bias, "expert", device);
  if (desc.has_shared) {
    const MlpDesc& shared = desc.shared;
    mlp_workspace_bytes(device, shared, 0);
    if (desc.combine == CombineMode::kConcat) throw_invalid("a shared expert cannot be combined by concat");
    if (shared.experts != 1) throw_invalid("shared.experts must be 1" + got(shared.experts));
    if (shared.input != m.input || shared.output != m.output || shared.dtype != m.dtype)
      throw_invalid("the shared expert's input, output and dtype must be the experts'");
    check_mlp(shared, weights.shared_weight, weights.shared_bias, "shared", device);
  }
  if (desc.shared_gate) {
    if (!desc.has_shared) throw_invalid("shared_gate needs a shared expert");
    need(weights.shared_gate, "shared gate", m.input, m.dtype, device);
  }
}

void check_plan(const ExecPlan* plan, const LayerDesc& desc, DeviceId device) {
  if (plan == nullptr) return;
  const char* const strategy = strategy_name(plan->strategy);
  const auto streams = static_cast<int64_t>(plan->streams.size());
  if (plan->strategy == Strategy::kFused) {
    if (plan->lanes != nullptr) throw_invalid("plan.lanes: expected null with the fused strategy, got a lane set");
  } else {
    if (plan->lanes == nullptr)
      throw_invalid(std::string("plan.lanes: expected a lane set with the ") + strategy + " strategy, got null");
    if (plan->lanes->experts() != desc.router.experts)
      throw_invalid("plan.lanes: expected a lane set of the layer's " + std::to_string(desc.router.experts) +
                    " experts" + got(plan->lanes->experts()));
  }
  const bool forks = plan->strategy == Strategy::kTiered || plan->strategy == Strategy::kStreams;
  if (const int64_t lanes = forks ? plan->lanes->lanes() : 0; streams != lanes)
    throw_invalid(
        "plan.streams: expected " +
        (forks ? "one for each of " + std::to_string(lanes) + " lanes" : std::string("none with ") + strategy) +
        got(streams));
  for (size_t i = 0; i < plan->streams.size(); ++i)
    if (const auto& s = plan->streams[i]; s == nullptr || !(s->device() == device))
      check_stream(("plan.streams[" + std::to_string(i) + "]").c_str(), s, device);
  if (plan->shared_stream != nullptr) check_stream("plan.shared_stream", plan->shared_stream, device);
}

void check_ring(const CountRing* ring, const LayerDesc& desc) {
  if (ring != nullptr && ring->experts() != desc.router.experts)
    throw_invalid("ring: expected a ring of the layer's " + std::to_string(desc.router.experts) + " experts" +
                  got(ring->experts()));
}

void check_stream(const char* name, const std::shared_ptr<Stream>& stream, DeviceId device) {
  if (stream == nullptr) throw_invalid(std::string(name) + " must be a stream, got null");
  if (!(stream->device() == device))
    throw_invalid(std::string(name) + " must be on " + device.name() + ", it is on " + stream->device().name());
}

void check_step(const StepArgs& args, int64_t most) {
  if (args.tokens < 0) throw_invalid("tokens must be >= 0" + got(args.tokens));
  if (most >= 0 && args.tokens > most)
    throw_invalid("tokens must be <= " + std::to_string(most) + ", the graph's bucket" + got(args.tokens));
  if (args.tokens == 0) return;
  if (args.x == nullptr) throw_invalid("x must be memory, got null");
  if (const auto past = reinterpret_cast<uintptr_t>(args.x) % 16; most >= 0 && past != 0)
    throw_invalid("x must start at a multiple of 16 bytes in a recorded step, got an address " + std::to_string(past) +
                  " bytes past one");
  if (args.out == nullptr) throw_invalid("out must be memory, got null");
}

}  // namespace nexus
