// Kernel variants: every candidate computes the layer, those of one order of sums give a row the same bits whatever its
// neighbours, and a choice follows its table. On every device and CPU instruction set.
#include "nexus/variants.h"

#include <map>

#include "layer_data.h"

using namespace nexus;
using namespace nexus::test;

namespace {

/// One gated layer, read through `order` and written through it, on one way to run.
struct Linear {
  GroupedLinearDesc desc;
  int64_t tokens;
  Buckets buckets;
  HostArray input, weight;

  Linear(Random& random, DType dtype, int experts, int64_t tokens, int64_t k, int64_t n) : tokens(tokens) {
    desc.dtype = dtype;
    desc.experts = experts;
    desc.k = k;
    desc.n = n;
    desc.epilogue = Epilogue::kSwiglu;
    buckets = random_buckets(random, experts, 2 * tokens, Spread::kSkewed);
    input = HostArray::rounded(dtype, random.normals(static_cast<size_t>(tokens * k)));
    weight = HostArray::rounded(
        dtype, random.normals(static_cast<size_t>(experts * n * k), 1.f / std::sqrt(static_cast<float>(k))));
  }
  GroupedLinearArgs args() const {
    GroupedLinearArgs a;
    a.gather = a.scatter = true;
    a.rows_per_input = 2;
    a.max_rows = buckets.slots();
    return a;
  }
  size_t size() const { return static_cast<size_t>(buckets.slots() * desc.n / 2); }
  /// lanes > 0: by one launch that is divided among so many.
  HostArray run(DeviceId device, const VariantChoice& choice, int lanes = 0) const {
    Bench bench(device);
    GroupedLinearArgs a = args();
    std::shared_ptr<LaneSet> set;
    if (lanes > 0) {
      std::vector<int32_t> lane_of(static_cast<size_t>(desc.experts));
      for (int e = 0; e < desc.experts; ++e) lane_of[static_cast<size_t>(e)] = e % lanes;
      set = LaneSet::create(bench.stream, lane_of, lanes, {}, true);
      a.lanes = set->view(-1);
    }
    a.input = bench.upload(input);
    a.weight = bench.upload(weight);
    a.offsets = bench.upload(buckets.offsets);
    a.order = bench.upload(buckets.order);
    a.output = bench.poisoned(desc.dtype, size());
    a.choice = choice;
    grouped_linear(*bench.stream, desc, a);
    return bench.read(desc.dtype, a.output, size());
  }
  std::vector<double> oracle() const {
    std::vector<double> want(size());
    GroupedLinearArgs a = args();
    a.input = input.data();
    a.weight = weight.data();
    a.offsets = buckets.offsets.data();
    a.order = buckets.order.data();
    grouped_linear_reference(desc, a, want.data());
    return want;
  }
  /// Only the slots of these tokens, renumbered.
  Linear only(int64_t first, int64_t count) const {
    Linear few = *this;
    few.tokens = count;
    const size_t row = static_cast<size_t>(desc.k) * size_of(desc.dtype);
    few.input.bytes.assign(input.bytes.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(first) * row),
                           input.bytes.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(first + count) * row));
    std::vector<int32_t> expert(static_cast<size_t>(2 * count));
    for (int e = 0; e < desc.experts; ++e)
      for (int32_t r = buckets.offsets[static_cast<size_t>(e)]; r < buckets.offsets[static_cast<size_t>(e) + 1]; ++r) {
        const int64_t slot = buckets.order[static_cast<size_t>(r)] - 2 * first;
        if (slot >= 0 && slot < 2 * count) expert[static_cast<size_t>(slot)] = e;
      }
    few.buckets = bucket(desc.experts, expert);
    return few;
  }
};

void for_each_way(const std::function<void(DeviceId, const std::string&)>& body) {
  for (const DeviceId device : devices()) for_each_isa(device, [&](const std::string& where) { body(device, where); });
}

/// The first byte in which they differ, or -1; `from`: where the second's begin in the first.
std::ptrdiff_t differ(const HostArray& a, const HostArray& b, size_t from = 0) {
  for (size_t i = 0; i < b.bytes.size(); ++i)
    if (a.bytes[from + i] != b.bytes[i]) return static_cast<std::ptrdiff_t>(i);
  return -1;
}

