// Oracles of routing in float64, written for reading: whole arrays, std::stable_sort, the steps one after another.
#include <cfloat>
#include <numeric>

#include "data/reference.h"
#include "nexus/router.h"

namespace nexus {
namespace {

using Vector = std::vector<double>;

double sanitize(double v) {
  if (std::isnan(v)) return -FLT_MAX;
  return std::clamp(v, -static_cast<double>(FLT_MAX), static_cast<double>(FLT_MAX));
}

Vector softmax(const Vector& l) {
  const double high = *std::max_element(l.begin(), l.end());
  Vector p(l.size());
  double sum = 0;
  for (size_t i = 0; i < l.size(); ++i) sum += p[i] = std::exp(l[i] - high);
  for (double& v : p) v /= sum;
  return p;
}

/// Indices by descending key, equal keys by ascending index.
std::vector<int32_t> ranking(const Vector& keys) {
  std::vector<int32_t> index(keys.size());
  std::iota(index.begin(), index.end(), 0);
  std::stable_sort(index.begin(), index.end(),
                   [&](int32_t a, int32_t b) { return keys[static_cast<size_t>(a)] > keys[static_cast<size_t>(b)]; });
  return index;
}

std::vector<bool> kept_groups(const RouterDesc& d, const Vector& keys) {
  const int per_group = d.experts / d.groups;
  Vector value;
  for (int g = 0; g < d.groups; ++g) {
    Vector group(keys.begin() + g * per_group, keys.begin() + (g + 1) * per_group);
    std::sort(group.rbegin(), group.rend());
    value.push_back(d.group_value == GroupValue::kMax || per_group == 1 ? group[0] : group[0] + group[1]);
  }
  const std::vector<int32_t> order = ranking(value);
  std::vector<bool> keep(static_cast<size_t>(d.groups), false);
  for (int i = 0; i < d.keep_groups; ++i) keep[static_cast<size_t>(order[static_cast<size_t>(i)])] = true;
  return keep;
}

Vector sparsemixer(const RouterDesc& d, const Vector& l, const std::vector<int32_t>& ids) {
  Vector w;
  std::vector<bool> picked(l.size(), false);
  for (const int32_t id : ids) {
    const double m = l[static_cast<size_t>(id)];
    double sum = 0;
    for (size_t e = 0; e < l.size(); ++e) {
      if (picked[e]) continue;
      const double divisor = std::max(std::fabs(l[e]), m);
      const bool masked = divisor != 0 && (m - l[e]) / divisor > 2.0 * d.jitter;
      if (!masked) sum += std::exp(l[e] - m);
    }
    w.push_back(1 / sum);
    picked[static_cast<size_t>(id)] = true;
  }
  return w;
}

}  // namespace

void route_reference(const RouterDesc& d, const RouteArgs& a) {
  const size_t experts = static_cast<size_t>(d.experts), k = static_cast<size_t>(d.top_k);
  const int per_group = d.experts / d.groups;
  std::fill(a.counts, a.counts + experts, 0);
  for (int64_t t = 0; t < a.tokens; ++t) {
    // 1. score
    Vector l(experts);
    for (size_t e = 0; e < experts; ++e) l[e] = sanitize(a.logits[t * d.experts + static_cast<int64_t>(e)]);
    Vector p = l;
    if (d.score == Score::kSoftmax) p = softmax(l);
    if (d.score == Score::kSigmoid) std::transform(l.begin(), l.end(), p.begin(), reference::sigmoid);
    // 2. select
    const bool pairs = d.groups > 1 && d.group_value == GroupValue::kTopTwoSum;
    Vector key = (!a.select_bias && !pairs) || d.weigh == Weigh::kSparsemixer ? l : p;
    if (a.select_bias)
      for (size_t e = 0; e < experts; ++e) key[e] = sanitize(key[e] + a.select_bias[e]);
    const std::vector<bool> keep = kept_groups(d, key);
    std::vector<int32_t> ids;
    for (const int32_t e : ranking(key))
      if (ids.size() < k && keep[static_cast<size_t>(e / per_group)]) ids.push_back(e);
    // 3. weigh
    Vector chosen, w;
    for (const int32_t e : ids) chosen.push_back(l[static_cast<size_t>(e)]);
    switch (d.weigh) {
      case Weigh::kScore:
        for (const int32_t e : ids) w.push_back(p[static_cast<size_t>(e)]);
        break;
      case Weigh::kSoftmaxChosen:
        w = softmax(chosen);
        break;
      case Weigh::kSigmoidChosen:
        for (const double v : chosen) w.push_back(reference::sigmoid(v));
        break;
      case Weigh::kSparsemixer:
        w = sparsemixer(d, l, ids);
        break;
    }
    // 4. normalise
    const double sum = std::accumulate(w.begin(), w.end(), 0.0), epsilon = d.epsilon;
    double divisor = 1;
    if (d.normalize == Normalize::kSumPlusEpsilon) divisor = sum + epsilon;
    if (d.normalize == Normalize::kMaxEpsilon) divisor = std::max(sum, epsilon);
    for (size_t j = 0; j < k; ++j) {
      a.expert_ids[t * d.top_k + static_cast<int64_t>(j)] = ids[j];
      a.weights[t * d.top_k + static_cast<int64_t>(j)] = static_cast<float>(w[j] / divisor * d.scale);
      ++a.counts[ids[j]];
    }
  }
  // Buckets: slots by (expert, slot).
  a.offsets[0] = 0;
  for (size_t e = 0; e < experts; ++e) a.offsets[e + 1] = a.offsets[e] + a.counts[e];
  int64_t row = 0;
  for (int32_t e = 0; e < d.experts; ++e)
    for (int64_t slot = 0; slot < a.tokens * d.top_k; ++slot)
      if (a.expert_ids[slot] == e) a.order[row++] = static_cast<int32_t>(slot);
}

void router_logits_reference(const RouterLogitsArgs& a, double* logits) {
  using reference::element;
  for (int64_t t = 0; t < a.tokens; ++t)
    for (int64_t e = 0; e < a.experts; ++e) {
      double sum = 0;
      for (int64_t h = 0; h < a.hidden; ++h)
        sum += element(a.x, a.x_dtype, t * a.hidden + h) * element(a.weight, a.weight_dtype, e * a.hidden + h);
      logits[t * a.experts + e] = sum + (a.bias ? a.bias[e] : 0.0);
    }
}

}  // namespace nexus
