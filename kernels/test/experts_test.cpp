// grouped_linear and grouped_mlp against their float64 oracles: every epilogue, dtype and way of addressing rows, at
// odd sizes, on every device and CPU instruction set; bits that do not depend on threads or repetition; refusals by
// name.
#include "data_plane.h"

using namespace nexus;
using namespace nexus::test;

namespace {

constexpr Epilogue kEpilogues[] = {Epilogue::kIdentity, Epilogue::kRelu,         Epilogue::kGelu,  Epilogue::kGeluTanh,
                                   Epilogue::kSilu,     Epilogue::kSwiglu,       Epilogue::kGeglu, Epilogue::kGegluTanh,
                                   Epilogue::kReglu,    Epilogue::kClampedSwiglu};

struct Shape {
  int experts;
  int64_t tokens;
  int32_t top_k;
  int64_t k, n;
  Spread spread;
};

std::string describe(const GroupedLinearDesc& d, const Shape& s) {
  return std::string(name_of(d.dtype)) + " epilogue " + show(d.epilogue) + " experts " + show(s.experts) + " tokens " +
         show(s.tokens) + " top_k " + show(s.top_k) + " k " + show(s.k) + " n " + show(s.n);
}

/// One random problem on the host, its oracle, and runs of it.
struct Problem {
  GroupedLinearDesc desc;
  Shape shape;
  bool gather, scatter, use_bias, use_scale;
  Buckets buckets;
  HostArray input, weight;
  std::vector<float> bias, scale;
  std::vector<double> want;
  int64_t width;

  Problem(Random& random, DType dtype, Epilogue epilogue, const Shape& s, bool gather, bool scatter, bool use_bias,
          bool use_scale)
      : shape(s), gather(gather), scatter(scatter), use_bias(use_bias), use_scale(use_scale) {
    desc.dtype = dtype;
    desc.experts = s.experts;
    desc.k = s.k;
    desc.n = s.n;
    desc.epilogue = epilogue;
    desc.params = {1.5f, 1.702f};  // a limit that unit-scale data reaches
    const int64_t slots = s.tokens * s.top_k;
    buckets = random_buckets(random, s.experts, slots, s.spread);
    const int64_t input_rows = gather ? s.tokens : slots;
    input = HostArray::rounded(dtype, random.normals(static_cast<size_t>(input_rows * s.k)));
    weight = HostArray::rounded(
        dtype, random.normals(static_cast<size_t>(s.experts * s.n * s.k), 1.f / std::sqrt(static_cast<float>(s.k))));
    bias = random.normals(static_cast<size_t>(s.experts * s.n));
    scale = random.normals(static_cast<size_t>(slots));
    width = is_gated(epilogue) ? s.n / 2 : s.n;
    want.assign(static_cast<size_t>(slots * width), 0.0);
    GroupedLinearArgs host = args();
    host.input = input.data();
    host.weight = weight.data();
    host.bias = use_bias ? bias.data() : nullptr;
    host.row_scale = use_scale ? scale.data() : nullptr;
    host.offsets = buckets.offsets.data();
    host.order = gather || scatter ? buckets.order.data() : nullptr;
    grouped_linear_reference(desc, host, want.data());
  }
  GroupedLinearArgs args() const {
    GroupedLinearArgs a;
    a.gather = gather;
    a.scatter = scatter;
    a.rows_per_input = gather ? shape.top_k : 1;
    a.max_rows = buckets.slots();
    return a;
  }
  HostArray run(Bench& bench, const LaneView& lanes = {}) const {
    GroupedLinearArgs a = args();
    a.lanes = lanes;
    a.input = bench.upload(input);
    a.weight = bench.upload(weight);
    a.bias = use_bias ? bench.upload(bias) : nullptr;
    a.row_scale = use_scale ? bench.upload(scale) : nullptr;
    a.offsets = bench.upload(buckets.offsets);
    a.order = gather || scatter ? bench.upload(buckets.order) : nullptr;
    a.output = bench.poisoned(desc.dtype, want.size());
    grouped_linear(*bench.stream, desc, a);
    return bench.read(desc.dtype, a.output, want.size());
  }
  void check() const {
    for (const DeviceId device : devices())
      for_each_isa(device, [&](const std::string& where) {
        Bench bench(device);
        check_close(run(bench), want, tolerance(desc.dtype), where + " " + describe(desc, shape));
      });
  }
};

}  // namespace

TEST("grouped_linear: every epilogue and dtype, with bias") {
  Random random(10);
  for (const DType t : kFloatTypes)
    for (const Epilogue e : kEpilogues)
      Problem(random, t, e, {5, 37, 2, 33, 34, Spread::kSkewed}, true, true, true, false).check();
}

