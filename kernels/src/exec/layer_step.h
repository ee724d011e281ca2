// One step of a layer as operations queued on streams: the same function for an eager step and for a recorded one.
#pragma once
#include "exec/fork_join.h"
#include "exec/layer_workspace.h"

namespace nexus {

struct LayerStep {
  const LayerDesc& desc;
  const LayerWeights& weights;
  const Scratch& scratch;  ///< expert_ids and weights may be the caller's memory
  ForkJoin& branches;
  int64_t tokens = 0;  ///< when recorded: the bucket, an upper bound
  int64_t bucket = 0;  ///< by which kernel variants are chosen
  bool with_logits = false;
  const StepBlock* block = nullptr;  ///< null: eager; else x, logits, out and the true number of tokens are its
  const void* x = nullptr;
  const float* logits = nullptr;
  void* out = nullptr;
  const ExecPlan* plan = nullptr;  ///< null: fused
  CountRingView ring = {};
  VariantChoice choice = {};
  StepRecord* record = nullptr;
};

/// When an operation cannot be queued, the branches of the step are joined before the error goes on: `stream` is then
/// behind everything that was queued, and the next step finds all as it should be.
void queue_step(const std::shared_ptr<Stream>& stream, const LayerStep& step);

/// The i-th mark of a record (null: none) on a stream.
void mark(StepRecord* record, size_t i, Stream& stream);
/// Copies the counts ([experts]) of a step to its record (null: none), behind the step.
void copy_counts(StepRecord* record, const int32_t* counts, int experts, Stream& stream);

}  // namespace nexus
