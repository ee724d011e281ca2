// Routing against its float64 oracle for every family of router, expert count and top-k, and exactly on crafted logits:
// ties, NaN, infinities, masked experts, underflow. Near ties may fall either way between float32 and float64, so a
// different choice passes only where the keys are within 1e-6; the buckets must be exact for the choice made.
#include "nexus/router.h"

#include <cfloat>
#include <set>

#include "data/reference.h"
#include "data_plane.h"

using namespace nexus;
using namespace nexus::test;

namespace {

/// Keys, group values and mask ratios are of order 1: float32 holds them to about 1e-7.
constexpr double kNear = 1e-6;

struct Routing {
  std::vector<int32_t> ids, counts, offsets, order;
  std::vector<float> weights;
  bool operator==(const Routing& o) const {
    return ids == o.ids && counts == o.counts && offsets == o.offsets && order == o.order &&
           weights.size() == o.weights.size() &&
           (weights.empty() || std::memcmp(weights.data(), o.weights.data(), weights.size() * 4) == 0);
  }
};

Routing run(Bench& bench, const RouterDesc& d, const std::vector<float>& logits, const std::vector<float>* bias) {
  const size_t experts = static_cast<size_t>(d.experts), tokens = logits.size() / experts,
               slots = tokens * static_cast<size_t>(d.top_k);
  RouteArgs a;
  a.logits = bench.upload(logits);
  a.select_bias = bias ? bench.upload(*bias) : nullptr;
  a.tokens = static_cast<int64_t>(tokens);
  a.expert_ids = bench.poisoned<int32_t>(slots);
  a.weights = bench.poisoned<float>(slots);
  a.counts = bench.poisoned<int32_t>(experts);
  a.offsets = bench.poisoned<int32_t>(experts + 1);
  a.order = bench.poisoned<int32_t>(slots);
  const size_t workspace = route_workspace_bytes(bench.device, d, a.tokens);
  uint8_t* scratch = bench.poisoned<uint8_t>(workspace);
  a.workspace = scratch;
  route(*bench.stream, d, a);
  bench.read(scratch, workspace);
  return {bench.read(a.expert_ids, slots), bench.read(a.counts, experts), bench.read(a.offsets, experts + 1),
          bench.read(a.order, slots), bench.read(a.weights, slots)};
}

Routing oracle(const RouterDesc& d, const std::vector<float>& logits, const std::vector<float>* bias) {
  const size_t experts = static_cast<size_t>(d.experts), tokens = logits.size() / experts,
               slots = tokens * static_cast<size_t>(d.top_k);
  Routing r{std::vector<int32_t>(slots), std::vector<int32_t>(experts), std::vector<int32_t>(experts + 1),
            std::vector<int32_t>(slots), std::vector<float>(slots)};
  route_reference(d, {.logits = logits.data(),
                      .select_bias = bias ? bias->data() : nullptr,
                      .tokens = static_cast<int64_t>(tokens),
                      .expert_ids = r.ids.data(),
                      .weights = r.weights.data(),
                      .counts = r.counts.data(),
                      .offsets = r.offsets.data(),
                      .order = r.order.data()});
  return r;
}

/// The selection key of finite logits in float64, for judging near ties.
std::vector<double> keys(const RouterDesc& d, const float* logits, const std::vector<float>* bias) {
  std::vector<double> p(logits, logits + d.experts);
  const bool by_logit = !bias && !(d.groups > 1 && d.group_value == GroupValue::kTopTwoSum);
  if (!by_logit && d.score == Score::kSigmoid)
    for (double& v : p) v = reference::sigmoid(v);
  if (!by_logit && d.score == Score::kSoftmax) {
    double sum = 0;
    for (double& v : p) sum += v = std::exp(v);
    for (double& v : p) v /= sum;
  }
  if (bias)
    for (size_t e = 0; e < p.size(); ++e) p[e] += (*bias)[e];
  return p;
}

/// The choices that rounding can make of a token's keys: the oracle's, and where the values of the last group that
/// stays and the first that goes are within rounding of each other, the one with those two exchanged.
std::vector<std::vector<int32_t>> possible_choices(const RouterDesc& d, const std::vector<double>& key) {
  const size_t size = static_cast<size_t>(d.experts / d.groups), keep = static_cast<size_t>(d.keep_groups);
  std::vector<std::pair<double, size_t>> groups;  // by descending value, equal ones by ascending index
  for (size_t g = 0; g < static_cast<size_t>(d.groups); ++g) {
    std::vector<double> own(key.begin() + static_cast<int64_t>(g * size),
                            key.begin() + static_cast<int64_t>((g + 1) * size));
    std::sort(own.rbegin(), own.rend());
    groups.emplace_back(-own[0] - (d.group_value == GroupValue::kTopTwoSum && size > 1 ? own[1] : 0), g);
  }
  std::sort(groups.begin(), groups.end());
  const bool near = keep < groups.size() && std::fabs(groups[keep].first - groups[keep - 1].first) <= kNear;
  std::vector<std::vector<int32_t>> choices;
  for (int other = 0; other <= (near ? 1 : 0); ++other) {
    if (other == 1) std::swap(groups[keep - 1], groups[keep]);
    std::vector<int32_t> experts;
    for (size_t i = 0; i < keep; ++i)
      for (size_t e = groups[i].second * size; e < (groups[i].second + 1) * size; ++e)
        experts.push_back(static_cast<int32_t>(e));
    std::sort(experts.begin(), experts.end());
    std::stable_sort(experts.begin(), experts.end(),
                     [&](int32_t a, int32_t b) { return key[static_cast<size_t>(a)] > key[static_cast<size_t>(b)]; });
    experts.resize(static_cast<size_t>(d.top_k));
    choices.push_back(std::move(experts));
  }
  return choices;
}

/// Whether sparsemixer's mask, which is a step, may fall either way for some expert: its ratio is within rounding of
/// it.
bool on_the_step(const RouterDesc& d, const float* logits, const int32_t* ids) {
  for (int j = 0; j < d.top_k; ++j)
    for (int e = 0; e < d.experts; ++e) {
      const double m = logits[ids[j]], ratio = (m - logits[e]) / std::max(std::fabs(static_cast<double>(logits[e])), m);
      if (std::fabs(ratio - 2.0 * d.jitter) <= kNear) return true;
    }
  return false;
}

/// The buckets follow exactly from the chosen experts.
void check_buckets(const RouterDesc& d, const Routing& r) {
  const Buckets want = bucket(d.experts, r.ids);
  CHECK(r.order == want.order);
  CHECK(r.offsets == want.offsets);
  for (size_t e = 0; e < r.counts.size(); ++e) CHECK_EQ(r.counts[e], want.offsets[e + 1] - want.offsets[e]);
}

void check_against_oracle(const RouterDesc& d, const std::vector<float>& logits, const std::vector<float>* bias,
                          const Routing& got, const Routing& want, const std::string& what) {
  const size_t k = static_cast<size_t>(d.top_k), tokens = got.ids.size() / k;
  for (size_t t = 0; t < tokens; ++t) {
    const auto fail = [&](const std::string& why) { throw Failure(what + " token " + show(t) + ": " + why); };
    const int32_t* ids = got.ids.data() + t * k;
    const float* l = logits.data() + t * static_cast<size_t>(d.experts);
    std::set<int32_t> distinct(ids, ids + k);
    if (distinct.size() != k || *distinct.begin() < 0 || *distinct.rbegin() >= d.experts)
      fail("repeated or out-of-range experts");
    if (std::equal(ids, ids + k, want.ids.data() + t * k)) {
      for (size_t j = 0; j < k; ++j) {
        const double g = got.weights[t * k + j], w = want.weights[t * k + j];
        if (std::fabs(g - w) <= 1e-5 * std::fabs(w) + 1e-30) continue;
        if (d.weigh == Weigh::kSparsemixer && on_the_step(d, l, ids)) continue;
        fail("weight " + show(g) + " instead of " + show(w));
      }
      continue;
    }
    // Another choice must be one that rounding can make: in each slot a key as good as that of the exact choice.
    const std::vector<double> key = keys(d, l, bias);
    const auto as_good = [&](const std::vector<int32_t>& exact) {
      for (size_t j = 0; j < k; ++j) {
        const double g = key[static_cast<size_t>(ids[j])], w = key[static_cast<size_t>(exact[j])];
        if (std::fabs(g - w) > kNear * std::max(1.0, std::fabs(w))) return false;
      }
      return true;
    };
    const auto choices = possible_choices(d, key);
    if (std::none_of(choices.begin(), choices.end(), as_good)) fail("chose experts with lesser keys than the oracle");
  }
  check_buckets(d, got);
}

struct Family {
  const char* name;
  bool bias;
  RouterDesc desc;  // experts and top_k are filled in
};
/// The families of docs' table; groups of eight where the experts allow them.
std::vector<Family> families(int experts) {
  const int groups = experts % 8 == 0 && experts >= 16 ? 8 : 1, keep = groups == 8 ? 4 : 1;
  std::vector<Family> list;
  list.push_back({"softmax (OLMoE)", false, {}});
  list.push_back({"softmax, renormalised (Mixtral)", false, {.normalize = Normalize::kSumPlusEpsilon}});
  list.push_back({"sigmoid + bias, top-two groups (DeepSeek-V3)",
                  true,
                  {.score = Score::kSigmoid,
                   .groups = groups,
                   .keep_groups = keep,
                   .group_value = GroupValue::kTopTwoSum,
                   .normalize = Normalize::kSumPlusEpsilon,
                   .epsilon = 1e-20f,
                   .scale = 2.5f}});
  list.push_back(
      {"sigmoid, top-two groups, no bias",
       false,
       {.score = Score::kSigmoid, .groups = groups, .keep_groups = keep, .group_value = GroupValue::kTopTwoSum}});
  list.push_back({"softmax, max groups (DeepSeek-V2)", false, {.groups = groups, .keep_groups = keep, .scale = 16.f}});
  list.push_back(
      {"softmax of the chosen (GPT-OSS)", false, {.score = Score::kIdentity, .weigh = Weigh::kSoftmaxChosen}});
  list.push_back(
      {"sigmoid of the chosen (Llama-4)", false, {.score = Score::kIdentity, .weigh = Weigh::kSigmoidChosen}});
  list.push_back(
      {"softmax + bias, clamped sum (Ernie-4.5)", true, {.normalize = Normalize::kMaxEpsilon, .epsilon = 1e-12f}});
  list.push_back({"sparsemixer (Phi-3.5)", false, {.score = Score::kIdentity, .weigh = Weigh::kSparsemixer}});
  list.push_back({"raw scores", false, {.score = Score::kIdentity}});
  return list;
}

Routing on(DeviceId device, const RouterDesc& d, const std::vector<float>& logits,
           const std::vector<float>* bias = nullptr) {
  Bench bench(device);
  return run(bench, d, logits, bias);
}
/// Runs everywhere and checks the choice exactly, the weights closely.
void expect_routing(const RouterDesc& d, const std::vector<float>& logits, const std::vector<int32_t>& ids,
                    const std::vector<float>& weights, const std::vector<float>* bias = nullptr) {
  for (const DeviceId device : devices())
    for_each_isa(device, [&](const std::string& where) {
      const Routing r = on(device, d, logits, bias);
      for (size_t j = 0; j < ids.size(); ++j) {
        if (r.ids[j] != ids[j])
          throw Failure(where + ": slot " + show(j) + ": expert " + show(r.ids[j]) + ", expected " + show(ids[j]));
        if (!(std::fabs(r.weights[j] - weights[j]) <= 2e-6f * std::fabs(weights[j])))
          throw Failure(where + ": slot " + show(j) + ": weight " + show(r.weights[j]) + ", expected " +
                        show(weights[j]));
      }
      check_buckets(d, r);
    });
  CHECK(oracle(d, logits, bias).ids == ids);
}

constexpr float kInf = INFINITY;

}  // namespace