TEST("grouped_linear: gather, scatter, bias and row scale in every combination") {
  Random random(11);
  for (const DType t : kFloatTypes)
    for (int mask = 0; mask < 16; ++mask)
      Problem(random, t, Epilogue::kSilu, {3, 23, 3, 40, 29, Spread::kUniform}, mask & 1, mask & 2, mask & 4, mask & 8)
          .check();
}

TEST("grouped_linear: no token, one token, one expert, all to one, none for some") {
  Random random(12);
  for (const DType t : kFloatTypes)
    for (const int experts : {1, 2, 13})
      for (const int64_t tokens : {0, 1, 2, 8, 9, 31})
        for (const Spread spread : {Spread::kUniform, Spread::kOneExpert, Spread::kSkewed})
          Problem(random, t, Epilogue::kSwiglu, {experts, tokens, 1, 24, 16, spread}, true, true, true, false).check();
}

TEST_IN_PARTS("grouped_linear: widths of 1, primes and dimensions that are not multiples of 8") {
  Random random(13);
  for (const DType t : kFloatTypes)
    for (const int64_t k : {1, 7, 17, 33, 100, 257})
      for (const int64_t n : {1, 2, 17, 33, 100, 131}) {
        if (!part.mine()) continue;
        Problem(random, t, Epilogue::kRelu, {3, 4, 1, k, n, Spread::kUniform}, true, false, true, false)
            .check();  // few rows
        Problem(random, t, Epilogue::kRelu, {2, 41, 1, k, n, Spread::kUniform}, false, true, true, false)
            .check();  // many
      }
}

TEST("grouped_linear: several blocks of rows, columns and depth") {
  Random random(14);
  for (const DType t : kFloatTypes) {
    Problem(random, t, Epilogue::kGelu, {2, 211, 2, 520, 264, Spread::kSkewed}, true, true, true, true).check();
    Problem(random, t, Epilogue::kClampedSwiglu, {4, 150, 1, 300, 200, Spread::kOneExpert}, true, true, true, false)
        .check();
    Problem(random, t, Epilogue::kIdentity, {64, 100, 4, 64, 64, Spread::kUniform}, true, true, false, false).check();
  }
}

// On Hopper up to 160 rows per expert go to blocks on their own and more to pairs of blocks.
TEST_IN_PARTS("grouped_linear: hundreds of rows per expert, every epilogue") {
  Random random(16);
  for (const DType t : {DType::kBF16, DType::kF16})
    for (const Epilogue e : kEpilogues)
      for (const int64_t tokens : {317, 401})
        if (part.mine())
          Problem(random, t, e, {2, tokens, 1, 72, 264, Spread::kUniform}, true, true, true, true).check();
}

TEST_IN_PARTS("grouped_linear: hundreds of rows per expert, gather, scatter, bias and row scale in every combination") {
  Random random(17);
  for (const DType t : {DType::kBF16, DType::kF16})
    for (const int64_t tokens : {151, 211})
      for (int mask = 0; mask < 16; ++mask)
        if (part.mine())
          Problem(random, t, tokens == 151 ? Epilogue::kSwiglu : Epilogue::kIdentity,
                  {3, tokens, 3, 136, 328, Spread::kUniform}, mask & 1, mask & 2, mask & 4, mask & 8)
              .check();
}

TEST_IN_PARTS("grouped_linear: hundreds of rows per expert, tails in rows, n and k, experts with none") {
  Random random(18);
  for (const DType t : {DType::kBF16, DType::kF16}) {
    const auto check = [&](Epilogue epilogue, const Shape& shape, bool gather, bool scatter, bool bias, bool scale) {
      if (part.mine()) Problem(random, t, epilogue, shape, gather, scatter, bias, scale).check();
    };
    for (const bool gather : {false, true}) {
      for (const int64_t rows : {129, 160, 161, 319, 320, 321, 639, 641, 1281})  // around one and more tiles
        check(Epilogue::kIdentity, {2, rows, 1, 64, 256, Spread::kOneExpert}, gather, true, false, false);
      for (const int64_t tokens : {433, 601}) {
        for (const int64_t k : {8, 56, 64, 120, 264, 520})
          check(Epilogue::kRelu, {3, tokens, 1, k, 192, Spread::kSkewed}, gather, true, true, false);
        for (const int64_t n : {64, 66, 134, 250, 258, 510}) {
          check(Epilogue::kSwiglu, {3, tokens, 1, 72, n, Spread::kUniform}, gather, false, true, false);
          check(Epilogue::kIdentity, {3, tokens, 1, 72, n + 1, Spread::kSkewed}, gather, true, true, true);
        }
      }
    }
    // More tiles than multiprocessors, so that a block works on several.
    check(Epilogue::kSwiglu, {40, 1600, 1, 40, 1040, Spread::kSkewed}, true, true, true, false);
    check(Epilogue::kIdentity, {70, 2100, 2, 136, 264, Spread::kUniform}, true, true, false, false);
    check(Epilogue::kSwiglu, {12, 2500, 1, 40, 1560, Spread::kSkewed}, true, true, true, false);
  }
}