/// Every candidate gives the bits of the first of its order; `lanes`: in lanes, too.
void check_orders(const Linear& linear, DeviceId device, const std::string& where, int lanes = 0) {
  std::map<std::string, std::pair<std::string, HostArray>> first;
  for (const VariantCandidate& c : grouped_linear_candidates(device, linear.desc, 2 * linear.tokens)) {
    if (c.order.empty()) continue;
    VariantChoice choice;
    choice.variant = c.name;
    HostArray out = linear.run(device, choice);
    if (lanes > 0 && differ(linear.run(device, choice, lanes), out) >= 0)
      throw Failure(where + ": " + c.name + " in lanes differs from itself without");
    const auto found = first.find(c.order);
    if (found == first.end()) {
      first.emplace(c.order, std::pair{c.name, std::move(out)});
    } else if (const auto at = differ(found->second.second, out); at >= 0) {
      throw Failure(where + ": " + c.name + " and " + found->second.first + ", both of order " + c.order +
                    ", differ at byte " + show(at));
    }
  }
}

VariantTable::Choice entry(const GroupedLinearDesc& desc, int64_t rows, std::vector<std::string> names) {
  return {variant_key(desc), rows, std::move(names)};
}

}  // namespace

TEST_IN_PARTS("variants: every candidate computes the layer, at few rows and many, one of them the heuristic's") {
  Random random(70);
  for (const DType t : kFloatTypes)
    for (const int64_t tokens : {1, 9, 150})
      for (const auto& [k, n] : {std::pair<int64_t, int64_t>{64, 96}, {72, 264}, {33, 34}}) {
        if (!part.mine()) continue;
        const Linear linear(random, t, 3, tokens, k, n);
        const auto want = linear.oracle();
        for_each_way([&](DeviceId device, const std::string& where) {
          int heuristics = 0, invariants = 0;
          for (const VariantCandidate& c : grouped_linear_candidates(device, linear.desc, 2 * tokens)) {
            VariantChoice choice;
            choice.variant = c.name;
            CHECK_EQ(grouped_linear_variant(device, linear.desc, 2 * tokens, false, choice), c.name);
            check_close(linear.run(device, choice), want, tolerance(t), where + " " + c.name);
            heuristics += c.heuristic;
            invariants += c.invariant;
            if (c.heuristic) CHECK_EQ(grouped_linear_variant(device, linear.desc, 2 * tokens), c.name);
          }
          CHECK_EQ(heuristics, 1);
          CHECK_EQ(invariants, 1);
        });
      }
}

TEST_IN_PARTS("variants: those of one order of sums give the same bits") {
  Random random(71);
  for (const DType t : kFloatTypes)
    for (const int64_t tokens : {5, 40, 170}) {
      if (!part.mine()) continue;
      const Linear linear(random, t, 3, tokens, 328, 264);
      for_each_way([&](DeviceId device, const std::string& where) { check_orders(linear, device, where); });
    }
}

TEST_IN_PARTS("variants: blocks that walk many tiles, in lanes or not, give the bits of blocks that have one") {
  require_cuda();
  Random random(75);
  for (const DType t : {DType::kBF16, DType::kF16})
    // The last tile of n with 8 columns, more than half of them, and a number between.
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{392, 520}, {200, 440}, {64, 376}})
      if (part.mine())
        check_orders(Linear(random, t, 48, 4300, k, n), DeviceId{0}, std::string("cuda ") + name_of(t), 3);
}

TEST("variants: mma16 and wgmma64 side by side (their bits may differ, what they compute may not)") {
  require_cuda();
  Random random(72);
  const Linear linear(random, DType::kBF16, 3, 170, 2048, 264);
  std::map<std::string, HostArray> by;
  for (const VariantCandidate& c : grouped_linear_candidates(DeviceId{0}, linear.desc, 340)) {
    VariantChoice choice;
    choice.variant = c.name;
    by.emplace(c.order, linear.run(DeviceId{0}, choice));
  }
  if (by.count("wgmma64") == 0) throw Skipped("this device has no wgmma");
  const HostArray &mma = by.at("mma16"), &wgmma = by.at("wgmma64");
  size_t other = 0;
  for (size_t i = 0; i < mma.size(); ++i) other += mma[i] != wgmma[i];
  std::printf("    mma16 and wgmma64: %zu of %zu outputs differ\n", other, mma.size());
  check_close(mma, wgmma, tolerance(DType::kBF16), "mma16 against wgmma64");
}