TEST_IN_PARTS("route: every family, expert count, top-k and number of tokens agrees with the oracle") {
  Random random(40);
  for (const int experts : {1, 2, 7, 8, 16, 60, 64, 128, 256, 384, 1024})
    for (const Family& family : families(experts))
      for (const int top_k : {1, 2, 6, 8, 32}) {
        RouterDesc d = family.desc;
        d.experts = experts;
        d.top_k = top_k;
        if (top_k > d.keep_groups * experts / d.groups || !part.mine()) continue;
        for (const int tokens : {0, 1, 3, 33, 1000}) {
          if (tokens == 1000 && !(top_k == 2 || (top_k == 8 && experts == 256))) continue;
          const std::vector<float> logits = random.normals(static_cast<size_t>(tokens * experts), 2.f);
          const std::vector<float> values = random.normals(static_cast<size_t>(experts), 0.1f);
          const std::vector<float>* bias = family.bias ? &values : nullptr;
          const Routing want = oracle(d, logits, bias);
          for (const DeviceId device : devices())
            for_each_isa(device, [&](const std::string& where) {
              check_against_oracle(d, logits, bias, on(device, d, logits, bias), want,
                                   where + " " + family.name + " experts " + show(experts) + " top_k " + show(top_k) +
                                       " tokens " + show(tokens));
            });
        }
      }
}