TEST("grouped_linear: a row's result does not depend on the other rows of its expert, within a variant") {
  Random random(19);
  for (const DeviceId device : devices())
    for_each_isa(device, [&](const std::string& where) {
      const Problem p(random, DType::kBF16, Epilogue::kIdentity, {1, 300, 1, 200, 256, Spread::kUniform}, false, false,
                      true, false);
      Bench bench(device);
      const HostArray all = p.run(bench);
      GroupedLinearArgs a = p.args();
      a.weight = bench.upload(p.weight);
      a.bias = bench.upload(p.bias);
      for (const int32_t rows : {40, 150, 299}) {
        // The last `rows` rows alone, as the same expert's; max_rows stays, so the same variant runs.
        HostArray input = p.input;
        input.bytes.erase(input.bytes.begin(), input.bytes.end() - rows * p.desc.k * 2);
        const std::vector<int32_t> offsets{0, rows};
        a.input = bench.upload(input);
        a.offsets = bench.upload(offsets);
        a.output = bench.poisoned(DType::kBF16, static_cast<size_t>(rows) * 256);
        grouped_linear(*bench.stream, p.desc, a);
        const HostArray some = bench.read(DType::kBF16, a.output, static_cast<size_t>(rows) * 256);
        if (!std::equal(some.bytes.rbegin(), some.bytes.rend(), all.bytes.rbegin()))
          throw Failure(where + ": the last " + show(rows) + " rows alone have other bits");
      }
    });
}

TEST("grouped_linear: the same bits on every run and for any number of threads") {
  Random random(15);
  for (const DType t : kFloatTypes)
    for (const int64_t tokens : {5, 200}) {
      const Problem p(random, t, Epilogue::kSwiglu, {3, tokens, 2, 300, 222, Spread::kSkewed}, true, true, true, true);
      for (const DeviceId device : devices())
        for_each_isa(device, [&](const std::string&) {
          Bench bench(device);
          const HostArray first = p.run(bench);
          CHECK(p.run(bench).bytes == first.bytes);
          if (device.is_cuda()) return;
          for (const int threads : {1, 2, 3, 7}) {
            Threads scope(threads);
            CHECK(p.run(bench).bytes == first.bytes);
          }
        });
    }
}

TEST("grouped_linear: NaN and infinity pass through every epilogue as in float64, and stay in their row") {
  for (const DeviceId device : devices())
    for_each_isa(device, [&](const std::string& where) {
      for (const Epilogue e : kEpilogues) {
        GroupedLinearDesc d;
        d.k = 1;
        d.n = is_gated(e) ? 2 : 1;
        d.epilogue = e;
        const std::vector<float> x{NAN, 1.f, -200.f, 200.f}, w(static_cast<size_t>(d.n), 1.f);
        const std::vector<int32_t> offsets{0, 4};
        Bench bench(device);
        GroupedLinearArgs a;
        a.input = bench.upload(x);
        a.weight = bench.upload(w);
        a.offsets = bench.upload(offsets);
        a.max_rows = 4;
        float* out = bench.poisoned<float>(4);
        a.output = out;
        grouped_linear(*bench.stream, d, a);
        const std::vector<float> got = bench.read(out, 4);
        a.input = x.data(), a.weight = w.data(), a.offsets = offsets.data();
        double want[4];
        grouped_linear_reference(d, a, want);
        if (!std::isnan(got[0])) throw Failure(where + ": epilogue " + show(e) + " lost a NaN: " + show(got[0]));
        for (int i = 1; i < 4; ++i)
          if (!(std::fabs(got[static_cast<size_t>(i)] - want[i]) <= 1e-5 * std::fabs(want[i]) + 1e-30))
            throw Failure(where + ": epilogue " + show(e) + " of " + show(x[static_cast<size_t>(i)]) + ": " +
                          show(got[static_cast<size_t>(i)]) + " vs " + show(want[i]));
      }
    });
}

