// router product → route → experts, as the plan says, beside the shared expert → combine.
//
// A plan decides who computes a tile and when, never how: every operation's kernel variant is that of the token bucket,
// and lanes write disjoint rows of the same memory, which combine then reads in slot order. So all plans give the same
// bits.
#include "exec/layer_step.h"

#include "data/backend.h"
#include "exec/fault.h"

namespace nexus {
namespace {

MlpWeights pointers(const std::array<std::shared_ptr<Buffer>, 3>& weight,
                    const std::array<std::shared_ptr<Buffer>, 3>& bias) {
  MlpWeights w;
  for (size_t i = 0; i < 3; ++i) {
    w.weight[i] = weight[i] == nullptr ? nullptr : weight[i]->data();
    w.bias[i] = bias[i] == nullptr ? nullptr : static_cast<const float*>(bias[i]->data());
  }
  return w;
}

const float* floats(const std::shared_ptr<Buffer>& b) {
  return b == nullptr ? nullptr : static_cast<const float*>(b->data());
}

/// The router's own product, where the logits are not given.
void queue_logits(Stream& s, const LayerStep& step) {
  if (step.with_logits) return;
  const LayerDesc& d = step.desc;
  RouterLogitsArgs product;
  product.x = step.x;
  product.x_dtype = d.experts.dtype;
  product.weight = step.weights.router_weight->data();
  product.weight_dtype = d.router_dtype;
  product.bias = floats(step.weights.router_bias);
  product.tokens = step.tokens;
  product.hidden = d.experts.input;
  product.experts = d.router.experts;
  product.logits = step.scratch.logits;
  product.step = step.block;
  product.choice_tokens = step.bucket;
  product.batch_invariant = step.choice.batch_invariant;
  router_logits(s, product);
}

RouteArgs routing(const LayerStep& step) {
  RouteArgs args;
  args.logits = step.with_logits ? step.logits : step.scratch.logits;  // given and recorded: null, they are the block's
  args.select_bias = floats(step.weights.select_bias);
  args.tokens = step.tokens;
  args.expert_ids = step.scratch.expert_ids;
  args.weights = step.scratch.weights;
  args.counts = step.scratch.counts;
  args.offsets = step.scratch.offsets;
  args.order = step.scratch.order;
  args.workspace = step.scratch.route;
  args.step = step.block;
  args.few_weights = has_few_weights(step.desc.experts);
  return args;
}

/// All behind the logits in two or three launches, where the step is so small that this is worth while. The bits are
/// the same. Such a step has no phases, so not where they are asked for; but a recording may follow the step, and is to
/// load nothing.
bool queue_decode(Stream& s, const LayerStep& step) {
  const LayerDesc& d = step.desc;
  if (s.device().is_cpu() || d.has_shared || d.combine != CombineMode::kWeightedSum ||
      (step.plan != nullptr && step.plan->strategy != Strategy::kFused))
    return false;
  DecodeArgs args;
  args.route = routing(step);
  args.route.ring = step.ring;
  args.choice_tokens = step.bucket;
  args.x = step.x;
  args.weights = pointers(step.weights.expert_weight, step.weights.expert_bias);
  args.scale_input = d.scale_input;
  args.hidden = step.scratch.mlp;
  args.out = step.out;
  args.choice = step.choice;
  args.prepare = step.record != nullptr;
  return cuda::decode_step(s, d.router, d.experts, args);
}

/// `ready`: see MlpArgs.
void queue_experts(Stream& s, const LayerStep& step, const LaneView& lanes, const int32_t* ready) {
  MlpArgs mlp;
  mlp.x = step.x;
  mlp.tokens = step.tokens;
  mlp.top_k = step.desc.router.top_k;
  mlp.offsets = step.scratch.offsets;
  mlp.order = step.scratch.order;
  mlp.input_scale = step.desc.scale_input ? step.scratch.weights : nullptr;
  mlp.rows = step.scratch.rows;
  mlp.workspace = step.scratch.mlp;
  mlp.counters = step.scratch.mlp_counters;
  mlp.ready = ready;
  mlp.choice_tokens = step.bucket;
  mlp.step = step.block;
  mlp.lanes = lanes;
  mlp.choice = step.choice;
  grouped_mlp(s, step.desc.experts, pointers(step.weights.expert_weight, step.weights.expert_bias), mlp);
}

void queue_shared(Stream& s, const LayerStep& step) {
  if (!step.desc.has_shared) return;
  MlpArgs shared;
  shared.x = step.x;
  shared.tokens = step.tokens;
  shared.rows = step.scratch.shared_rows;
  shared.workspace = step.scratch.shared_mlp;
  shared.choice_tokens = step.bucket;
  shared.step = step.block;
  shared.choice = step.choice;
  grouped_mlp(s, step.desc.shared, pointers(step.weights.shared_weight, step.weights.shared_bias), shared);
  if (!step.desc.shared_gate) return;
  SharedGateArgs gate;
  gate.x = step.x;
  gate.weight = step.weights.shared_gate->data();
  gate.dtype = step.desc.experts.dtype;
  gate.tokens = step.tokens;
  gate.hidden = step.desc.experts.input;
  gate.scale = step.scratch.shared_scale;
  gate.step = step.block;
  shared_gate(s, gate);
}

void queue_combine(Stream& s, const LayerStep& step) {
  CombineArgs sum;
  sum.mode = step.desc.combine;
  sum.dtype = step.desc.experts.dtype;
  sum.rows = step.scratch.rows;
  sum.weights = step.desc.scale_input ? nullptr : step.scratch.weights;
  sum.shared = step.desc.has_shared ? step.scratch.shared_rows : nullptr;
  sum.shared_scale = step.desc.shared_gate ? step.scratch.shared_scale : nullptr;
  sum.tokens = step.tokens;
  sum.width = step.desc.experts.output;
  sum.top_k = step.desc.router.top_k;
  sum.out = step.out;
  sum.step = step.block;
  sum.private_inputs = true;
  if (step.ring.slots != nullptr) {
    sum.ring = step.ring;
    sum.counts = step.scratch.counts;
    sum.experts = step.desc.router.experts;
  }
  combine(s, sum);
}

/// Experts and shared expert on their streams, joined again. The shared expert comes after the lanes' launches: they
/// are the longer work. Without a stream of its own it runs on the step's, which with lanes elsewhere has nothing else
/// to do then.
void queue_branches(const std::shared_ptr<Stream>& stream, const LayerStep& step, const int32_t* ready) {
  static const ExecPlan fused;
  const ExecPlan& plan = step.plan == nullptr ? fused : *step.plan;
  const std::shared_ptr<Stream>& shared_on =
      step.desc.has_shared && plan.shared_stream != nullptr ? plan.shared_stream : stream;
  if (!plan.streams.empty() || shared_on != stream) step.branches.fork(stream);

  for (size_t lane = 0; lane < plan.streams.size(); ++lane) {
    step.branches.begin(plan.streams[lane]);
    queue_experts(*plan.streams[lane], step, plan.lanes->view(static_cast<int>(lane)), nullptr);
  }
  if (plan.streams.empty()) {
    const bool cooperative = plan.strategy == Strategy::kCooperative;
    queue_experts(*stream, step, cooperative ? plan.lanes->view(-1) : LaneView{}, cooperative ? nullptr : ready);
    mark(step.record, 2, *stream);
  }
  if (shared_on != stream) step.branches.begin(shared_on);
  queue_shared(*shared_on, step);
  step.branches.join();
  if (!plan.streams.empty()) mark(step.record, 2, *stream);  // lanes and shared expert end together
  mark(step.record, 3, *stream);
}

}  // namespace

void queue_step(const std::shared_ptr<Stream>& stream, const LayerStep& step) {
  fault_point("layer.step", *stream);
  mark(step.record, 0, *stream);
  queue_logits(*stream, step);
  if (queue_decode(*stream, step)) return;
  RouteArgs args = routing(step);
  if (step.tokens == 0) args.ring = step.ring;  // nothing is combined: see queue_combine()
  // The experts' tokens: as old as the logits, or routing waits for both.
  const auto settled = [&](const void* from, int64_t count, size_t size) {
    return stream->settled(from, static_cast<size_t>(count) * size);
  };
  const MlpDesc& m = step.desc.experts;
  const bool ahead = step.block == nullptr && (!settled(args.logits, step.tokens * m.experts, sizeof(float)) ||
                                               settled(step.x, step.tokens * m.input, size_of(m.dtype)));
  if (step.block == nullptr) args.ready = step.scratch.ready;
  const bool says = route(*stream, step.desc.router, args);
  mark(step.record, 1, *stream);
  try {
    queue_branches(stream, step, says && ahead ? args.ready : nullptr);
  } catch (...) {
    if (step.block == nullptr) step.branches.abandon();  // a capture is undone as a whole
    throw;
  }
  queue_combine(*stream, step);
  mark(step.record, 4, *stream);
}

void mark(StepRecord* record, size_t i, Stream& stream) {
  if (record == nullptr) return;
  auto& event = record->marks[i];
  if (event == nullptr) event = Event::create(stream.device());
  event->record(stream);
}

void copy_counts(StepRecord* record, const int32_t* counts, int experts, Stream& stream) {
  if (record == nullptr) return;
  const size_t bytes = sizeof(int32_t) * static_cast<size_t>(experts);
  if (record->counts == nullptr || record->counts->bytes() < bytes)
    record->counts = HostBuffer::allocate(stream.device(), bytes);
  stream.copy(record->counts->data(), counts, bytes);
}

}  // namespace nexus