TEST("route: equal logits take the lowest experts, each 1/E") {
  for (const int experts : {1, 4, 60, 1024}) {
    const int k = std::min(experts, 4);
    std::vector<int32_t> ids(static_cast<size_t>(k));
    std::iota(ids.begin(), ids.end(), 0);
    for (const float value : {0.f, -3.5f, 1e30f, -kInf, kInf, NAN})
      expect_routing({.experts = experts, .top_k = k}, std::vector<float>(static_cast<size_t>(experts), value), ids,
                     std::vector<float>(ids.size(), 1.f / static_cast<float>(experts)));
  }
}

TEST("route: partial ties keep index order behind a larger logit") {
  const float z = 1 + 2 * std::exp(-1.f) + std::exp(-2.f);
  expect_routing({.experts = 4, .top_k = 3}, {-1.f, 0.f, -2.f, -1.f}, {1, 0, 3},
                 {1 / z, std::exp(-1.f) / z, std::exp(-1.f) / z});
}

TEST("route: NaN and -inf are the least, +inf the greatest; a masked expert weighs 0") {
  expect_routing({.experts = 4, .top_k = 4}, {NAN, 1.f, -kInf, 1.f}, {1, 3, 0, 2}, {0.5f, 0.5f, 0.f, 0.f});
  expect_routing({.experts = 4, .top_k = 3}, {0.f, kInf, 100.f, kInf}, {1, 3, 2}, {0.5f, 0.5f, 0.f});
  expect_routing({.experts = 3, .top_k = 3, .score = Score::kSigmoid}, {-kInf, kInf, 0.f}, {1, 2, 0}, {1.f, 0.5f, 0.f});
  expect_routing({.experts = 3, .top_k = 2, .score = Score::kIdentity, .weigh = Weigh::kSoftmaxChosen},
                 {NAN, -kInf, 5.f}, {2, 0}, {1.f, 0.f});
}