TEST("activations are accurate to 2e-6 relative, element by element, on the CPU") {
  std::vector<float> x;
  for (float v = -6.f; v <= 20.f; v += 0.0037f) x.push_back(v);
  for (const float v : {1e-8f, -1e-8f, 1e-4f, -1e-4f, 0.f, 60.f}) x.push_back(v);
  const int64_t n = static_cast<int64_t>(x.size());
  const std::vector<float> one{1.f};
  const std::vector<int32_t> offsets{0, static_cast<int32_t>(n)};
  for_each_isa(DeviceId{-1}, [&](const std::string& where) {
    for (const Epilogue e : {Epilogue::kRelu, Epilogue::kGelu, Epilogue::kGeluTanh, Epilogue::kSilu}) {
      GroupedLinearDesc d;
      d.k = d.n = 1;
      d.epilogue = e;
      GroupedLinearArgs a;
      a.input = x.data();
      a.weight = one.data();
      a.offsets = offsets.data();
      a.max_rows = n;
      std::vector<double> want(x.size());
      grouped_linear_reference(d, a, want.data());
      std::vector<float> got(x.size());
      a.output = got.data();
      auto stream = Stream::create(DeviceId{-1});
      grouped_linear(*stream, d, a);
      stream->synchronize();
      for (size_t i = 0; i < x.size(); ++i) {
        // Deep in the negative tail the argument of exp carries its own rounding: |x|² ulps of it.
        const double allowed = (2e-6 + 2e-7 * x[i] * x[i] * (x[i] < 0)) * std::fabs(want[i]) + 1e-37;
        if (!(std::fabs(got[i] - want[i]) <= allowed))
          throw Failure(where + ": epilogue " + show(e) + "(" + show(x[i]) + ") = " + show(got[i]) + ", want " +
                        show(want[i]));
      }
    }
  });
}

// ---- lanes; what they are on every device is lanes_test.cpp's, here is what only the CPU promises
// ---------------------

namespace {

constexpr DeviceId kCpu{-1};

/// The workers that computed tiles of each lane, read and cleared.
std::vector<std::vector<int>> workers_of(Bench& bench, LaneSet& set) {
  std::vector<uint32_t> words(static_cast<size_t>(set.lanes() * kTraceWords));
  set.take_trace(bench.stream, words.data());
  bench.stream->synchronize();
  std::vector<std::vector<int>> workers(static_cast<size_t>(set.lanes()));
  for (size_t l = 0; l < workers.size(); ++l)
    for (int w = 0; w < 32 * kTraceWords; ++w)
      if (words[l * kTraceWords + static_cast<size_t>(w / 32)] >> (w % 32) & 1) workers[l].push_back(w);
  return workers;
}

}  // namespace

TEST("lanes on the CPU: one after another they compute the plain call's rows, each its own and no other") {
  Random random(20);
  for (const DType t : kFloatTypes)
    for (const int64_t tokens : {3, 40, 200})
      for_each_isa(kCpu, [&](const std::string&) {
        const Problem p(random, t, Epilogue::kSwiglu, {7, tokens, 2, 40, 66, Spread::kSkewed}, true, true, true, true);
        Bench bench(kCpu);
        const HostArray whole = p.run(bench);
        auto set = LaneSet::create(bench.stream, {0, 2, 1, 0, 2, 2, 1}, 3, {}, true);
        const size_t row = static_cast<size_t>(p.width) * size_of(t);
        std::vector<int> times(p.buckets.order.size(), 0);
        for (int lane = 0; lane < 3; ++lane) {
          const HostArray part = p.run(bench, set->view(lane));
          for (size_t e = 0; e < 7; ++e)
            for (int32_t r = p.buckets.offsets[e]; r < p.buckets.offsets[e + 1]; ++r) {
              const size_t slot = static_cast<size_t>(p.buckets.order[static_cast<size_t>(r)]);
              const uint8_t* got = part.bytes.data() + slot * row;
              if (std::vector<int>{0, 2, 1, 0, 2, 2, 1}[e] == lane) {
                ++times[slot];
                CHECK(std::equal(got, got + row, whole.bytes.data() + slot * row));
              } else {
                CHECK(std::all_of(got, got + row, [](uint8_t b) { return b == 0xFF; }));
              }
            }
        }
        CHECK(std::all_of(times.begin(), times.end(), [](int n) { return n == 1; }));
        // An expert that moves is found where it is now, by the same view.
        const LaneView second = set->view(1);
        set->update(bench.stream, std::vector<int32_t>(7, 1), {});
        CHECK(p.run(bench, second).bytes == whole.bytes);
      });
}

TEST("lanes on the CPU: cooperative lanes keep to their share of the virtual workers, with the plain call's bits") {
  Random random(21);
  const Problem p(random, DType::kBF16, Epilogue::kRelu, {6, 300, 2, 64, 512, Spread::kUniform}, true, true, true,
                  false);
  for (const int threads : {1, 2, 5}) {
    Threads scope(threads);
    Bench bench(kCpu);
    const int width = bench.stream->width();
    const HostArray whole = p.run(bench);
    for (const std::vector<int32_t>& shares : {std::vector<int32_t>{1, 2, 5}, {3, 3, 2}, {1, 1, 6}}) {
      auto set = LaneSet::create(bench.stream, {0, 1, 2, 1, 2, 2}, 3, shares, true);
      CHECK(p.run(bench, set->view(-1)).bytes == whole.bytes);
      const auto workers = workers_of(bench, *set);
      int first = 0;
      bool undivided = false;  // too few workers for these shares
      for (int l = 0, begin = 0; l < 3; begin += shares[static_cast<size_t>(l)], ++l)
        undivided |= begin * width / 8 >= (begin + shares[static_cast<size_t>(l)]) * width / 8;
      for (size_t l = 0; l < 3 && !undivided; first += shares[l], ++l) {
        CHECK(!workers[l].empty());
        CHECK(workers[l].front() >= first * width / 8);
        CHECK(workers[l].back() < (first + shares[l]) * width / 8);
      }
      CHECK(workers_of(bench, *set)[0].empty());  // the trace is given out once
    }
  }
}

