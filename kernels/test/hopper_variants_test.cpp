// Every shape of the Hopper kernel over its odd cases: tails in rows, columns and k, experts with no rows or many,
// pointers and widths that forbid whole-word stores, lanes, and linears one behind the other. What one shape computes
// is checked against float64 in experts_test.cpp; here every other one must give its bits. They need a GPU of compute
// capability 9.0; what of them is arithmetic of indices is hopper_shape_test.cpp's.
#include <algorithm>
#include <array>

#include "data_plane.h"

using namespace nexus;
using namespace nexus::test;

#ifdef NEXUS_HAS_CUDA
namespace {

constexpr DeviceId kGpu{0};
constexpr const char* kMeasured = "wgmma_256x160x64_s4";

struct Odd {
  int64_t k, n;
  std::vector<int32_t> rows;  // by expert
  Epilogue epilogue;
  bool gather = true, scatter = true, bias = false, scale = false;
};

/// One problem on the device, run by name.
struct Linear {
  GroupedLinearDesc desc;
  GroupedLinearArgs args;
  size_t size;
  const void* panels = nullptr;  // the weights again, where they can be
  Bench bench{kGpu};

  Linear(Random& random, DType dtype, const Odd& odd) {
    desc.dtype = dtype, desc.experts = static_cast<int>(odd.rows.size());
    desc.k = odd.k, desc.n = odd.n, desc.epilogue = odd.epilogue, desc.params = {1.5f, 1.702f};
    std::vector<int32_t> expert_of_slot;
    for (int32_t e = 0; e < desc.experts; ++e)
      expert_of_slot.insert(expert_of_slot.end(), static_cast<size_t>(odd.rows[static_cast<size_t>(e)]), e);
    for (size_t i = expert_of_slot.size(); i > 1; --i)
      std::swap(expert_of_slot[i - 1],
                expert_of_slot[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i) - 1))]);
    const Buckets buckets = bucket(desc.experts, expert_of_slot);
    const int64_t slots = buckets.slots(), inputs = odd.gather ? (slots + 1) / 2 : slots;
    const auto rounded = [&](int64_t count, float deviation) {
      return HostArray::rounded(dtype, random.normals(static_cast<size_t>(count), deviation));
    };
    args.input = bench.upload(rounded(inputs * odd.k, 1.f));
    const HostArray weight = rounded(desc.experts * odd.n * odd.k, 1.f / std::sqrt(static_cast<float>(odd.k)));
    args.weight = bench.upload(weight);
    if (fit_panels(weights_of(desc))) panels = bench.upload(laid(weights_of(desc), weight));
    if (odd.bias) args.bias = bench.upload(random.normals(static_cast<size_t>(desc.experts * odd.n)));
    if (odd.scale) args.row_scale = bench.upload(random.normals(static_cast<size_t>(slots)));
    args.offsets = bench.upload(buckets.offsets);
    if (odd.gather || odd.scatter) args.order = bench.upload(buckets.order);
    args.gather = odd.gather, args.scatter = odd.scatter, args.rows_per_input = odd.gather ? 2 : 1;
    args.max_rows = slots;
    size = static_cast<size_t>(slots * (is_gated(odd.epilogue) ? odd.n / 2 : odd.n));
  }
  HostArray run(const std::string& name, const LaneView& lanes = {}, bool in_panels = false) {
    GroupedLinearArgs a = args;
    GroupedLinearDesc d = desc;
    a.choice.variant = name, a.lanes = lanes;
    a.output = bench.poisoned(desc.dtype, size);
    if (in_panels) d.in_panels = true, a.weight = panels;
    grouped_linear(*bench.stream, d, a);
    return bench.read(desc.dtype, a.output, size);
  }
};

/// The names of the wgmma shapes that compute a layer of k by n; skips where they do not run.
std::vector<std::string> shapes(DType dtype = DType::kBF16, int64_t k = 64, int64_t n = 64) {
  require_cuda();
  GroupedLinearDesc d;
  d.dtype = dtype, d.k = k, d.n = n;
  std::vector<std::string> names;
  for (const VariantCandidate& c : grouped_linear_candidates(kGpu, d, 64))
    if (c.name.rfind("wgmma_", 0) == 0) names.push_back(c.name);
  if (names.empty()) throw Skipped("needs a GPU of compute capability 9.0");
  return names;
}

