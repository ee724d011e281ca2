// cpu::route: a pass over the tokens that scores, selects, weighs and counts (one block of tokens per task, a histogram
// per block), then a stable counting sort: offsets from the summed histograms, and each block writes its slots from its
// own base. The block size is fixed, so the work and every bit are the same for any number of threads.
//   bytes: logits once, ids and weights once, ids again for the sort.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "data/backend.h"
#include "data/cpu/gemm.h"
#include "data/cpu/isa.h"
#include "data/cpu/step.h"
#include "data/cpu/variants.h"
#include "exec/step.h"

namespace nexus::cpu {
namespace {

constexpr int64_t kTokenBlock = 64;
int64_t blocks_of(int64_t tokens) { return (tokens + kTokenBlock - 1) / kTokenBlock; }

/// NaN and -inf become -FLT_MAX, +inf becomes FLT_MAX.
float sanitize(float v) {
  if (!(v >= -FLT_MAX)) return -FLT_MAX;
  return v > FLT_MAX ? FLT_MAX : v;
}

/// The `count` largest of keys[0..n) in descending order, equal ones by ascending index. One pass with insertion: after
/// the first elements an insertion is rare. `allowed` may be null.
void select_largest(const float* keys, int n, int per_group, const bool* allowed, int count, int32_t* ids) {
  int have = 0;
  for (int e = 0; e < n; ++e) {
    if (allowed && !allowed[e / per_group]) continue;
    if (have == count && !(keys[e] > keys[ids[count - 1]])) continue;
    int at = have < count ? have++ : count - 1;
    for (; at > 0 && keys[e] > keys[ids[at - 1]]; --at) ids[at] = ids[at - 1];
    ids[at] = e;
  }
}

struct TokenScratch {
  float l[kMaxExperts], p[kMaxExperts], key[kMaxExperts], group[kMaxExperts];
  bool keep[kMaxExperts], picked[kMaxExperts];
};

void keep_best_groups(const RouterDesc& d, const float* keys, TokenScratch& s) {
  const int per_group = d.experts / d.groups;
  for (int g = 0; g < d.groups; ++g) {
    float best = -INFINITY, second = -INFINITY;
    for (int e = g * per_group; e < (g + 1) * per_group; ++e) {
      if (keys[e] > best) {
        second = best;
        best = keys[e];
      } else if (keys[e] > second) {
        second = keys[e];
      }
    }
    s.group[g] = d.group_value == GroupValue::kMax || per_group == 1 ? best : best + second;
    s.keep[g] = false;
  }
  int32_t kept[kMaxExperts];
  select_largest(s.group, d.groups, 1, nullptr, d.keep_groups, kept);
  for (int i = 0; i < d.keep_groups; ++i) s.keep[kept[i]] = true;
}

void weigh_sparsemixer(const RouterDesc& d, const float* l, const int32_t* ids, float* w, bool* picked) {
  std::fill(picked, picked + d.experts, false);
  for (int j = 0; j < d.top_k; ++j) {
    const float m = l[ids[j]];
    float sum = 0;
    for (int e = 0; e < d.experts; ++e) {
      if (picked[e]) continue;
      const float divisor = std::max(std::fabs(l[e]), m);
      const bool masked = divisor != 0 && (m - l[e]) / divisor > 2 * d.jitter;
      if (!masked) sum += std::exp(l[e] - m);
    }
    w[j] = 1.f / sum;
    picked[ids[j]] = true;
  }
}

void route_token(const Isa& isa, const RouterDesc& d, const float* logits, const float* bias, TokenScratch& s,
                 int32_t* ids, float* w) {
  for (int e = 0; e < d.experts; ++e) s.l[e] = sanitize(logits[e]);
  const bool pairs = d.groups > 1 && d.group_value == GroupValue::kTopTwoSum;
  const bool by_logit = (!bias && !pairs) || d.weigh == Weigh::kSparsemixer;
  const float* p = s.l;
  if (d.score != Score::kIdentity && (d.weigh == Weigh::kScore || !by_logit)) {
    (d.score == Score::kSoftmax ? isa.softmax : isa.sigmoid)(s.l, s.p, d.experts);
    p = s.p;
  }
  const float* keys = by_logit ? s.l : p;
  if (bias) {
    for (int e = 0; e < d.experts; ++e) s.key[e] = sanitize(p[e] + bias[e]);
    keys = s.key;
  }
  if (d.groups > 1) keep_best_groups(d, keys, s);
  select_largest(keys, d.experts, d.experts / d.groups, d.groups > 1 ? s.keep : nullptr, d.top_k, ids);

  switch (d.weigh) {
    case Weigh::kScore:
      for (int j = 0; j < d.top_k; ++j) w[j] = p[ids[j]];
      break;
    case Weigh::kSoftmaxChosen: {
      float chosen[kMaxTopK];
      for (int j = 0; j < d.top_k; ++j) chosen[j] = s.l[ids[j]];
      isa.softmax(chosen, w, d.top_k);
      break;
    }
    case Weigh::kSigmoidChosen: {
      float chosen[kMaxTopK];
      for (int j = 0; j < d.top_k; ++j) chosen[j] = s.l[ids[j]];
      isa.sigmoid(chosen, w, d.top_k);
      break;
    }
    case Weigh::kSparsemixer:
      weigh_sparsemixer(d, s.l, ids, w, s.picked);
      break;
  }
  if (d.normalize != Normalize::kNone) {
    float sum = 0;
    for (int j = 0; j < d.top_k; ++j) sum += w[j];
    const float divisor = d.normalize == Normalize::kSumPlusEpsilon ? sum + d.epsilon : std::max(sum, d.epsilon);
    for (int j = 0; j < d.top_k; ++j) w[j] /= divisor;
  }
  for (int j = 0; j < d.top_k; ++j) w[j] *= d.scale;
}

void run_route(const RouterDesc& d, const RouteArgs& given) {
  const Isa& table = isa();
  RouteArgs a = given;
  if (a.step) {
    a.tokens = step_tokens(*a.step, a.tokens);
    if (!a.logits) a.logits = step_memory("logits", a.step->logits, a.tokens);
  }
  const int64_t blocks = blocks_of(a.tokens);
  int32_t* histograms = static_cast<int32_t*>(a.workspace);  // [blocks][experts]; later each block's next free row
  parallel_for(blocks, [&](int64_t b) {
    static thread_local TokenScratch scratch;
    int32_t* histogram = histograms + b * d.experts;
    std::fill(histogram, histogram + d.experts, 0);
    for (int64_t t = b * kTokenBlock; t < std::min(a.tokens, (b + 1) * kTokenBlock); ++t) {
      int32_t* ids = a.expert_ids + t * d.top_k;
      route_token(table, d, a.logits + t * d.experts, a.select_bias, scratch, ids, a.weights + t * d.top_k);
      for (int j = 0; j < d.top_k; ++j) ++histogram[ids[j]];
    }
  });
  int32_t row = 0;
  for (int e = 0; e < d.experts; ++e) {
    a.offsets[e] = row;
    for (int64_t b = 0; b < blocks; ++b) {
      const int32_t count = histograms[b * d.experts + e];
      histograms[b * d.experts + e] = row;
      row += count;
    }
    a.counts[e] = row - a.offsets[e];
  }
  a.offsets[d.experts] = row;
  if (a.ring.slots) write_counts(a.ring, d.experts, static_cast<int32_t>(a.tokens), a.counts);
  parallel_for(blocks, [&](int64_t b) {
    int32_t* next = histograms + b * d.experts;
    const int64_t end = std::min(a.tokens, (b + 1) * kTokenBlock) * d.top_k;
    for (int64_t slot = b * kTokenBlock * d.top_k; slot < end; ++slot)
      a.order[next[a.expert_ids[slot]]++] = static_cast<int32_t>(slot);
  });
}

}  // namespace

size_t route_workspace_bytes(const RouterDesc& desc, int64_t tokens) {
  return static_cast<size_t>(blocks_of(tokens)) * static_cast<size_t>(desc.experts) * sizeof(int32_t);
}

bool route(Stream& stream, const RouterDesc& desc, const RouteArgs& args) {
  stream.enqueue([desc, args] { run_route(desc, args); });
  return false;
}

void router_logits(Stream& stream, const RouterLogitsArgs& args) {
  GroupedProduct p{.input_dtype = args.x_dtype, .weight_dtype = args.weight_dtype, .output_dtype = DType::kF32};
  p.k = args.hidden;
  p.n = args.experts;
  p.input = args.x;
  p.weight = args.weight;
  p.bias = args.bias;
  p.output = args.logits;
  p.max_rows = args.tokens;
  p.step = args.step;
  p.step_input = args.step != nullptr;
  if (args.batch_invariant) p.kernel = kInvariantKernel;
  stream.enqueue([p] { run_grouped_product(p); });
}

}  // namespace nexus::cpu