TEST("lanes on the CPU: a lane with experts and no worker makes the launch an undivided one") {
  Random random(22);
  const Problem p(random, DType::kF32, Epilogue::kRelu, {3, 50, 1, 32, 64, Spread::kUniform}, true, true, false, false);
  Bench bench(kCpu);
  const HostArray whole = p.run(bench);
  for (const int32_t huge : {1000, 1 << 30}) {
    auto set = LaneSet::create(bench.stream, {0, 1, 1}, 3, {1, huge, 1}, true);  // lane 2 has no experts: no matter
    CHECK(p.run(bench, set->view(-1)).bytes == whole.bytes);
    const auto workers = workers_of(bench, *set);
    CHECK(!workers[0].empty() && !workers[1].empty() && workers[2].empty());
  }
}

TEST("grouped_linear_variant names what would run and depends on dtype, shape and rows alone") {
  for (const DeviceId device : devices()) {
    GroupedLinearDesc d;
    d.k = 512;
    d.n = 1024;
    d.experts = 8;
    const std::string name = grouped_linear_variant(device, d, 1024);
    CHECK(!name.empty());
    {
      Threads scope(3);
      CHECK_EQ(grouped_linear_variant(device, d, 1024), name);
    }
    d.dtype = DType::kBF16;
    CHECK(grouped_linear_variant(device, d, 1024) != name);
  }
}

#ifdef NEXUS_HAS_CUDA
TEST("NEXUS_CUDA_ARCH: 80 and 90 choose kernels of their own, other values are refused by name") {
  require_cuda();
  GroupedLinearDesc d;
  d.dtype = DType::kBF16;
  d.k = 512;
  d.n = 1024;
  d.experts = 4;
  std::vector<std::string> names;
  for_each_isa(DeviceId{0}, [&](const std::string&) { names.push_back(grouped_linear_variant(DeviceId{0}, d, 1024)); });
  CHECK(names[0].rfind("mma_", 0) == 0);
  if (names.size() > 1) {
    CHECK_EQ(names[1], "wgmma_256x320x64_s4_pair");
    cuda::set_cuda_arch("90");
    CHECK_EQ(grouped_linear_variant(DeviceId{0}, d, 256), "wgmma_128x96x64_s7");
    CHECK_EQ(grouped_linear_variant(DeviceId{0}, d, 64), "wgmma_128x32x128_s5");
  }
  d.k = 511;  // rows not aligned: no architecture's bulk copies apply
  for_each_isa(DeviceId{0}, [&](const std::string&) {
    CHECK(grouped_linear_variant(DeviceId{0}, d, 1024).rfind("mma_guarded", 0) == 0);
  });
  const std::string message = expect_error(ErrorCode::kInvalidArgument, [] { cuda::set_cuda_arch("75"); });
  CHECK(message.find("'75'") != std::string::npos);

  const char* before = std::getenv("NEXUS_CUDA_ARCH");
  const std::string saved = before ? before : "";
  setenv("NEXUS_CUDA_ARCH", "75", 1);
  cuda::set_cuda_arch("");
  const std::string refused = expect_error(ErrorCode::kInvalidArgument, [] { cuda::hopper_path(0); });
  if (before)
    setenv("NEXUS_CUDA_ARCH", saved.c_str(), 1);
  else
    unsetenv("NEXUS_CUDA_ARCH");
  CHECK_EQ(refused, "NEXUS_CUDA_ARCH: got '75', expected 80 or 90");
}
#endif