TEST("route: probabilities that underflow do not reorder") {
  expect_routing({.experts = 5, .top_k = 4}, {-300.f, 0.f, -200.f, -400.f, -250.f}, {1, 2, 4, 0}, {1.f, 0.f, 0.f, 0.f});
  expect_routing({.experts = 3, .top_k = 3, .score = Score::kSigmoid}, {-300.f, -200.f, 200.f}, {2, 1, 0},
                 {1.f, 0.f, 0.f});
}

TEST("route: keys that differ in their last bits only are told apart, wherever they stand") {
  Random random(43);
  for (const int experts : {8, 9, 16, 60, 64, 128, 200, 256})
    for (int round = 0; round < 12; ++round) {
      const int64_t tokens = random.integer(1, 9), top_k = round % 2 ? 8 : random.integer(1, 8);
      const RouterDesc d{.experts = experts, .top_k = static_cast<int>(top_k), .score = Score::kIdentity};
      std::vector<float> logits;
      std::vector<int32_t> want;
      for (int64_t t = 0; t < tokens; ++t) {
        // A few above, a bunch within some hundred units in the last place (of one residue modulo 8, or any), the rest
        // below.
        std::vector<int32_t> order(static_cast<size_t>(experts));
        std::iota(order.begin(), order.end(), 0);
        for (size_t i = order.size(); i > 1; --i)
          std::swap(order[i - 1], order[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i) - 1))]);
        if (random.integer(0, 1))
          std::stable_partition(order.begin(), order.end(), [](int32_t e) { return e % 8 == 3; });
        std::vector<float> l(order.size());
        const int64_t bunch = random.integer(2, 12), above = random.integer(0, top_k), spread = random.integer(1, 400);
        const float middle = random.integer(0, 1) ? 1.5f : -1.5f;
        for (size_t i = 0; i < order.size(); ++i) {
          const auto at = static_cast<int64_t>(i);
          float v = -20.f - static_cast<float>(i);
          if (at < bunch) v = middle * (1.f + static_cast<float>(random.integer(0, spread)) * 0x1p-23f);
          if (at >= bunch && at < bunch + above) v = 5.f + static_cast<float>(i);
          l[static_cast<size_t>(order[i])] = v;
        }
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int32_t a, int32_t b) { return l[static_cast<size_t>(a)] > l[static_cast<size_t>(b)]; });
        want.insert(want.end(), order.begin(), order.begin() + top_k);
        logits.insert(logits.end(), l.begin(), l.end());
      }
      std::vector<float> weights;
      for (size_t i = 0; i < want.size(); ++i)
        weights.push_back(
            logits[i / static_cast<size_t>(top_k) * static_cast<size_t>(experts) + static_cast<size_t>(want[i])]);
      expect_routing(d, logits, want, weights);
    }
}