TEST_IN_PARTS("variants: batch-invariant rows have the same bits alone and among others") {
  Random random(73);
  for (const DType t : kFloatTypes)
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{328, 136}, {1344, 40}, {40, 66}, {33, 10}}) {
      if (!part.mine()) continue;
      const Linear linear(random, t, 3, 400, k, n);
      const VariantChoice choice{.batch_invariant = true};
      for_each_way([&](DeviceId device, const std::string& where) {
        const HostArray all = linear.run(device, choice);
        const size_t token = static_cast<size_t>(n) * size_of(t);  // two rows of n / 2
        for (const auto& [first, count] :
             {std::pair<int64_t, int64_t>{0, 1}, {7, 1}, {399, 1}, {3, 2}, {11, 9}, {60, 64}, {0, 200}}) {
          const HostArray few = linear.only(first, count).run(device, choice);
          if (const auto at = differ(all, few, static_cast<size_t>(first) * token); at >= 0)
            throw Failure(where + " " + name_of(t) + " k " + show(k) + ": tokens from " + show(first) + ", " +
                          show(count) + " of them, differ from the batch of 400 at byte " + show(at));
        }
      });
    }
}

TEST_IN_PARTS("variants: batch-invariant router logits have the same bits alone and among others") {
  Random random(74);
  constexpr int64_t kTokens = 300, kHidden = 1336;
  constexpr int kExperts = 40;
  for (const DType t : kFloatTypes)
    for (const DType wt : {DType::kF32, t}) {
      if (!part.mine()) continue;
      const HostArray x = HostArray::rounded(t, random.normals(kTokens * kHidden));
      const HostArray w = HostArray::rounded(wt, random.normals(kExperts * kHidden, 0.05f));
      for_each_way([&](DeviceId device, const std::string& where) {
        const auto run = [&](int64_t first, int64_t count) {
          Bench bench(device);
          const size_t row = kHidden * size_of(t);
          RouterLogitsArgs a;
          a.x = bench.upload(x.bytes.data() + static_cast<size_t>(first) * row, static_cast<size_t>(count) * row);
          a.x_dtype = t;
          a.weight = bench.upload(w);
          a.weight_dtype = wt;
          a.tokens = count;
          a.hidden = kHidden;
          a.experts = kExperts;
          a.logits = bench.poisoned<float>(static_cast<size_t>(count) * kExperts);
          a.batch_invariant = true;
          router_logits(*bench.stream, a);
          return bench.read(a.logits, static_cast<size_t>(count) * kExperts);
        };
        const auto all = run(0, kTokens);
        for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1}, {299, 1}, {5, 7}, {9, 9}, {100, 130}}) {
          const auto few = run(first, count);
          CHECK_EQ(std::memcmp(few.data(), all.data() + first * kExperts, few.size() * sizeof(float)), 0);
        }
      });
    }
}

TEST("variants: a table's first candidate runs, names that a device lacks are passed over, other rows are untouched") {
  for_each_way([&](DeviceId device, const std::string&) {
    GroupedLinearDesc d;
    d.experts = 4;
    d.k = d.n = 256;
    const auto all = grouped_linear_candidates(device, d, 64);
    CHECK(all.size() > 1);
    const std::string other = all[0].heuristic ? all[1].name : all[0].name;
    const VariantTable table({entry(d, 64, {"of another device", other})}, {});
    const VariantChoice choice{.table = &table};
    CHECK_EQ(grouped_linear_variant(device, d, 64, false, choice), other);
    CHECK_EQ(grouped_linear_variant(device, d, 65, false, choice), grouped_linear_variant(device, d, 65));
    d.epilogue = Epilogue::kSwiglu;  // gated: another key
    CHECK_EQ(grouped_linear_variant(device, d, 64, false, choice), grouped_linear_variant(device, d, 64));
  });
}

TEST("variants: batch-invariant keeps to one order for all rows, also with a table; the table may name the order") {
  for_each_way([&](DeviceId device, const std::string&) {
    for (const DType t : kFloatTypes) {
      GroupedLinearDesc d;
      d.dtype = t;
      d.experts = 4;
      d.k = d.n = 256;
      std::map<std::string, std::string> order_of;
      std::vector<VariantTable::Choice> choices;
      for (int64_t rows = 1; rows <= 32768; rows *= 2) {
        const auto all = grouped_linear_candidates(device, d, rows);
        std::vector<std::string> names;
        for (const VariantCandidate& c : all) {
          order_of[c.name] = c.order;
          if (!c.heuristic) names.push_back(c.name);
        }
        if (!names.empty()) choices.push_back(entry(d, rows, names));
      }
      const VariantTable table(choices, {});
      for (const VariantTable* with : {static_cast<const VariantTable*>(nullptr), &table}) {
        const VariantChoice choice{.table = with, .batch_invariant = true};
        std::string order;
        for (int64_t rows = 1; rows <= 32768; rows *= 2) {
          const std::string name = grouped_linear_variant(device, d, rows, false, choice);
          CHECK(order_of.count(name) == 1);
          if (order.empty()) order = order_of[name];
          CHECK(!order.empty());
          CHECK_EQ(order_of[name], order);
        }
      }
      if (device.is_cpu()) {
        for (const char* order : {"dot", "panel"}) {
          const VariantTable one({}, {{variant_key(d), order}});
          const VariantChoice choice{.table = &one, .batch_invariant = true};
          CHECK_EQ(order_of[grouped_linear_variant(device, d, 7, false, choice)], order);
          CHECK_EQ(order_of[grouped_linear_variant(device, d, 7000, false, choice)], order);
        }
      }
    }
  });
}