TEST("grouped_linear refuses bad arguments by name") {
  auto stream = Stream::create(DeviceId{-1});
  float memory[64] = {};
  const int32_t offsets[2] = {0, 1};
  const auto refused = [&](const char* name, const std::function<void(GroupedLinearDesc&, GroupedLinearArgs&)>& spoil) {
    GroupedLinearDesc d;
    d.k = d.n = 2;
    GroupedLinearArgs a;
    a.input = a.weight = memory;
    a.output = memory + 32;
    a.offsets = offsets;
    a.max_rows = 1;
    spoil(d, a);
    const std::string message = expect_error(ErrorCode::kInvalidArgument, [&] { grouped_linear(*stream, d, a); });
    if (message.rfind(name, 0) != 0)
      throw Failure("expected a message about " + std::string(name) + ", got: " + message);
  };
  using D = GroupedLinearDesc;
  using A = GroupedLinearArgs;
  refused("dtype", [](D& d, A&) { d.dtype = DType::kI32; });
  refused("experts", [](D& d, A&) { d.experts = 0; });
  refused("k", [](D& d, A&) { d.k = 0; });
  refused("n", [](D& d, A&) { d.n = -1; });
  refused("n", [](D& d, A&) { d.n = 3, d.epilogue = Epilogue::kSwiglu; });
  refused("epilogue", [](D& d, A&) { d.epilogue = static_cast<Epilogue>(7); });
  refused("params.limit", [](D& d, A&) { d.epilogue = Epilogue::kClampedSwiglu, d.params.limit = NAN; });
  refused("max_rows", [](D&, A& a) { a.max_rows = -1; });
  refused("max_rows", [](D&, A& a) { a.max_rows = int64_t{1} << 31; });
  refused("rows_per_input", [](D&, A& a) { a.rows_per_input = 0; });
  refused("order", [](D&, A& a) { a.gather = true; });
  refused("order", [](D&, A& a) { a.scatter = true; });
  refused("input", [](D&, A& a) { a.input = nullptr; });
  refused("weight", [](D&, A& a) { a.weight = nullptr; });
  refused("output", [](D&, A& a) { a.output = nullptr; });
  refused("offsets", [](D& d, A& a) { d.experts = 2, a.offsets = nullptr; });
  refused("choice_rows", [](D&, A& a) { a.choice_rows = -1; });
  refused("step", [](D&, A& a) { a.step_input = true; });
  static const StepBlock block;
  refused("offsets", [](D&, A& a) { a.step = &block, a.step_input = true, a.offsets = nullptr; });
  static const LaneTable table;
  refused("lanes.lane", [](D&, A& a) { a.lanes = {&table, -2, nullptr}; });
  refused("lanes.lane", [](D&, A& a) { a.lanes = {&table, kMaxLanes, nullptr}; });
  refused("lanes.table", [](D& d, A& a) { d.experts = kLaneExperts + 1, a.lanes = {&table, 0, nullptr}; });
}

TEST("offsets beyond max_rows fail the CPU stream instead of writing outside") {
  auto stream = Stream::create(DeviceId{-1});
  float memory[64] = {};
  const int32_t offsets[2] = {0, 9};
  GroupedLinearDesc d;
  d.k = d.n = 1;
  GroupedLinearArgs a;
  a.input = a.weight = memory;
  a.output = memory + 32;
  a.offsets = offsets;
  a.max_rows = 1;
  grouped_linear(*stream, d, a);
  const std::string message = expect_error(ErrorCode::kInternal, [&] { stream->synchronize(); });
  CHECK(message.find("offsets[1] is 9") != std::string::npos);
}

TEST("slots beyond max_rows fail the CPU stream instead of reading and writing outside") {
  for (const int32_t slot : {-1, 2}) {
    auto stream = Stream::create(DeviceId{-1});
    float memory[64] = {};
    const int32_t offsets[2] = {0, 2}, order[2] = {0, slot};
    GroupedLinearDesc d;
    d.k = d.n = 1;
    GroupedLinearArgs a;
    a.input = a.weight = memory;
    a.output = memory + 32;
    a.offsets = offsets;
    a.order = order;
    a.scatter = true;
    a.max_rows = 2;
    grouped_linear(*stream, d, a);
    const std::string message = expect_error(ErrorCode::kInternal, [&] { stream->synchronize(); });
    CHECK(message.find("order[1] is " + show(slot)) != std::string::npos);
  }
}