void check_all(Random& random, const Odd& odd) {
  (void)shapes();  // skips before anything is made
  for (const DType t : {DType::kBF16, DType::kF16}) {
    Linear linear(random, t, odd);
    const HostArray want = linear.run(kMeasured);
    const auto check = [&](const std::string& what, const HostArray& got) {
      if (got.bytes != want.bytes)
        throw Failure(what + " has other bits than " + kMeasured + ": " + name_of(t) + " k " + show(odd.k) + " n " +
                      show(odd.n) + " epilogue " + show(odd.epilogue) + " first expert's rows " + show(odd.rows[0]));
    };
    for (const std::string& name : shapes(t, odd.k, odd.n)) {
      check(name, linear.run(name));
      if (linear.panels != nullptr) check(name + " in panels", linear.run(name, {}, true));
    }
  }
}

}  // namespace

TEST_IN_PARTS("wgmma shapes: rows around every tile's end") {
  Random random(81);
  for (const int32_t rows :
       {1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 95, 96, 97, 128, 159, 160, 161, 319, 320, 321, 641, 1281})
    for (const bool gather : {false, true})
      // k of one panel and a part, and of three, the last of which has a stage of its own.
      for (const int64_t k : {72, 192}) {
        if (!part.mine()) continue;
        const bool gated = (rows + k / 8) % 2 == 0;
        check_all(
            random,
            {k, gated ? 272 : 264, {rows, 0, 3}, gated ? Epilogue::kSwiglu : Epilogue::kIdentity, gather, !gather});
      }
}

TEST_IN_PARTS("wgmma shapes: tails in n and k, whole-word stores or not") {
  Random random(82);
  // Behind k a step has nothing, 16, 32 or 48 elements of one panel, or one panel and some of the next.
  for (const int64_t n : {64, 66, 72, 80, 128, 134, 136, 144, 250, 256, 264, 272, 400, 510, 528})
    for (const int64_t k : {8, 64, 72, 128, 264, 832, 1032}) {
      if (!part.mine()) continue;
      if (n % 16 == 0) check_all(random, {k, n, {40, 200, 1}, Epilogue::kSwiglu, true, true, true});
      check_all(random, {k, n, {40, 200, 1}, Epilogue::kIdentity, false, true});
    }
}

TEST_IN_PARTS("wgmma shapes: every epilogue, bias and row scale") {
  Random random(83);
  for (const Epilogue e : {Epilogue::kIdentity, Epilogue::kRelu, Epilogue::kGelu, Epilogue::kSwiglu, Epilogue::kGeglu,
                           Epilogue::kReglu, Epilogue::kClampedSwiglu})
    for (int mask = 0; mask < 16; ++mask)
      for (const int64_t k : {136, 192})
        if (part.mine())
          check_all(random,
                    {k, 272, {170, 20, 0, 77}, e, (mask & 1) != 0, (mask & 2) != 0, (mask & 4) != 0, (mask & 8) != 0});
}

TEST_IN_PARTS(
    "wgmma shapes: blocks that walk many tiles, hot experts among cold ones, none, and no rows at all but one") {
  Random random(84);
  std::vector<int32_t> skewed(70), sparse(130, 0);
  for (size_t e = 0; e < skewed.size(); ++e) skewed[e] = e % 9 == 4 ? 700 : static_cast<int32_t>(random.integer(0, 12));
  sparse[77] = 1;
  for (const bool gather : {false, true}) {
    for (const int64_t k : {200, 256})
      for (const int64_t n : {1040, 1456})  // a column tile of 16 columns behind four, of 176 behind five
        if (part.mine())
          check_all(random, {k, n, skewed, gather ? Epilogue::kSwiglu : Epilogue::kIdentity, gather, true});
    if (part.mine()) check_all(random, {64, 272, sparse, Epilogue::kSwiglu, gather, true});
  }
}

TEST("wgmma shapes: in lanes the plain launch's bits") {
  (void)shapes();
  Random random(85);
  for (const DType t : {DType::kBF16, DType::kF16}) {
    Linear linear(random, t, {192, 528, {30, 400, 0, 5, 170, 9, 64}, Epilogue::kSwiglu});
    const auto set = LaneSet::create(linear.bench.stream, {0, 1, 2, 0, 1, 2, 0}, 3, {1, 2, 1}, true);
    const HostArray want = linear.run(kMeasured);
    for (const std::string& name : shapes(t, 192, 528)) {
      CHECK(linear.run(name, set->view(-1)).bytes == want.bytes);
      CHECK(linear.run(name, set->view(-1), true).bytes == want.bytes);
    }
  }
}

