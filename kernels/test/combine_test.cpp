// combine, the shared expert's gate and the unfused operations against float64, on every device and CPU instruction
// set.
#include "nexus/combine.h"

#include "data/reference.h"
#include "data_plane.h"

using namespace nexus;
using namespace nexus::test;

namespace {

struct CombineCase {
  CombineMode mode;
  int64_t tokens;
  int32_t top_k;
  int64_t width;
  bool weights, shared, shared_scale;
};

void check_combine(Random& random, DType t, const CombineCase& c) {
  const size_t slots = static_cast<size_t>(c.tokens * c.top_k), width = static_cast<size_t>(c.width);
  const size_t out_size = c.mode == CombineMode::kConcat ? slots * width : static_cast<size_t>(c.tokens) * width;
  const HostArray rows = HostArray::rounded(t, random.normals(slots * width));
  const HostArray shared = HostArray::rounded(t, random.normals(static_cast<size_t>(c.tokens) * width));
  const std::vector<float> weights = random.normals(slots), scale = random.normals(static_cast<size_t>(c.tokens));
  CombineArgs a{.mode = c.mode, .dtype = t, .tokens = c.tokens, .width = c.width, .top_k = c.top_k};
  CombineArgs host = a;
  host.rows = rows.data();
  host.weights = c.weights ? weights.data() : nullptr;
  host.shared = c.shared ? shared.data() : nullptr;
  host.shared_scale = c.shared_scale ? scale.data() : nullptr;
  std::vector<double> want(out_size);
  combine_reference(host, want.data());
  for (const DeviceId device : devices())
    for_each_isa(device, [&](const std::string& where) {
      Bench bench(device);
      a.rows = bench.upload(rows);
      a.weights = c.weights ? bench.upload(weights) : nullptr;
      a.shared = c.shared ? bench.upload(shared) : nullptr;
      a.shared_scale = c.shared_scale ? bench.upload(scale) : nullptr;
      const auto run = [&] {
        a.out = bench.poisoned(t, out_size);
        combine(*bench.stream, a);
        return bench.read(t, a.out, out_size);
      };
      const HostArray got = run();
      check_close(got, want, tolerance(t),
                  where + " " + name_of(t) + " tokens " + show(c.tokens) + " top_k " + show(c.top_k) + " width " +
                      show(c.width));
      Threads scope(3);
      CHECK(run().bytes == got.bytes);
    });
}

}  // namespace

TEST("combine: weighted sum and concat, every dtype, odd widths, 0 and 1 tokens") {
  Random random(30);
  for (const DType t : kFloatTypes)
    for (const CombineMode mode : {CombineMode::kWeightedSum, CombineMode::kConcat})
      for (const int64_t tokens : {0, 1, 3, 61})
        for (const int32_t top_k : {1, 2, 5, 32})
          for (const int64_t width : {1, 17, 100, 515})
            check_combine(random, t, {mode, tokens, top_k, width, true, false, false});
}

TEST("combine: without weights, with a shared expert, with its gate") {
  Random random(31);
  for (const DType t : kFloatTypes)
    for (const bool weights : {false, true})
      for (const bool scale : {false, true})
        for (const int64_t width : {33, 1030})
          check_combine(random, t, {CombineMode::kWeightedSum, 29, 3, width, weights, true, scale});
}

TEST("combine sums in slot order, exactly") {  // (1e8 - 1e8) + 1 is 1 in float32; in every other order it is 0
  for (const DeviceId device : devices()) {
    Bench bench(device);
    CombineArgs a;
    a.tokens = a.width = 1;
    a.top_k = 3;
    a.rows = bench.upload(std::vector<float>{1e8f, -1e8f, 1.f});
    float* out = bench.poisoned<float>(1);
    a.out = out;
    combine(*bench.stream, a);
    CHECK_EQ(bench.read(out, 1)[0], 1.f);
  }
}

TEST("combine fills a step's slot of a ring, beside the same sum, step after step") {
  Random random(32);
  for (const DeviceId device : devices())
    for (const CombineMode mode : {CombineMode::kWeightedSum, CombineMode::kConcat})
      for (const int32_t experts : {1, 7, 512}) {
        Bench bench(device);
        constexpr int32_t kTopK = 3;
        CombineArgs a{.mode = mode, .tokens = 5, .width = 17, .top_k = kTopK};
        const auto size = static_cast<size_t>(a.tokens * a.width * kTopK);
        a.rows = bench.upload(random.normals(size));
        const auto sum = [&] {
          float* out = bench.poisoned<float>(size);
          a.out = out;
          combine(*bench.stream, a);
          return bench.read(out, mode == CombineMode::kConcat ? size : size / kTopK);
        };
        const std::vector<float> plain = sum();
        const auto ring = CountRing::create(device, experts, 2);
        a.ring = ring->view(), a.experts = experts;
        for (uint64_t step = 0; step < 5; ++step) {
          std::vector<int32_t> counts(static_cast<size_t>(experts));
          for (int32_t e = 0; e < experts; ++e) counts[static_cast<size_t>(e)] = e * 5 + static_cast<int32_t>(step);
          a.counts = bench.upload(counts);
          CHECK(sum() == plain);
          const CountRing::Reading seen = ring->read(step);
          CHECK(seen.steps == std::vector<uint64_t>{step} && seen.tokens == std::vector<int32_t>{5});
          CHECK(seen.counts == counts);
        }
      }
}