TEST("on CUDA, slots and offsets out of range leave the rows that are there alone, and nothing else is touched") {
  require_cuda();
  Random random(91);
  struct Case {
    int rows, experts;
  };
  // By rows per expert: matrix-vector, few-row, and many-row kernels.
  for (const DType dtype : kFloatTypes)
    for (const Case c : {Case{8, 64}, Case{40, 8}, Case{96, 2}, Case{700, 2}}) {
      Bench bench(DeviceId{0});
      GroupedLinearDesc d;
      d.dtype = dtype, d.experts = c.experts, d.k = 64, d.n = 64;
      const Buckets good = random_buckets(random, c.experts, c.rows, Spread::kUniform);
      std::vector<int32_t> order = good.order, offsets = good.offsets;
      const size_t rows = static_cast<size_t>(c.rows), width = 64;
      GroupedLinearArgs a;
      a.input = bench.upload(HostArray::rounded(dtype, random.normals(rows / 2 * 64)));
      a.weight = bench.upload(HostArray::rounded(dtype, random.normals(static_cast<size_t>(c.experts) * 64 * 64)));
      a.rows_per_input = 2, a.gather = a.scatter = true, a.max_rows = c.rows;
      const auto run = [&] {
        a.offsets = bench.upload(offsets), a.order = bench.upload(order);
        a.output = bench.poisoned(dtype, rows * width);
        grouped_linear(*bench.stream, d, a);
        return bench.read(dtype, a.output, rows * width);
      };
      const HostArray want = run();
      const int32_t bad[] = {-1, c.rows, INT32_MAX, INT32_MIN};
      std::vector<bool> gone(rows, false);
      for (size_t i = 0; i < rows; i += 3) {
        gone[static_cast<size_t>(order[i])] = true;
        order[i] = bad[i / 3 % 4];
      }
      offsets.back() = INT32_MAX;  // as if it were max_rows, which it was
      const HostArray got = run();
      const size_t bytes = width * size_of(dtype);
      const std::vector<uint8_t> untouched(bytes, 0xFF);
      for (size_t row = 0; row < rows; ++row) {
        const uint8_t* expected = gone[row] ? untouched.data() : want.bytes.data() + row * bytes;
        CHECK(std::memcmp(got.bytes.data() + row * bytes, expected, bytes) == 0);
      }
      std::reverse(offsets.begin(), offsets.end());  // nonsense: no promise but to stay inside
      offsets[0] = -7;
      run();
    }
}

// ---- the MLPs
// -----------------------------------------------------------------------------------------------------------

namespace {

void check_mlp(Random& random, const MlpDesc& d, int64_t tokens, int32_t top_k, bool dense, bool use_bias,
               bool use_scale) {
  const Buckets buckets = dense ? bucket(1, std::vector<int32_t>(static_cast<size_t>(tokens), 0))
                                : random_buckets(random, d.experts, tokens * top_k, Spread::kSkewed);
  const HostArray x = HostArray::rounded(d.dtype, random.normals(static_cast<size_t>(tokens * d.input)));
  const std::vector<float> scale = random.normals(static_cast<size_t>(tokens * top_k));
  std::vector<HostArray> weight;
  std::vector<std::vector<float>> bias;
  MlpWeights host_weights;
  for (int i = 0; i < mlp_layers(d.kind); ++i) {
    const GroupedLinearDesc l = mlp_layer(d, i);
    weight.push_back(HostArray::rounded(
        d.dtype, random.normals(static_cast<size_t>(l.experts * l.n * l.k), 1.f / std::sqrt(static_cast<float>(l.k)))));
    bias.push_back(random.normals(static_cast<size_t>(l.experts * l.n)));
  }
  for (size_t i = 0; i < weight.size(); ++i) {
    host_weights.weight[i] = weight[i].data();
    host_weights.bias[i] = use_bias ? bias[i].data() : nullptr;
  }
  MlpArgs args;
  args.tokens = tokens;
  args.top_k = top_k;
  MlpArgs host = args;
  host.x = x.data();
  host.offsets = dense ? nullptr : buckets.offsets.data();
  host.order = dense ? nullptr : buckets.order.data();
  host.input_scale = use_scale ? scale.data() : nullptr;
  const std::vector<double> want = mlp_oracle(d, host_weights, host);

  for (const DeviceId device : devices()) {
    Bench bench(device);
    MlpWeights w;
    for (size_t i = 0; i < weight.size(); ++i) {
      w.weight[i] = bench.upload(weight[i]);
      w.bias[i] = use_bias ? bench.upload(bias[i]) : nullptr;
    }
    args.x = bench.upload(x);
    args.offsets = dense ? nullptr : bench.upload(buckets.offsets);
    args.order = dense ? nullptr : bench.upload(buckets.order);
    args.input_scale = use_scale ? bench.upload(scale) : nullptr;
    const size_t workspace = mlp_workspace_bytes(device, d, tokens * top_k);
    uint8_t* scratch = bench.poisoned<uint8_t>(workspace);
    args.workspace = scratch;
    args.rows = bench.poisoned(d.dtype, want.size());
    grouped_mlp(*bench.stream, d, w, args);
    const HostArray got = bench.read(d.dtype, args.rows, want.size());
    bench.read(scratch, workspace);  // its guard
    check_close(got, want, tolerance(d.dtype),
                device.name() + " mlp " + show(d.kind) + " " + name_of(d.dtype) + " tokens " + show(tokens));
  }
}

}  // namespace