TEST("route: a selection bias changes the choice and not the weights") {
  const std::vector<float> bias{0.f, 0.f, 1.f, 0.f};
  expect_routing({.experts = 4, .top_k = 2, .score = Score::kSigmoid}, {2.f, 0.f, -2.f, 1.f}, {2, 0},
                 {static_cast<float>(reference::sigmoid(-2)), static_cast<float>(reference::sigmoid(2))}, &bias);
}

TEST("route: groups by maximum and by the best two; equal groups keep the lower") {
  // Groups {0,1} {2,3} {4,5}: maxima 5 4 4; sums of two 5 7 6.
  const std::vector<float> l{5.f, 0.f, 4.f, 3.f, 4.f, 2.f};
  expect_routing({.experts = 6, .top_k = 3, .score = Score::kIdentity, .groups = 3, .keep_groups = 2}, l, {0, 2, 3},
                 {5.f, 4.f, 3.f});
  expect_routing({.experts = 6,
                  .top_k = 3,
                  .score = Score::kIdentity,
                  .groups = 3,
                  .keep_groups = 2,
                  .group_value = GroupValue::kTopTwoSum},
                 l, {2, 4, 3}, {4.f, 4.f, 3.f});
  expect_routing({.experts = 3,
                  .top_k = 1,
                  .score = Score::kIdentity,
                  .groups = 3,
                  .keep_groups = 1,
                  .group_value = GroupValue::kTopTwoSum},
                 {1.f, 7.f, 7.f}, {1}, {7.f});
}

TEST("route: a group of masked experts is chosen only when nothing else is left") {
  expect_routing({.experts = 4, .top_k = 2, .groups = 2, .keep_groups = 1}, {-kInf, -kInf, NAN, -5.f}, {3, 2},
                 {1.f, 0.f});
}

TEST("route: normalisation by sum + epsilon, by the clamped sum, and scale") {
  const std::vector<float> l{1.f, 3.f};
  RouterDesc d{.experts = 2,
               .top_k = 2,
               .score = Score::kIdentity,
               .normalize = Normalize::kSumPlusEpsilon,
               .epsilon = 4.f,
               .scale = 2.f};
  expect_routing(d, l, {1, 0}, {0.75f, 0.25f});
  d.normalize = Normalize::kMaxEpsilon;
  d.epsilon = 16.f;
  expect_routing(d, l, {1, 0}, {0.375f, 0.125f});
  d.epsilon = 1.f;
  expect_routing(d, l, {1, 0}, {1.5f, 0.5f});
}