TEST("combine refuses bad arguments by name") {
  auto stream = Stream::create(DeviceId{-1});
  float memory[16] = {};
  const auto refused = [&](const char* name, const std::function<void(CombineArgs&)>& spoil) {
    CombineArgs a;
    a.rows = memory;
    a.out = memory + 8;
    a.tokens = a.width = 1;
    spoil(a);
    const std::string message = expect_error(ErrorCode::kInvalidArgument, [&] { combine(*stream, a); });
    if (message.rfind(name, 0) != 0)
      throw Failure("expected a message about " + std::string(name) + ", got: " + message);
  };
  refused("dtype", [](CombineArgs& a) { a.dtype = DType::kI32; });
  refused("tokens", [](CombineArgs& a) { a.tokens = -1; });
  refused("width", [](CombineArgs& a) { a.width = 0; });
  refused("top_k", [](CombineArgs& a) { a.top_k = 0; });
  refused("tokens * top_k", [](CombineArgs& a) { a.tokens = int64_t{1} << 30, a.top_k = 2; });
  refused("rows", [](CombineArgs& a) { a.rows = nullptr; });
  refused("out", [](CombineArgs& a) { a.out = nullptr; });
  refused("shared", [&](CombineArgs& a) { a.mode = CombineMode::kConcat, a.shared = memory; });
  refused("shared", [&](CombineArgs& a) { a.shared_scale = memory; });
  const auto ring = CountRing::create(DeviceId{-1}, 3, 1);
  refused("counts", [&](CombineArgs& a) { a.ring = ring->view(), a.experts = 3; });
  const int32_t counts[4] = {};
  refused("experts", [&](CombineArgs& a) { a.ring = ring->view(), a.counts = counts; });
  refused("ring.stride", [&](CombineArgs& a) { a.ring = ring->view(), a.counts = counts, a.experts = 1000; });
}

TEST("shared_gate is the sigmoid of a dot product") {
  Random random(32);
  for (const DType t : kFloatTypes)
    for (const int64_t tokens : {0, 1, 3, 100})
      for (const int64_t hidden : {1, 17, 100, 515}) {
        const HostArray x = HostArray::rounded(t, random.normals(static_cast<size_t>(tokens * hidden)));
        const HostArray w = HostArray::rounded(
            t, random.normals(static_cast<size_t>(hidden), 1.f / std::sqrt(static_cast<float>(hidden))));
        std::vector<double> want(static_cast<size_t>(tokens));
        for (size_t i = 0; i < want.size(); ++i) {
          double sum = 0;
          for (size_t h = 0; h < static_cast<size_t>(hidden); ++h) sum += x[i * static_cast<size_t>(hidden) + h] * w[h];
          want[i] = reference::sigmoid(sum);
        }
        for (const DeviceId device : devices())
          for_each_isa(device, [&](const std::string& where) {
            Bench bench(device);
            float* scale = bench.poisoned<float>(want.size());
            shared_gate(*bench.stream, {.x = bench.upload(x),
                                        .weight = bench.upload(w),
                                        .dtype = t,
                                        .tokens = tokens,
                                        .hidden = hidden,
                                        .scale = scale});
            check_close(bench.read(scale, want.size()), want, 1e-5, where + " shared_gate");
          });
      }
}

TEST("gather_rows copies the rows that the order names, bit for bit") {
  Random random(33);
  for (const DType t : kFloatTypes)
    for (const int64_t width : {1, 17, 100, 515}) {
      const HostArray x = HostArray::rounded(t, random.normals(static_cast<size_t>(20 * width)));
      std::vector<int32_t> order(40);
      for (auto& slot : order) slot = static_cast<int32_t>(random.integer(0, 39));
      for (const int64_t n : {0, 1, 33})
        for (const DeviceId device : devices()) {
          Bench bench(device);
          void* out = bench.poisoned(t, static_cast<size_t>(n * width));
          gather_rows(*bench.stream, t, bench.upload(x), bench.upload(order), 7, n, 2, width, out);
          const HostArray got = bench.read(t, out, static_cast<size_t>(n * width));
          for (size_t i = 0; i < got.size(); ++i) {
            const size_t w = static_cast<size_t>(width);
            CHECK_EQ(got[i], x[static_cast<size_t>(order[7 + i / w] / 2) * w + i % w]);
          }
        }
    }
}

