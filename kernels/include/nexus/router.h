// Routing: logits → score → select → weigh → count → buckets. A router kind is a composition of the named steps below,
// so a new model family is a new combination and not a new kernel.
//
// For each token t, with l = sanitised float32 logits (NaN and -inf become -FLT_MAX, +inf becomes FLT_MAX: a masked
// expert gets weight 0 under softmax and an out-of-range expert can never be chosen):
//   1. score    p[e] = softmax(l)[e] | sigmoid(l[e]) | l[e]
//   2. select   key[e] = p[e] + select_bias[e]; with groups, the E experts lie in `groups` equal contiguous groups,
//               a group's value is the max (or the sum of the best two) of its keys, and only the best `keep_groups`
//               groups stay. The top_k largest keys win; ties go to the lower index (groups too). Without bias and
//               top-two groups the order of the keys is by l itself, which p is monotone in, so that a p that
//               underflows does not reorder.
//   3. weigh    w[j] = p[e_j] | softmax over the k chosen l | sigmoid(l[e_j]) | sparsemixer (below)
//   4. normalise  w[j] /= (sum(w) + epsilon)  or  w[j] /= max(sum(w), epsilon); then w[j] *= scale
// Slots are in descending key order. All arithmetic is float32, sums over experts in a fixed order.
//
// sparsemixer (Phi-3.5-MoE, transformers' modeling_phimoe, inference): round j picks m = max of the logits not yet
// picked; over the not yet picked e, those with (m - l[e]) / max(|l[e]|, m) > 2*jitter are masked out; w[j] = exp(0) /
// sum over the unmasked of exp(l[e] - m). (Division by zero or a NaN ratio masks nothing.)
#pragma once
#include <cstdint>

#include "nexus/runtime.h"
#include "nexus/step.h"

namespace nexus {

enum class Score : int32_t { kSoftmax = 0, kSigmoid = 1, kIdentity = 2 };
enum class GroupValue : int32_t { kMax = 0, kTopTwoSum = 1 };
enum class Weigh : int32_t { kScore = 0, kSoftmaxChosen = 1, kSigmoidChosen = 2, kSparsemixer = 3 };
enum class Normalize : int32_t { kNone = 0, kSumPlusEpsilon = 1, kMaxEpsilon = 2 };

constexpr int kMaxExperts = 1024;
constexpr int kMaxTopK = 32;

struct RouterDesc {
  int experts = 0;  ///< 1..1024
  int top_k = 0;    ///< 1..min(32, experts); with groups also <= keep_groups * experts / groups
  Score score = Score::kSoftmax;
  int groups = 1, keep_groups = 1;
  GroupValue group_value = GroupValue::kMax;
  Weigh weigh = Weigh::kScore;
  float jitter = 0.01f;  ///< sparsemixer only
  Normalize normalize = Normalize::kNone;
  float epsilon = 0.f;
  float scale = 1.f;
};

/// All pointers are in the stream's device memory; any number of tokens >= 0.
struct RouteArgs {
  const float* logits = nullptr;       ///< [tokens, experts]
  const float* select_bias = nullptr;  ///< [experts] or null
  int64_t tokens = 0;
  int32_t* expert_ids = nullptr;  ///< out [tokens, top_k]
  float* weights = nullptr;       ///< out [tokens, top_k]
  int32_t* counts = nullptr;      ///< out [experts]
  int32_t* offsets =
      nullptr;  ///< out [experts + 1], offsets[e] = first row of expert e, offsets[experts] = tokens * top_k
  int32_t* order =
      nullptr;  ///< out [tokens * top_k]: slot numbers t*top_k + j sorted by (expert, t); stable counting sort
  void* workspace = nullptr;        ///< route_workspace_bytes(); contents need no initialisation
  const StepBlock* step = nullptr;  ///< or null; logits == nullptr: they are step->logits
  CountRingView ring{};             ///< where the counts go besides
  /// The experts behind it have few weights (kFewWeightBytes): by blocks of fewer threads, for which there is room
  /// while the step before is at work. The same results.
  bool few_weights = false;
  /// Or null: a word, and a promise. No operation that is still under way when this one begins looks at the word or at
  /// anything else that this one writes: steps take turns with two copies of all of it. Where the logits are settled
  /// (Stream::settle_but()) the results are then written beside the operation before; and the word says, ahead of the
  /// end, that they are there, to a grouped_mlp() that is queued next (MlpArgs::ready). It is cleared here, whatever it
  /// holds.
  int32_t* ready = nullptr;
};
size_t route_workspace_bytes(DeviceId device, const RouterDesc& desc, int64_t tokens);
/// Validates (kInvalidArgument names the argument), then enqueues. tokens * top_k must be below 2^31. True where
/// args.ready will say when the results are there: not every way of routing does.
bool route(Stream& stream, const RouterDesc& desc, const RouteArgs& args);

/// logits[t, e] = sum_h x[t, h] * weight[e, h] (+ bias[e]), float32 accumulation and result.
struct RouterLogitsArgs {
  const void* x = nullptr;  ///< [tokens, hidden] of x_dtype
  DType x_dtype = DType::kF32;
  const void* weight = nullptr;  ///< [experts, hidden] of weight_dtype: f32, or x_dtype
  DType weight_dtype = DType::kF32;
  const float* bias = nullptr;  ///< [experts] or null
  int64_t tokens = 0, hidden = 0;
  int experts = 0;
  float* logits = nullptr;          ///< out [tokens, experts]
  const StepBlock* step = nullptr;  ///< or null: x and the true number of tokens are its
  int64_t choice_tokens = 0;        ///< number of tokens by which a kernel variant is chosen; 0: tokens
  bool batch_invariant = false;     ///< the same order of sums for all numbers of tokens
};
void router_logits(Stream& stream, const RouterLogitsArgs& args);

// Oracles in float64 on host memory (src/data/router_reference.cpp). Same rules, same tie-breaks.
void route_reference(const RouterDesc& desc, const RouteArgs& host_args);
void router_logits_reference(const RouterLogitsArgs& host_args, double* logits);

}  // namespace nexus