TEST("route: sparsemixer by hand") {
  const float w0 = 1 / (1 + std::exp(1.99f - 2.f));
  expect_routing({.experts = 3, .top_k = 2, .score = Score::kIdentity, .weigh = Weigh::kSparsemixer},
                 {2.f, 1.99f, -1.f}, {0, 1}, {w0, 1.f});
  expect_routing({.experts = 3, .top_k = 2, .score = Score::kIdentity, .weigh = Weigh::kSparsemixer}, {0.f, 0.f, 0.f},
                 {0, 1}, {1 / 3.f, 1 / 2.f});  // 0/0 masks nothing
}

TEST("route: the same bits on every run and for any number of threads") {
  Random random(41);
  for (const int experts : {8, 256}) {
    const RouterDesc d{.experts = experts, .top_k = 8, .normalize = Normalize::kSumPlusEpsilon};
    const std::vector<float> logits = random.normals(static_cast<size_t>(experts) * 777);
    for (const DeviceId device : devices())
      for_each_isa(device, [&](const std::string&) {
        const Routing first = on(device, d, logits);
        CHECK(on(device, d, logits) == first);
        for (const int threads : {1, 2, 3}) {
          Threads scope(threads);
          CHECK(on(device, d, logits) == first);
        }
      });
  }
}

TEST("route refuses bad descriptors and arguments by name") {
  auto stream = Stream::create(DeviceId{-1});
  const auto refused = [&](const char* name, const std::function<void(RouterDesc&, RouteArgs&)>& spoil) {
    float f[64] = {};
    int32_t i[64] = {};
    RouterDesc d{.experts = 8, .top_k = 2};
    RouteArgs a{.logits = f,
                .tokens = 1,
                .expert_ids = i,
                .weights = f + 32,
                .counts = i + 8,
                .offsets = i + 16,
                .order = i + 32,
                .workspace = i + 48};
    spoil(d, a);
    const std::string message = expect_error(ErrorCode::kInvalidArgument, [&] { route(*stream, d, a); });
    if (message.rfind(name, 0) != 0)
      throw Failure("expected a message about " + std::string(name) + ", got: " + message);
  };
  using D = RouterDesc;
  using A = RouteArgs;
  refused("experts", [](D& d, A&) { d.experts = 0; });
  refused("experts", [](D& d, A&) { d.experts = 1025; });
  refused("top_k", [](D& d, A&) { d.top_k = 0; });
  refused("top_k", [](D& d, A&) { d.top_k = 9; });
  refused("top_k", [](D& d, A&) { d.experts = 64, d.top_k = 33; });
  refused("top_k", [](D& d, A&) { d.groups = 4, d.keep_groups = 1, d.top_k = 3; });
  refused("groups", [](D& d, A&) { d.groups = 3; });
  refused("groups", [](D& d, A&) { d.groups = 0; });
  refused("keep_groups", [](D& d, A&) { d.groups = 2, d.keep_groups = 3; });
  refused("score", [](D& d, A&) { d.score = static_cast<Score>(9); });
  refused("weigh", [](D& d, A&) { d.weigh = static_cast<Weigh>(-1); });
  refused("epsilon", [](D& d, A&) { d.epsilon = -1.f; });
  refused("scale", [](D& d, A&) { d.scale = NAN; });
  refused("jitter", [](D& d, A&) { d.weigh = Weigh::kSparsemixer, d.jitter = -1.f; });
  refused("groups", [](D& d, A&) { d.weigh = Weigh::kSparsemixer, d.groups = 2, d.keep_groups = 2; });
  refused("select_bias", [](D& d, A& a) { d.weigh = Weigh::kSparsemixer, a.select_bias = a.logits; });
  refused("tokens", [](D&, A& a) { a.tokens = -1; });
  refused("tokens * top_k", [](D&, A& a) { a.tokens = int64_t{1} << 30; });
  refused("logits", [](D&, A& a) { a.logits = nullptr; });
  refused("expert_ids", [](D&, A& a) { a.expert_ids = nullptr; });
  refused("weights", [](D&, A& a) { a.weights = nullptr; });
  refused("counts", [](D&, A& a) { a.counts = nullptr; });
  refused("offsets", [](D&, A& a) { a.offsets = nullptr; });
  refused("order", [](D&, A& a) { a.order = nullptr; });
  refused("workspace", [](D&, A& a) { a.workspace = nullptr; });
}