TEST("grouped_mlp: two-layer, three-layer and gated, with and without biases, gathered and scattered") {
  Random random(20);
  const std::pair<MlpKind, std::vector<Epilogue>> kinds[] = {
      {MlpKind::kTwoLayer, {Epilogue::kRelu, Epilogue::kGelu, Epilogue::kGeluTanh, Epilogue::kSilu}},
      {MlpKind::kThreeLayer, {Epilogue::kRelu}},
      {MlpKind::kGated,
       {Epilogue::kSwiglu, Epilogue::kGeglu, Epilogue::kGegluTanh, Epilogue::kReglu, Epilogue::kClampedSwiglu}}};
  for (const DType t : kFloatTypes)
    for (const auto& [kind, activations] : kinds)
      for (const Epilogue activation : activations)
        for (const bool use_bias : {false, true}) {
          MlpDesc d{.dtype = t,
                    .kind = kind,
                    .activation = activation,
                    .params = {1.5f, 1.702f},
                    .experts = 5,
                    .input = 36,
                    .hidden = 51,
                    .output = 44};
          check_mlp(random, d, 47, 2, false, use_bias, use_bias && kind == MlpKind::kGated);
        }
}

TEST("grouped_mlp: hundreds of rows per expert, with and without routing") {
  Random random(22);
  for (const DType t : {DType::kBF16, DType::kF16})
    for (const bool dense : {true, false}) {
      MlpDesc d{.dtype = t,
                .kind = MlpKind::kGated,
                .activation = Epilogue::kSwiglu,
                .params = {},
                .experts = dense ? 1 : 3,
                .input = 136,
                .hidden = 88,
                .output = 264};
      check_mlp(random, d, 401, dense ? 1 : 2, dense, true, !dense);
    }
}

TEST("grouped_mlp: dense without order and offsets, and no tokens, one token") {
  Random random(21);
  for (const DType t : kFloatTypes)
    for (const int64_t tokens : {0, 1, 3, 70}) {
      MlpDesc d{.dtype = t,
                .kind = MlpKind::kGated,
                .activation = Epilogue::kSwiglu,
                .params = {},
                .experts = 1,
                .input = 65,
                .hidden = 30,
                .output = 65};
      check_mlp(random, d, tokens, 1, true, false, false);
      d.experts = 7;
      check_mlp(random, d, tokens, 3, false, true, true);
    }
}

TEST("mlp_layer and grouped_mlp refuse what an MLP cannot be") {
  auto stream = Stream::create(DeviceId{-1});
  const auto refused = [&](const char* name, const std::function<void(MlpDesc&, MlpWeights&, MlpArgs&)>& spoil) {
    float memory[64] = {};
    MlpDesc d{.dtype = DType::kF32,
              .kind = MlpKind::kTwoLayer,
              .activation = Epilogue::kRelu,
              .params = {},
              .experts = 1,
              .input = 2,
              .hidden = 2,
              .output = 2};
    MlpWeights w;
    w.weight = {memory, memory, memory};
    MlpArgs a;
    a.tokens = 1;
    int32_t offsets[2] = {0, 1};
    a.x = a.workspace = a.rows = memory;
    a.offsets = offsets;
    spoil(d, w, a);
    const std::string message = expect_error(ErrorCode::kInvalidArgument, [&] { grouped_mlp(*stream, d, w, a); });
    if (message.rfind(name, 0) != 0)
      throw Failure("expected a message about " + std::string(name) + ", got: " + message);
  };
  using D = MlpDesc;
  using W = MlpWeights;
  using A = MlpArgs;
  refused("activation", [](D& d, W&, A&) { d.activation = Epilogue::kSwiglu; });
  refused("activation", [](D& d, W&, A&) { d.activation = Epilogue::kIdentity; });
  refused("activation", [](D& d, W&, A&) { d.kind = MlpKind::kThreeLayer, d.activation = Epilogue::kGelu; });
  refused("activation", [](D& d, W&, A&) { d.kind = MlpKind::kGated; });
  refused("dtype", [](D& d, W&, A&) { d.dtype = DType::kI32; });
  refused("hidden", [](D& d, W&, A&) { d.hidden = 0; });
  refused("order", [](D& d, W&, A&) { d.experts = 2; });
  refused("order", [](D&, W&, A& a) { a.top_k = 2; });
  refused("weight[1]", [](D&, W& w, A&) { w.weight[1] = nullptr; });
  refused("weight[2]", [](D& d, W& w, A&) { d.kind = MlpKind::kThreeLayer, w.weight[2] = nullptr; });
  refused("tokens * top_k", [](D&, W&, A& a) { a.tokens = int64_t{1} << 31; });
  refused("choice_tokens", [](D&, W&, A& a) { a.choice_tokens = -1; });
  refused("choice_tokens * top_k", [](D&, W&, A& a) { a.choice_tokens = int64_t{1} << 31; });
  static const LaneTable table;
  refused("lanes.lane", [](D&, W&, A& a) { a.lanes = {&table, -2, nullptr}; });
  refused("offsets", [](D& d, W&, A& a) { d.experts = 2, a.order = a.offsets, a.offsets = nullptr; });
  refused("workspace", [](D&, W&, A& a) { a.workspace = nullptr; });
  refused("x", [](D&, W&, A& a) { a.x = nullptr; });
}
