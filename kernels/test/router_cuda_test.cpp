// The router's ways on CUDA (one block, one cluster, a grid), each against the others bit for bit and its buckets
// against a plain sort; with a step's block and a ring; logits with k split with and without clusters. What holds on
// every device is in router_test.cpp.
#include <bit>

#include "data_plane.h"
#include "nexus/router.h"

#ifdef NEXUS_HAS_CUDA
#include "data/cuda/route_path.h"

using namespace nexus;
using namespace nexus::test;

namespace {

using cuda::RoutePath;

struct Way {
  ~Way() {
    cuda::set_route_path(RoutePath::kAuto);
    cuda::set_route_quads(true);
  }
  explicit Way(RoutePath path, bool quads = true) {
    cuda::set_route_path(path);
    cuda::set_route_quads(quads);
  }
};

/// The step's block on the device.
const StepBlock* begin(Bench& bench, const StepBlock& block) {
  auto* const current = bench.poisoned<StepBlock>(1);
  begin_step(*bench.stream, block, current);
  return current;
}

struct Result {
  std::vector<int32_t> ids, counts, offsets, order;
  std::vector<uint32_t> weights;  // as bits
  std::vector<uint64_t> ring;
  bool operator==(const Result&) const = default;
};

/// Routes `tokens` tokens in a launch for `bound`; with fewer tokens than that, by a step's block. A ring of two slots.
Result run(Bench& bench, const RouterDesc& d, const std::vector<float>& logits, const std::vector<float>* bias,
           int64_t bound, bool few_weights = false) {
  const size_t experts = static_cast<size_t>(d.experts), slots = static_cast<size_t>(bound * d.top_k);
  const int64_t tokens = static_cast<int64_t>(logits.size() / experts);
  RouteArgs a;
  a.logits = bench.upload(logits);
  a.select_bias = bias ? bench.upload(*bias) : nullptr;
  a.tokens = bound;
  a.few_weights = few_weights;
  a.expert_ids = bench.poisoned<int32_t>(slots);
  a.weights = bench.poisoned<float>(slots);
  a.counts = bench.poisoned<int32_t>(experts);
  a.offsets = bench.poisoned<int32_t>(experts + 1);
  a.order = bench.poisoned<int32_t>(slots);
  const size_t workspace = route_workspace_bytes(bench.device, d, bound);
  auto* const scratch = bench.poisoned<uint8_t>(workspace);
  a.workspace = scratch;
  if (tokens < bound) {
    StepBlock block;
    block.logits = a.logits;
    block.tokens = static_cast<int32_t>(tokens);
    a.step = begin(bench, block);
    a.logits = nullptr;
  }
  const size_t stride = experts + 2;
  a.ring.slots = bench.poisoned<uint64_t>(2 * stride);
  a.ring.counter = bench.poisoned<uint64_t>(1);
  const uint64_t step = 7;
  auto staging = HostBuffer::allocate(bench.device, sizeof(step));
  std::memcpy(staging->data(), &step, sizeof(step));
  bench.stream->copy(a.ring.counter, staging->data(), sizeof(step));
  a.ring.capacity = 2;
  a.ring.stride = static_cast<int32_t>(stride);
  route(*bench.stream, d, a);
  bench.read(scratch, workspace);
  CHECK_EQ(bench.read(a.ring.counter, 1)[0], uint64_t{8});
  const std::vector<float> weights = bench.read(a.weights, slots);
  std::vector<uint32_t> bits(slots);
  if (slots > 0) std::memcpy(bits.data(), weights.data(), slots * 4);
  return {bench.read(a.expert_ids, slots),
          bench.read(a.counts, experts),
          bench.read(a.offsets, experts + 1),
          bench.read(a.order, slots),
          bits,
          bench.read(a.ring.slots, 2 * stride)};
}

/// The buckets of the tokens that there are, the ring's slot, and nothing behind them.
void check(const RouterDesc& d, const Result& r, int64_t tokens, const std::string& where) {
  const size_t slots = static_cast<size_t>(tokens * d.top_k), experts = static_cast<size_t>(d.experts);
  const Buckets want = bucket(d.experts, {r.ids.begin(), r.ids.begin() + static_cast<int64_t>(slots)});
  const auto fail = [&](const char* what) { throw Failure(where + ": " + what); };
  if (r.offsets != want.offsets) fail("offsets");
  if (!std::equal(want.order.begin(), want.order.end(), r.order.begin())) fail("order");
  for (size_t i = slots; i < r.order.size(); ++i)
    if (r.order[i] != -1 || r.ids[i] != -1 || r.weights[i] != 0xffffffffu) fail("wrote past the last token");
  const uint64_t* const slot = r.ring.data() + (experts + 2);  // of step 7
  if (slot[0] != ring_word(7, 0) || slot[1] != ring_word(7, static_cast<uint32_t>(tokens))) fail("ring");
  for (size_t e = 0; e < experts; ++e) {
    if (r.counts[e] != want.offsets[e + 1] - want.offsets[e]) fail("counts");
    if (slot[2 + e] != ring_word(7, static_cast<uint32_t>(r.counts[e]))) fail("ring's counts");
  }
}

struct Kind {
  const char* name;
  bool bias;
  RouterDesc desc;
};
std::vector<Kind> kinds(int experts) {
  std::vector<Kind> list;
  list.push_back({"softmax, renormalised", false, {.normalize = Normalize::kSumPlusEpsilon}});
  list.push_back(
      {"sigmoid + bias",
       true,
       {.score = Score::kSigmoid, .normalize = Normalize::kSumPlusEpsilon, .epsilon = 1e-20f, .scale = 2.5f}});
  list.push_back({"softmax of the chosen", false, {.score = Score::kIdentity, .weigh = Weigh::kSoftmaxChosen}});
  if (experts % 8 == 0 && experts >= 16)
    list.push_back({"groups", false, {.groups = 8, .keep_groups = 4, .group_value = GroupValue::kTopTwoSum}});
  list.push_back({"sparsemixer", false, {.score = Score::kIdentity, .weigh = Weigh::kSparsemixer}});
  return list;
}

/// Normal values; with everything that is special among them; or with ties; or all tokens to one expert; or with near
/// ties, which differ in their last bits; or far apart; or of half precision; or close together, far from zero.
std::vector<float> some_logits(Random& random, int64_t tokens, int experts) {
  std::vector<float> l = random.normals(static_cast<size_t>(tokens * experts), 2.f);
  const int64_t way = random.integer(0, 7);
  for (size_t i = 0; i < l.size(); ++i) {
    const float special[] = {NAN, INFINITY, -INFINITY, 0.f, -0.f};
    if (way == 1 && random.integer(0, 20) == 0) l[i] = special[random.integer(0, 4)];
    if (way == 2) l[i] = std::round(l[i]);
    if (way == 3) l[i] = static_cast<int>(i) % experts == experts - 1 ? 9.f : 0.f;
    if (way == 4) l[i] = std::bit_cast<float>(0x3fc00000u + static_cast<uint32_t>(random.integer(0, 300)));
    if (way == 5) l[i] *= 1000.f;
    if (way == 6) l[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(l[i]) & 0xffff0000u);
    if (way == 7) l[i] = l[i] * 1e-5f - 20.f;
  }
  return l;
}

}  // namespace