TEST("activate: every epilogue and dtype, in place where it may be") {
  Random random(34);
  const EpilogueParams params{1.5f, 1.702f};
  for (const DType t : kFloatTypes)
    for (const int e : {0, 1, 2, 3, 4, 16, 17, 18, 19, 20})
      for (const int64_t width : {1, 17, 600}) {
        const Epilogue epilogue = static_cast<Epilogue>(e);
        const int64_t n = 13, widen = is_gated(epilogue) ? 2 : 1;
        const size_t count = static_cast<size_t>(n * width);
        const HostArray in = HostArray::rounded(t, random.normals(count * static_cast<size_t>(widen), 2.f));
        std::vector<double> want(count);
        for (size_t i = 0; i < count; ++i)
          want[i] = widen == 2 ? reference::activate(epilogue, params, in[2 * i], in[2 * i + 1])
                               : reference::activate(epilogue, params, in[i], 0);
        for (const DeviceId device : devices())
          for_each_isa(device, [&](const std::string& where) {
            Bench bench(device);
            void* out = bench.poisoned(t, count);
            activate(*bench.stream, t, epilogue, params, bench.upload(in), n, width, out);
            const HostArray got = bench.read(t, out, count);
            check_close(got, want, tolerance(t), where + " activate " + show(e));
            if (widen == 1) {
              void* same = bench.poisoned(t, count);
              bench.stream->copy(same, bench.upload(in), in.bytes.size());
              activate(*bench.stream, t, epilogue, params, same, n, width, same);
              CHECK(bench.read(t, same, count).bytes == got.bytes);
            }
          });
      }
  auto stream = Stream::create(DeviceId{-1});
  float x[4] = {};
  expect_error(ErrorCode::kInvalidArgument, [&] { activate(*stream, DType::kF32, Epilogue::kSwiglu, {}, x, 1, 2, x); });
  expect_error(ErrorCode::kInvalidArgument,
               [&] { activate(*stream, DType::kF32, static_cast<Epilogue>(9), {}, x, 1, 2, x); });
}

TEST("index_add accumulates one expert's weighted rows into float32") {
  Random random(35);
  for (const DType t : kFloatTypes)
    for (const int64_t width : {1, 33, 515}) {
      const int32_t top_k = 3;
      const size_t tokens = 31, w = static_cast<size_t>(width);
      std::vector<int32_t> order;  // one slot of each token, as in one expert's bucket
      for (size_t token = 0; token < tokens; ++token)
        order.push_back(static_cast<int32_t>(token * 3 + static_cast<size_t>(random.integer(0, 2))));
      const int64_t first = 4, n = 23;
      const HostArray rows = HostArray::rounded(t, random.normals(static_cast<size_t>(n) * w));
      const std::vector<float> weights = random.normals(tokens * 3), start = random.normals(tokens * w);
      std::vector<double> want(start.begin(), start.end());
      for (size_t i = 0; i < static_cast<size_t>(n); ++i)
        for (size_t c = 0; c < w; ++c) {
          const size_t slot = static_cast<size_t>(order[4 + i]);
          want[slot / 3 * w + c] += weights[slot] * rows[i * w + c];
        }
      for (const DeviceId device : devices()) {
        Bench bench(device);
        float* acc = bench.poisoned<float>(start.size());
        bench.stream->copy(acc, bench.upload(start), start.size() * 4);
        index_add(*bench.stream, t, bench.upload(rows), bench.upload(weights), bench.upload(order), first, n, top_k,
                  width, acc);
        check_close(bench.read(acc, start.size()), want, 1e-6, device.name() + " index_add");
      }
    }
}

TEST("cast has the host conversions' bits, between any two types") {
  Random random(36);
  for (const DType from : kFloatTypes)
    for (const DType to : kFloatTypes)
      for (const int64_t n : {0, 1, 17, 70001}) {
        const HostArray x = HostArray::rounded(from, random.normals(static_cast<size_t>(n), 100.f));
        std::vector<float> wide(static_cast<size_t>(n));
        for (size_t i = 0; i < wide.size(); ++i) wide[i] = static_cast<float>(x[i]);
        for (const DeviceId device : devices()) {
          Bench bench(device);
          void* out = bench.poisoned(to, wide.size());
          cast(*bench.stream, bench.upload(x), from, out, to, n);
          CHECK(bench.read(to, out, wide.size()).bytes == HostArray::rounded(to, wide).bytes);
        }
      }
}