TEST("router_logits: every pair of dtypes, with and without bias, at odd sizes") {
  Random random(42);
  const std::pair<DType, DType> types[] = {{DType::kF32, DType::kF32},
                                           {DType::kBF16, DType::kBF16},
                                           {DType::kBF16, DType::kF32},
                                           {DType::kF16, DType::kF16},
                                           {DType::kF16, DType::kF32}};
  for (const auto& [x_type, w_type] : types)
    for (const int experts : {1, 2, 7, 60, 128, 1024})
      for (const int64_t hidden : {1, 17, 100, 515})
        for (const int64_t tokens : {0, 1, 3, 33, 200}) {
          if (experts == 1024 && (tokens > 33 || hidden > 100)) continue;
          const HostArray x = HostArray::rounded(x_type, random.normals(static_cast<size_t>(tokens * hidden)));
          const HostArray w = HostArray::rounded(w_type, random.normals(static_cast<size_t>(experts * hidden),
                                                                        1.f / std::sqrt(static_cast<float>(hidden))));
          const std::vector<float> bias = random.normals(static_cast<size_t>(experts));
          const bool use_bias = tokens % 2 == 1;
          RouterLogitsArgs a{.x = x.data(),
                             .x_dtype = x_type,
                             .weight = w.data(),
                             .weight_dtype = w_type,
                             .bias = use_bias ? bias.data() : nullptr,
                             .tokens = tokens,
                             .hidden = hidden,
                             .experts = experts};
          std::vector<double> want(static_cast<size_t>(tokens * experts));
          router_logits_reference(a, want.data());
          for (const DeviceId device : devices())
            for_each_isa(device, [&](const std::string& where) {
              Bench bench(device);
              a.x = bench.upload(x);
              a.weight = bench.upload(w);
              a.bias = use_bias ? bench.upload(bias) : nullptr;
              a.logits = bench.poisoned<float>(want.size());
              router_logits(*bench.stream, a);
              const std::vector<float> got = bench.read(a.logits, want.size());
              check_close(got, want, 1e-5,
                          where + " router_logits experts " + show(experts) + " hidden " + show(hidden) + " tokens " +
                              show(tokens));
              float* again = bench.poisoned<float>(want.size());
              a.logits = again;
              Threads scope(3);
              router_logits(*bench.stream, a);
              CHECK(bench.read(again, want.size()) == got);
            });
        }
}

TEST("router_logits refuses bad arguments by name") {
  auto stream = Stream::create(DeviceId{-1});
  float memory[64] = {};
  const auto refused = [&](const char* name, const std::function<void(RouterLogitsArgs&)>& spoil) {
    RouterLogitsArgs a{.x = memory, .weight = memory, .tokens = 1, .hidden = 2, .experts = 2, .logits = memory + 32};
    spoil(a);
    const std::string message = expect_error(ErrorCode::kInvalidArgument, [&] { router_logits(*stream, a); });
    if (message.rfind(name, 0) != 0)
      throw Failure("expected a message about " + std::string(name) + ", got: " + message);
  };
  refused("x_dtype", [](RouterLogitsArgs& a) { a.x_dtype = DType::kI32; });
  refused("weight_dtype", [](RouterLogitsArgs& a) { a.weight_dtype = DType::kI32; });
  refused("weight_dtype", [](RouterLogitsArgs& a) { a.weight_dtype = DType::kBF16; });
  refused("tokens", [](RouterLogitsArgs& a) { a.tokens = -1; });
  refused("hidden", [](RouterLogitsArgs& a) { a.hidden = 0; });
  refused("experts", [](RouterLogitsArgs& a) { a.experts = 1025; });
  refused("choice_tokens", [](RouterLogitsArgs& a) { a.choice_tokens = -1; });
  refused("x", [](RouterLogitsArgs& a) { a.x = nullptr; });
  refused("weight", [](RouterLogitsArgs& a) { a.weight = nullptr; });
  refused("logits", [](RouterLogitsArgs& a) { a.logits = nullptr; });
}