TEST_IN_PARTS(
    "route on CUDA: a block, a cluster and a grid give the same bits, for any descriptor and number of tokens") {
  require_cuda();
  Random random(60);
  for (const int experts : {1, 3, 8, 60, 64, 128, 160, 256, 257, 512, 1024})
    for (const Kind& kind : kinds(experts))
      for (const int top_k : {1, 2, 6, 8, 16}) {
        RouterDesc d = kind.desc;
        d.experts = experts;
        d.top_k = top_k;
        if (top_k > d.keep_groups * experts / d.groups) continue;
        for (const int64_t tokens : {0, 1, 2, 7, 33, 64, 128, 129, 500, 513, 1000, 4097}) {
          if ((tokens > 600 && top_k != 8) || (tokens > 1000 && experts > 257)) continue;
          if (!part.mine() || random.integer(0, 3) != 0) continue;  // other ones in every run
          const std::vector<float> logits = some_logits(random, tokens, experts);
          const std::vector<float> values = random.normals(static_cast<size_t>(experts), 0.1f);
          const std::vector<float>* bias = kind.bias ? &values : nullptr;
          for (const int64_t bound : {tokens, tokens + random.integer(1, tokens + 9)}) {
            if (bound > tokens && tokens > 600) continue;
            for_each_isa(DeviceId{0}, [&](const std::string& where) {
              const auto result = [&](RoutePath path, bool quads = true, bool few_weights = false) {
                Way way(path, quads);
                Bench bench(DeviceId{0});
                return run(bench, d, logits, bias, bound, few_weights);
              };
              const std::string what = where + " " + kind.name + " experts " + show(experts) + " top_k " + show(top_k) +
                                       " tokens " + show(tokens) + " of " + show(bound);
              const Result first = result(RoutePath::kAuto);
              check(d, first, tokens, what);
              if (!(result(RoutePath::kAuto, false) == first))
                throw Failure(what + ": four tokens a warp differ from one");
              if (!(result(RoutePath::kCluster, true, true) == first))
                throw Failure(what + ": a cluster of smaller blocks differs");
              for (const RoutePath path : {RoutePath::kBlock, RoutePath::kCluster, RoutePath::kGrid})
                if (!(result(path) == first)) throw Failure(what + ": way " + show(path) + " differs");
            });
          }
        }
      }
}