TEST("wgmma shapes: what runs without a table, of both layers of an MLP, by its rows an expert") {
  struct Cell {
    int experts;
    int64_t width, hidden, rows;
    std::string both;
  };
  const std::string few = "wgmma_256x64x64_s5", fewer = "wgmma_256x32x128_s3", plain = "wgmma_256x160x64_s4",
                    pair = "wgmma_256x320x64_s4_pair", narrow = "wgmma_128x64x128_s4",
                    narrow_more = "wgmma_128x96x64_s7", narrow_fewer = "wgmma_128x32x128_s5", few_rest = few + "_rest",
                    plain_rest = plain + "_rest", pair_rest = pair + "_rest",
                    narrow_fewer_rest = narrow_fewer + "_rest", mma = "mma_16x32x128_s6";
  (void)shapes();
  for (const DType t : {DType::kBF16, DType::kF16})
    for (const Cell& c : {Cell{8, 4096, 14336, 4, mma},
                          {32, 2880, 2880, 32, narrow_fewer},
                          {64, 2048, 1024, 64 * 2, narrow_fewer},
                          {64, 2048, 1024, 64 * 2 + 1, fewer},
                          {64, 2048, 1024, 64 * 4, fewer},
                          {64, 2048, 1024, 64 * 4 + 1, narrow},
                          {64, 2048, 1024, 1024, narrow},
                          {64, 2048, 1024, 1025, few},
                          {32, 2048, 1024, 32 * 24, narrow},
                          {32, 2048, 1024, 32 * 24 + 1, few},
                          {16, 2048, 1024, 512, narrow},
                          {16, 2048, 1024, 513, few},
                          {8, 4096, 14336, 8 * 48, narrow},
                          {8, 4096, 14336, 8 * 48 + 1, plain},
                          {64, 2048, 1024, 64 * 48, few},
                          {64, 2048, 1024, 64 * 48 + 1, plain},
                          {64, 2048, 1024, 64 * 160, plain},
                          {64, 2048, 1024, 64 * 160 + 1, pair},
                          // Not by whole panels of 64 elements.
                          {64, 2056, 1032, 64 * 2, few_rest},
                          {64, 2056, 1032, 64 * 8, narrow_fewer_rest},
                          {64, 2056, 1032, 64 * 8 + 1, few_rest},
                          {64, 2056, 1032, 64 * 48, few_rest},
                          {64, 2056, 1032, 64 * 48 + 1, plain_rest},
                          {64, 2056, 1032, 64 * 152, plain_rest},
                          {64, 2056, 1032, 64 * 152 + 1, pair_rest},
                          {64, 2056, 1032, 64 * 4096, pair_rest},
                          {8, 520, 1032, 24, narrow_fewer_rest},
                          {8, 520, 1032, 8 * 48, narrow_fewer_rest},
                          {8, 520, 1032, 8 * 48 + 1, plain_rest},
                          // By whole panels, but with columns behind whole tiles.
                          {32, 2880, 2880, 32 * 48, few},
                          {32, 2880, 2880, 32 * 152, plain_rest},
                          {32, 2880, 2880, 32 * 152 + 1, pair_rest},
                          // Few weights.
                          {8, 512, 1024, 24, narrow_fewer},
                          {8, 512, 1024, 8 * 32, narrow_fewer},
                          {8, 512, 1024, 8 * 32 + 1, narrow_more},
                          {8, 512, 1024, 8 * 160, narrow_more},
                          {16, 1024, 2048, 16 * 48, few},
                          {16, 1024, 2048, 16 * 48 + 1, narrow_more},
                          {16, 1024, 2048, 16 * 72, narrow_more},
                          {16, 1024, 2048, 16 * 72 + 1, plain},
                          {8, 512, 1024, 8 * 160 + 1, pair}}) {
      MlpDesc d;
      d.dtype = t, d.experts = c.experts, d.input = d.output = c.width, d.hidden = c.hidden;
      for (int i = 0; i < 2; ++i) CHECK_EQ(grouped_linear_variant(kGpu, mlp_layer(d, i), c.rows), c.both);
    }
}

TEST("wgmma shapes: none for a gated layer whose gates and ups are no whole sixteens") {
  (void)shapes();
  for (const int64_t n : {264, 272}) {
    GroupedLinearDesc d;
    d.dtype = DType::kBF16, d.k = 512, d.n = n, d.experts = 4, d.epilogue = Epilogue::kSwiglu;
    bool found = false;
    for (const VariantCandidate& c : grouped_linear_candidates(kGpu, d, 400)) found |= c.name.rfind("wgmma_", 0) == 0;
    CHECK_EQ(found, n % 16 == 0);
  }
}

