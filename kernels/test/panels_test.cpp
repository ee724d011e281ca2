// Weights in panels: where an element lies, laying them so and back, and that everything that reads weights gives the
// bits that it gives with weights in rows. What each shape of the Hopper kernel makes of them over its odd cases is in
// hopper_variants_test.cpp.
#include <set>

#include "cuda_path.h"
#include "layer_data.h"

using namespace nexus;
using namespace nexus::test;

namespace {

WeightMatrices matrices(int64_t experts, int64_t n, int64_t k, bool gated, DType dtype = DType::kBF16) {
  return {dtype, experts, n, k, gated};
}
HostArray normal_weights(Random& random, const WeightMatrices& m) {
  return HostArray::rounded(
      m.dtype, random.normals(static_cast<size_t>(m.experts * m.n * m.k), 1.f / std::sqrt(static_cast<float>(m.k))));
}

/// A layer, and the same with its weights in panels.
struct Twins {
  std::shared_ptr<Layer> rows, panels;

  Twins(Random& random, Bench& bench, const LayerDesc& d) {
    HostWeights weights = random_weights(random, d, {.biases = true});
    rows = Layer::create(d, upload(bench.stream, weights), bench.device);
    LayerDesc other = d;
    const auto lay = [](MlpDesc& m, auto& all) {
      for (int i = 0; i < mlp_layers(m.kind); ++i) {
        HostArray& own = all[static_cast<size_t>(i)];
        own = laid(weights_of(mlp_layer(m, i)), own);
      }
      m.in_panels = true;
    };
    lay(other.experts, weights.expert_weight);
    if (d.has_shared) lay(other.shared, weights.shared_weight);
    panels = Layer::create(other, upload(bench.stream, weights), bench.device);
  }
};

}  // namespace

TEST("panels: every element has a place of its own; 64 of a row lie together") {
  for (const bool gated : {false, true})
    for (const int64_t n : {16, 48, 208}) {
      const int64_t k = 192;
      std::set<int64_t> places;
      for (int64_t row = 0; row < n; ++row)
        for (int64_t column = 0; column < k; ++column) {
          const int64_t at = panel_element(row, column, n, gated);
          places.insert(at);
          CHECK_EQ(at, panel_element(row, column - column % 64, n, gated) + column % 64);
          CHECK_EQ(at / (64 * n), column / 64);
        }
      CHECK_EQ(static_cast<int64_t>(places.size()), n * k);
      CHECK_EQ(*places.begin(), int64_t{0});
      CHECK_EQ(*places.rbegin(), n * k - 1);
    }
}

TEST("panels: of a gated layer eight gates and the eight ups that belong to them, in turns") {
  const auto order = [](bool gated) {
    std::vector<int64_t> rows(32);
    for (int64_t row = 0; row < 32; ++row) rows[static_cast<size_t>(panel_row(row, gated))] = row;
    return rows;
  };
  const std::vector<int64_t> gated{0,  2,  4,  6,  8,  10, 12, 14, 1,  3,  5,  7,  9,  11, 13, 15,
                                   16, 18, 20, 22, 24, 26, 28, 30, 17, 19, 21, 23, 25, 27, 29, 31};
  CHECK(order(true) == gated);
  for (int64_t row = 0; row < 32; ++row) CHECK_EQ(order(false)[static_cast<size_t>(row)], row);
}

TEST("panels: what does not fit is refused by name") {
  CHECK(fit_panels(matrices(3, 24, 64, false)));
  CHECK(fit_panels(matrices(3, 32, 64, true)));
  const auto refused = [](const std::string& name, const WeightMatrices& m) {
    CHECK(!fit_panels(m));
    GroupedLinearDesc d;
    d.dtype = m.dtype, d.experts = static_cast<int>(m.experts), d.n = m.n, d.k = m.k, d.in_panels = true;
    if (m.gated) d.epilogue = Epilogue::kSwiglu;
    for (const auto& message :
         {expect_error(ErrorCode::kInvalidArgument, [&] { lay_panels_bytes(m); }),
          expect_error(ErrorCode::kInvalidArgument, [&] { grouped_linear_variant(DeviceId{}, d, 1); })})
      if (message.rfind(name + ": expected", 0) != 0) throw Failure(name + " was not named: " + message);
  };
  refused("n", matrices(3, 20, 64, false));
  refused("n", matrices(3, 24, 64, true));
  refused("k", matrices(3, 32, 72, true));
  refused("dtype", matrices(3, 32, 64, true, DType::kF32));
}