TEST_IN_PARTS("route on CUDA: chunks of several passes, and a stream that shares its SMs") {
  require_cuda();
  Random random(61);
  const std::tuple<int, int, int64_t, int64_t> sizes[] = {
      {8, 2, 16385, 16385},   {128, 8, 16384, 16384},  {64, 8, 20001, 32640}, {256, 30, 32000, 32640},
      {128, 8, 40000, 50000}, {60, 4, 131072, 131072}, {300, 2, 70000, 70001}};
  for (const auto& [experts, top_k, tokens, bound] : sizes) {
    if (!part.mine()) continue;
    const RouterDesc d{.experts = experts, .top_k = top_k, .normalize = Normalize::kSumPlusEpsilon};
    const std::vector<float> logits = random.normals(static_cast<size_t>(tokens * experts));
    Bench bench(DeviceId{0});
    check(d, run(bench, d, logits, nullptr, bound), tokens, "tokens " + show(tokens));
  }
  const RouterDesc d{.experts = 128, .top_k = 8};
  const std::vector<float> logits = random.normals(500 * 128);
  Bench own(DeviceId{0}), shares(DeviceId{0});
  shares.stream = Stream::create(DeviceId{0}, 0, {.share_sm = true});
  CHECK(run(own, d, logits, nullptr, 500) == run(shares, d, logits, nullptr, 500));
}

TEST_IN_PARTS(
    "router_logits on CUDA: k split over a cluster and walked by one block give the same bits, close to float64") {
  require_cuda();
  Random random(62);
  for (const DType type : {DType::kBF16, DType::kF16})
    for (const int experts : {1, 8, 60, 64, 128, 160, 256})
      for (const int64_t hidden : {8, 72, 520, 2048, 2880})
        for (const int64_t tokens : {129, 200, 512, 513, 1000}) {
          if ((hidden > 600 && tokens > 513) || !part.mine()) continue;
          if (random.integer(0, 7) != 0) continue;  // other ones in every run: the reference is slow
          const int64_t bound = tokens + (tokens % 2 == 0 ? 0 : 55);
          const HostArray x = HostArray::rounded(type, random.normals(static_cast<size_t>(tokens * hidden)));
          const HostArray w = HostArray::rounded(
              type, random.normals(static_cast<size_t>(experts * hidden), 1.f / std::sqrt(static_cast<float>(hidden))));
          const std::vector<float> bias = random.normals(static_cast<size_t>(experts));
          const bool use_bias = experts % 3 != 0;
          RouterLogitsArgs a{.x = x.data(),
                             .x_dtype = type,
                             .weight = w.data(),
                             .weight_dtype = type,
                             .bias = use_bias ? bias.data() : nullptr,
                             .tokens = tokens,
                             .hidden = hidden,
                             .experts = experts,
                             .choice_tokens = tokens};
          std::vector<double> want(static_cast<size_t>(tokens * experts));
          router_logits_reference(a, want.data());
          const auto logits = [&](bool share_sm) {
            Bench bench(DeviceId{0});
            bench.stream = Stream::create(DeviceId{0}, 0, {.share_sm = share_sm});
            const size_t room = static_cast<size_t>(bound * experts);
            RouterLogitsArgs on = a;
            on.x = bench.upload(x);
            on.weight = bench.upload(w);
            on.bias = use_bias ? bench.upload(bias) : nullptr;
            on.logits = bench.poisoned<float>(room);
            on.tokens = bound;
            if (tokens < bound) {
              StepBlock block;
              block.x = on.x;
              block.tokens = static_cast<int32_t>(tokens);
              on.step = begin(bench, block);
              on.x = nullptr;
            }
            router_logits(*bench.stream, on);
            return bench.read(static_cast<const void*>(on.logits), room * 4);
          };
          std::vector<uint8_t> first;
          for_each_isa(DeviceId{0}, [&](const std::string& where) {
            const std::string what =
                where + " experts " + show(experts) + " hidden " + show(hidden) + " tokens " + show(tokens);
            const std::vector<uint8_t> plain = logits(false);
            if (first.empty()) {
              first = plain;
              std::vector<float> got(want.size());
              std::memcpy(got.data(), plain.data(), got.size() * 4);
              check_close(got, want, 1e-5, what);
              for (size_t i = got.size() * 4; i < plain.size(); ++i)
                if (plain[i] != 0xFF) throw Failure(what + ": wrote past the last token");
            }
            if (plain != first) throw Failure(what + ": other bits than the first way's");
            if (logits(true) != first) throw Failure(what + ": other bits without a cluster");
          });
        }
}

#endif  // NEXUS_HAS_CUDA