TEST("variants: what is wrong with a table or a name is refused") {
  GroupedLinearDesc d;
  d.k = d.n = 64;
  const auto refused = [](auto choices, auto orders) {
    return expect_error(ErrorCode::kInvalidArgument, [&] { VariantTable table(choices, orders); });
  };
  using Choices = std::vector<VariantTable::Choice>;
  using Orders = std::vector<VariantTable::Order>;
  CHECK(refused(Choices{entry(d, 0, {"a"})}, Orders{}).rfind("rows", 0) == 0);
  CHECK(refused(Choices{entry(d, 8, {})}, Orders{}).rfind("variants", 0) == 0);
  CHECK(refused(Choices{entry(d, 8, {""})}, Orders{}).rfind("variants", 0) == 0);
  CHECK(refused(Choices{entry(d, 8, {"a"}), entry(d, 8, {"b"})}, Orders{}).rfind("rows", 0) == 0);
  CHECK(refused(Choices{}, Orders{{variant_key(d), ""}}).rfind("order", 0) == 0);
  CHECK(refused(Choices{}, Orders{{variant_key(d), "a"}, {variant_key(d), "b"}}).rfind("order", 0) == 0);
  for (const DeviceId device : devices()) {
    VariantChoice choice;
    choice.variant = "no such variant";
    const auto message =
        expect_error(ErrorCode::kInvalidArgument, [&] { grouped_linear_variant(device, d, 8, false, choice); });
    CHECK(message.find("'no such variant'") != std::string::npos);
    expect_error(ErrorCode::kInvalidArgument, [&] { grouped_linear_candidates(device, d, 0); });
  }
}

TEST("variants: a layer keeps the table that was in force when it was made") {
  for (const DeviceId device : devices()) {
    Random random(75);
    const LayerDesc d = basic(DType::kF32, MlpKind::kGated, Epilogue::kSwiglu);
    const HostWeights host = random_weights(random, d, {});
    Bench bench(device);
    const GroupedLinearDesc first = mlp_layer(d.experts, 0), second = mlp_layer(d.experts, 1);
    const Batch batch(random, bench, d, 16, false);
    const auto step = [&](Layer& layer) {
      StepMemory memory(bench, d, batch);
      layer.enqueue(bench.stream, memory.args());
      return memory.read().out;
    };
    struct Restore {
      DeviceId device;
      ~Restore() { set_variant_table(device_class(device), nullptr); }
    } restore{device};
    const auto plain = Layer::create(d, upload(bench.stream, host), device);
    const HostArray before = step(*plain);
    CHECK(plain->choice().table == nullptr);

    std::vector<VariantTable::Choice> choices;
    for (const GroupedLinearDesc& linear : {first, second}) {
      std::vector<std::string> names;
      for (const auto& c : grouped_linear_candidates(device, linear, 32))
        if (!c.heuristic) names.push_back(c.name);
      CHECK(!names.empty());
      choices.push_back(entry(linear, 32, names));
    }
    set_variant_table(device_class(device),
                      std::make_shared<const VariantTable>(choices, std::vector<VariantTable::Order>{}));
    const auto tuned = Layer::create(d, upload(bench.stream, host), device);
    CHECK_EQ(differ(step(*plain), before), -1);
    CHECK(tuned->choice().table != nullptr);
    CHECK_EQ(grouped_linear_variant(device, first, 32, false, tuned->choice()), choices[0].variants[0]);
    const HostArray with = step(*tuned);
    check_close(with, before, 1e-5, "a tuned layer");
    set_variant_table(device_class(device), nullptr);
    CHECK_EQ(differ(step(*tuned), with), -1);
    CHECK_EQ(grouped_linear_variant(device, first, 32, false, tuned->choice()), choices[0].variants[0]);
  }
}