TEST("panels: a layer on the CPU wants rows") {
  LayerDesc d = basic(DType::kBF16, MlpKind::kGated, Epilogue::kSwiglu);
  d.experts.input = d.experts.output = 128, d.experts.hidden = 64;
  Random random(1400);
  const HostWeights weights = random_weights(random, d, {});
  const auto stream = Stream::create(DeviceId{});
  CHECK(Layer::create(d, upload(stream, weights), DeviceId{}) != nullptr);
  d.experts.in_panels = true;
  const auto message =
      expect_error(ErrorCode::kUnsupported, [&] { Layer::create(d, upload(stream, weights), DeviceId{}); });
  CHECK(message.find("expert.in_panels") != std::string::npos);
}

TEST_IN_PARTS(
    "panels: laid where they are, as defined, and back; many experts, or one of more than the scratch memory") {
  require_cuda();
  Random random(1401);
  Bench bench(DeviceId{0});
  for (const DType t : {DType::kBF16, DType::kF16})
    for (const WeightMatrices& m :
         {matrices(1, 16, 64, true, t), matrices(5, 8, 64, false, t), matrices(130, 48, 192, true, t),
          matrices(5, 2056, 4160, false, t), matrices(2, 8208, 4160, true, t)}) {
      if (!part.mine()) continue;
      const HostArray rows = normal_weights(random, m);
      // Poisoned, so that reading checks what is behind it.
      void* const weight = bench.poisoned(t, rows.size());
      bench.stream->copy(weight, bench.upload(rows), rows.bytes.size());
      void* const scratch = bench.poisoned<uint8_t>(lay_panels_bytes(m));
      lay_panels(*bench.stream, m, PanelWay::kFromRows, weight, scratch);
      CHECK(bench.read(t, weight, rows.size()).bytes == laid(m, rows).bytes);
      lay_panels(*bench.stream, m, PanelWay::kToRows, weight, scratch);
      CHECK(bench.read(t, weight, rows.size()).bytes == rows.bytes);
      bench.read(scratch, lay_panels_bytes(m));
    }
}

TEST_IN_PARTS("panels: a linear layer's bytes by every variant, at one row and at many") {
  require_cuda();
  Random random(1402);
  for_each_isa(DeviceId{0}, [&](const std::string& arch) {
    for (const DType t : {DType::kBF16, DType::kF16})
      for (const Epilogue epilogue : {Epilogue::kSwiglu, Epilogue::kIdentity})
        for (const auto& [k, n] : {std::pair<int64_t, int64_t>{64, 64}, {192, 272}, {832, 1040}, {1088, 304}})
          for (const int64_t slots : {1, 3, 40, 700}) {
            if (!part.mine()) continue;
            Bench bench(DeviceId{0});
            GroupedLinearDesc rows;
            rows.dtype = t, rows.experts = 5, rows.k = k, rows.n = n, rows.epilogue = epilogue;
            GroupedLinearDesc panels = rows;
            panels.in_panels = true;
            const Buckets buckets = random_buckets(random, rows.experts, slots, Spread::kSkewed);
            const HostArray weight = normal_weights(random, weights_of(rows)), other = laid(weights_of(rows), weight);
            const HostArray x = HostArray::rounded(t, random.normals(static_cast<size_t>(slots * k)));
            const std::vector<float> bias = random.normals(static_cast<size_t>(rows.experts * n));
            const size_t size = static_cast<size_t>(slots * (is_gated(epilogue) ? n / 2 : n));
            GroupedLinearArgs a;
            a.input = x.data(), a.bias = bias.data(), a.weight = other.data();
            a.offsets = buckets.offsets.data(), a.order = buckets.order.data();
            a.gather = a.scatter = true, a.max_rows = slots;
            std::vector<double> want(size);
            grouped_linear_reference(panels, a, want.data());
            a.input = bench.upload(x), a.bias = bench.upload(bias);
            a.offsets = bench.upload(buckets.offsets), a.order = bench.upload(buckets.order);
            const void *in_rows = bench.upload(weight), *in_panels = bench.upload(other);
            const auto run = [&](const GroupedLinearDesc& d, const std::string& name) {
              a.weight = d.in_panels ? in_panels : in_rows, a.choice.variant = name;
              a.output = bench.poisoned(t, size);
              grouped_linear(*bench.stream, d, a);
              return bench.read(t, a.output, size);
            };
            for (const VariantCandidate& c : grouped_linear_candidates(DeviceId{0}, rows, slots)) {
              const std::string what = arch + ", " + c.name + ", " + name_of(t) + ", k " + show(k) + ", n " + show(n) +
                                       ", " + show(slots) + " rows";
              const HostArray got = run(panels, c.name);
              check_close(got, want, tolerance(t), what);
              if (got.bytes != run(rows, c.name).bytes) throw Failure(what + ": other bits in panels");
            }
          }
  });
}