TEST("wgmma shapes: a batch-invariant layer takes the same ones, with wgmma's order at a handful of rows, too") {
  (void)shapes();
  MlpDesc d;
  d.dtype = DType::kBF16, d.experts = 32, d.input = d.output = d.hidden = 2880;
  const VariantChoice invariant{.batch_invariant = true};
  for (int i = 0; i < 2; ++i) {
    CHECK_EQ(grouped_linear_variant(kGpu, mlp_layer(d, i), 8, false, invariant), "wgmma_128x32x128_s5");
    for (const int64_t rows : {64, 2048, 8192, 65536})
      CHECK_EQ(grouped_linear_variant(kGpu, mlp_layer(d, i), rows, false, invariant),
               grouped_linear_variant(kGpu, mlp_layer(d, i), rows));
  }
}

TEST("wgmma shapes: beside a neighbour those that leave it room") {
  (void)shapes();
  MlpDesc d;
  d.dtype = DType::kF16, d.experts = 64, d.input = d.output = 2048, d.hidden = 1024;
  for (int i = 0; i < 2; ++i) {
    for (const int64_t rows : {512, 64 * 100, 64 * 3000})
      CHECK_EQ(grouped_linear_variant(kGpu, mlp_layer(d, i), rows, true), "wgmma_256x96x64_s3");
    CHECK_EQ(grouped_linear_variant(kGpu, mlp_layer(d, i), 64 * 4000, true), "wgmma_256x192x64_s3_pair");
  }
}

TEST("wgmma shapes: MLPs one behind the other wait for what they read") {
  (void)shapes();
  Random random(86);
  for (const auto& [tokens, width, hidden] : {std::array<int64_t, 3>{64, 520, 392}, {700, 520, 392}, {64, 512, 448}}) {
    MlpDesc d{.dtype = DType::kBF16,
              .kind = MlpKind::kGated,
              .activation = Epilogue::kSwiglu,
              .params = {},
              .experts = 9,
              .input = width,
              .hidden = hidden,
              .output = width};
    Bench bench(kGpu);
    const Buckets buckets = random_buckets(random, d.experts, tokens * 2, Spread::kSkewed);
    MlpWeights w;
    for (int i = 0; i < mlp_layers(d.kind); ++i) {
      const GroupedLinearDesc l = mlp_layer(d, i);
      w.weight[static_cast<size_t>(i)] =
          bench.upload(HostArray::rounded(d.dtype, random.normals(static_cast<size_t>(l.experts * l.n * l.k),
                                                                  1.f / std::sqrt(static_cast<float>(l.k)))));
    }
    MlpArgs args;
    args.tokens = tokens, args.top_k = 2;
    args.offsets = bench.upload(buckets.offsets), args.order = bench.upload(buckets.order);
    args.workspace = bench.poisoned<uint8_t>(mlp_workspace_bytes(kGpu, d, tokens * 2));
    const size_t size = static_cast<size_t>(tokens * 2 * d.output);
    std::vector<void*> inputs;
    for (int i = 0; i < 3; ++i)
      inputs.push_back(
          bench.upload(HostArray::rounded(d.dtype, random.normals(static_cast<size_t>(tokens * d.input)))));
    // Twelve without a pause, over three inputs and one workspace: a product that starts too early reads what the one
    // before it has not written yet.
    const auto run = [&](const std::string& name) {
      std::vector<void*> outputs;
      for (size_t i = 0; i < 12; ++i) outputs.push_back(bench.poisoned(d.dtype, size));
      args.choice.variant = name;
      for (size_t i = 0; i < 12; ++i) {
        args.x = inputs[i % 3], args.rows = outputs[i];
        grouped_mlp(*bench.stream, d, w, args);
      }
      std::vector<HostArray> got;
      for (void* const output : outputs) got.push_back(bench.read(d.dtype, output, size));
      return got;
    };
    const std::vector<HostArray> want = run(kMeasured);
    // Those that serve both layers.
    const std::vector<std::string> second = shapes(d.dtype, hidden, width);
    for (const std::string& name : shapes(d.dtype, width, 2 * hidden)) {
      if (std::find(second.begin(), second.end(), name) == second.end()) continue;
      const std::vector<HostArray> got = run(name);
      for (size_t i = 0; i < got.size(); ++i)
        if (got[i].bytes != want[i].bytes) throw Failure(name + ": call " + show(i) + " has other bits");
    }
  }
}

TEST("wgmma shapes: none where rows of the input begin beyond 32 bits' worth of 16 bytes") {
  (void)shapes();
  GroupedLinearDesc d;
  d.dtype = DType::kBF16, d.k = 2048, d.n = 64;
  const auto some = [&](int64_t rows) {
    for (const VariantCandidate& c : grouped_linear_candidates(kGpu, d, rows))
      if (c.name.rfind("wgmma_", 0) == 0) return true;
    return false;
  };
  CHECK(some(int64_t{1} << 24));
  CHECK(!some((int64_t{1} << 24) + 1));
}
#endif