TEST_IN_PARTS("panels: a layer's bytes by every way that a step is run, eager and recorded") {
  require_cuda();
  Random random(1403);
  Bench bench(DeviceId{0});
  struct Shape {
    int experts, top_k;
    int64_t input, hidden, output;
    Epilogue activation;
  };
  for_each_isa(bench.device, [&](const std::string& arch) {
    for (const DType t : {DType::kBF16, DType::kF16})
      // Rows of few chunks and of many, of 8 KiB, and outputs of no whole items.
      for (const Shape& s : {Shape{7, 2, 128, 192, 128, Epilogue::kSwiglu},
                             {33, 3, 192, 320, 136, Epilogue::kClampedSwiglu},
                             {16, 4, 64, 128, 72, Epilogue::kGelu},
                             {8, 2, 2048, 512, 2048, Epilogue::kSwiglu},
                             {4, 1, 4096, 4096, 520, Epilogue::kSwiglu}}) {
        LayerDesc d = basic(t, is_gated(s.activation) ? MlpKind::kGated : MlpKind::kTwoLayer, s.activation);
        d.router.experts = d.experts.experts = s.experts, d.router.top_k = s.top_k;
        d.experts.input = s.input, d.experts.hidden = s.hidden, d.experts.output = s.output;
        if (s.activation == Epilogue::kClampedSwiglu) d.experts.params = {.limit = 7.f, .alpha = 1.702f};
        if (s.experts == 7) d = with_shared(d, false), d.shared.hidden = 64;
        const Twins twins(random, bench, d);
        for (const int64_t tokens : {1, 2, 5, 8, 61, 300, 1500}) {
          if (!part.mine()) continue;
          const Batch batch(random, bench, d, tokens, false);
          const size_t size = output_size(d, tokens);
          const auto run = [&](Layer& layer, bool replay) {
            StepArgs a;
            a.x = batch.x, a.tokens = tokens, a.out = bench.poisoned(t, size);
            std::shared_ptr<LayerGraph> graph;
            if (replay) graph = layer.capture(bench.stream, token_bucket(tokens), false, nullptr, nullptr);
            replay ? layer.replay(bench.stream, *graph, a) : layer.enqueue(bench.stream, a);
            return bench.read(t, a.out, size).bytes;
          };
          const auto want = run(*twins.rows, false);
          for (const char* const decode : {"chain", "fused"})
            for (const char* const mlp : {"chain", "fused"}) {
              const Path decode_path(set_decode_path, decode), mlp_path(set_mlp_path, mlp);
              for (const bool replay : {false, true})
                if (run(*twins.panels, replay) != want)
                  throw Failure(arch + ", " + name_of(t) + ", " + show(s.experts) + " experts, " + show(tokens) +
                                " tokens: other bits in panels, decode by " + decode + ", experts by " + mlp +
                                (replay ? ", recorded" : ""));
            }
        }
      }
  });
}
