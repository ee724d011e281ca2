// Lanes and steps (nexus/step.h) of the grouped product, on every device: dividing the experts among launches or
// blocks, and reading rows and pointers from a step block, changes who computes what and when it is known, never a bit.
//
// Streams that share their SMs (runtime.h) belong here, too: other tiles, the same bytes.
//
// Every comparison is of bytes, outputs start as 0xFF: a row that another lane owns, or that is past a step's tokens,
// must still be that. Tables and blocks are built here and not by LaneSet or begin_step, so that these tests need
// nothing but the products.
#include <bit>

#include "data_plane.h"
#include "nexus/router.h"

using namespace nexus;
using namespace nexus::test;

namespace {

struct Shape {
  const char* what;
  int experts;
  int64_t tokens;
  int32_t top_k;
  int64_t k, n;
  int64_t slots() const { return tokens * top_k; }
};
// Each is another kernel variant of one device or another, see choose() of data/cuda/variants_cuda.cpp.
constexpr Shape kShapes[] = {{"one row an expert", 32, 3, 2, 72, 200},
                             {"few rows", 24, 60, 2, 136, 264},
                             {"dozens of rows", 6, 120, 2, 72, 200},
                             {"a hundred rows", 4, 210, 2, 72, 328},
                             {"hundreds of rows", 3, 350, 2, 72, 264},
                             {"over 768 rows", 2, 1600, 1, 72, 264},
                             {"long k", 2, 220, 1, 1032, 264},
                             {"k not a multiple of 8", 5, 37, 2, 33, 34},
                             {"more tiles than blocks", 64, 128, 2, 40, 1040},
                             {"rows that share no tile", 7, 90, 1, 64, 70}};
constexpr Epilogue kSome[] = {Epilogue::kIdentity, Epilogue::kRelu, Epilogue::kGeluTanh, Epilogue::kSwiglu,
                              Epilogue::kClampedSwiglu};

/// Uniform in [-scale, scale): as good as normal data where only bits are compared, and far cheaper.
std::vector<float> uniforms(Random& random, int64_t count, float scale = 1.f) {
  std::vector<float> v(static_cast<size_t>(count));
  for (auto& x : v) x = scale * (static_cast<float>(random.next() >> 40) * 0x1p-23f - 1.f);
  return v;
}

/// A grouped product on the host: everything but who reads what from where.
struct Problem {
  GroupedLinearDesc desc;
  Shape shape;
  bool gather = false, scatter = false, use_bias = false, use_scale = false;
  std::vector<int32_t> expert_of_slot;
  HostArray input, weight;
  std::vector<float> bias, scale;
  int64_t width = 0;

  Problem(Random& random, DType dtype, const Shape& s, int flags)
      : shape(s), gather(flags & 1), scatter(flags & 2), use_bias(flags & 4), use_scale(flags & 8) {
    desc.dtype = dtype;
    desc.experts = s.experts;
    desc.k = s.k;
    desc.n = s.n;
    desc.epilogue = kSome[random.integer(0, 4)];
    desc.params = {0.5f, 1.702f};
    width = is_gated(desc.epilogue) ? s.n / 2 : s.n;
    expert_of_slot.resize(static_cast<size_t>(s.slots()));
    // Uneven, and the last expert has no row.
    for (auto& e : expert_of_slot)
      e = static_cast<int32_t>(
          std::min(random.integer(0, std::max(0, s.experts - 2)), random.integer(0, std::max(0, s.experts - 2))));
    input = HostArray::rounded(dtype, uniforms(random, s.slots() * s.k));
    weight = HostArray::rounded(dtype, uniforms(random, s.experts * s.n * s.k, 2.f / std::sqrt(float(s.k))));
    bias = uniforms(random, s.experts * s.n);
    scale = uniforms(random, s.slots(), 2.f);
  }
  size_t row_bytes() const { return static_cast<size_t>(width) * size_of(desc.dtype); }
  std::string describe() const {
    return std::string(shape.what) + ", " + name_of(desc.dtype) + ", epilogue " + show(desc.epilogue) +
           (gather ? ", gather" : "") + (scatter ? ", scatter" : "") + (use_bias ? ", bias" : "") +
           (use_scale ? ", scale" : "");
  }
  bool has_order() const { return gather || scatter; }
  /// The slots of the first `tokens` tokens, by expert.
  Buckets buckets(int64_t tokens) const {
    return bucket(desc.experts,
                  std::vector<int32_t>(expert_of_slot.begin(), expert_of_slot.begin() + tokens * shape.top_k));
  }
  /// Row of the output to which the i-th row in expert order goes.
  int64_t output_row(const Buckets& b, int64_t i) const { return scatter ? b.order[static_cast<size_t>(i)] : i; }
};

/// A problem's weights on a device, and launches of it.
struct Loaded {
  Bench bench;
  const Problem& p;
  GroupedLinearArgs common;

  Loaded(DeviceId device, const Problem& problem) : bench(device), p(problem) {
    common.weight = bench.upload(p.weight);
    common.bias = p.use_bias ? bench.upload(p.bias) : nullptr;
    common.gather = p.gather;
    common.scatter = p.scatter;
    common.rows_per_input = p.gather ? p.shape.top_k : 1;
  }
  /// Arguments for the first `tokens` tokens, whose x is given.
  GroupedLinearArgs args(int64_t tokens, const Buckets& b, const void* x) {
    GroupedLinearArgs a = common;
    a.input = x;
    a.offsets = bench.upload(b.offsets);
    a.order = p.has_order() ? bench.upload(b.order) : nullptr;
    a.row_scale = p.use_scale ? bench.upload(p.scale) : nullptr;
    a.max_rows = tokens * p.shape.top_k;
    return a;
  }
  /// The first rows of the input, and nothing behind them.
  void* upload_rows(int64_t tokens) {
    const int64_t rows = p.gather ? tokens : tokens * p.shape.top_k;
    return bench.upload(p.input.data(), static_cast<size_t>(rows * p.desc.k) * size_of(p.desc.dtype));
  }
  void* output(int64_t rows) { return bench.poisoned(p.desc.dtype, static_cast<size_t>(rows * p.width)); }
  std::vector<uint8_t> launch(GroupedLinearArgs a, int64_t rows) {
    a.output = output(rows);
    grouped_linear(*bench.stream, p.desc, a);
    return bench.read(a.output, static_cast<size_t>(rows) * p.row_bytes());
  }
};

LaneTable table_of(const std::vector<int32_t>& lane_of, int lanes, const std::vector<int32_t>& shares) {
  LaneTable t;
  t.lanes = lanes;
  for (int l = 0; l < lanes; ++l) t.begin[l + 1] = t.begin[l] + shares[static_cast<size_t>(l)];
  t.total = t.begin[lanes];
  std::copy(lane_of.begin(), lane_of.end(), t.lane_of);
  return t;
}
const LaneTable* upload(Bench& bench, const LaneTable& t) {
  return static_cast<const LaneTable*>(bench.upload(&t, sizeof t));
}
std::vector<int32_t> random_lanes(Random& random, int experts, int lanes) {
  std::vector<int32_t> lane_of(static_cast<size_t>(experts));
  for (auto& l : lane_of) l = static_cast<int32_t>(random.integer(0, lanes - 1));
  return lane_of;
}
std::vector<int32_t> random_shares(Random& random, int lanes, int64_t most) {
  std::vector<int32_t> shares(static_cast<size_t>(lanes));
  for (auto& s : shares) s = static_cast<int32_t>(random.integer(1, most));
  return shares;
}

constexpr size_t kTraceSize = static_cast<size_t>(kMaxLanes) * kTraceWords;
uint32_t* empty_trace(Bench& bench) {
  auto* trace = bench.poisoned<uint32_t>(kTraceSize);
  bench.stream->fill(trace, 0, kTraceSize * sizeof(uint32_t));
  return trace;
}
/// Units that computed tiles of each lane.
std::vector<int> units_of(Bench& bench, const uint32_t* trace) {
  const std::vector<uint32_t> bits = bench.read(trace, kTraceSize);
  std::vector<int> units(kMaxLanes);
  for (size_t i = 0; i < bits.size(); ++i) units[i / kTraceWords] += std::popcount(bits[i]);
  return units;
}

/// Holds lanes that have rows, and no others, to have left a mark.
void check_trace(Loaded& l, const uint32_t* trace, const Buckets& b, const std::vector<int32_t>& lane_of,
                 const std::string& what) {
  std::vector<bool> busy(kMaxLanes);
  for (size_t e = 0; e < lane_of.size(); ++e)
    if (b.offsets[e + 1] > b.offsets[e]) busy[static_cast<size_t>(lane_of[e])] = true;
  const std::vector<int> units = units_of(l.bench, trace);
  for (size_t i = 0; i < units.size(); ++i) {
    if (busy[i] != (units[i] > 0))
      throw Failure(what + ": lane " + show(i) + (busy[i] ? " has rows and left no mark" : " has no rows and a mark"));
    if (units[i] > l.bench.stream->width()) throw Failure(what + ": lane " + show(i) + " ran on too many units");
  }
}

void same(const std::vector<uint8_t>& got, const std::vector<uint8_t>& want, const Problem& p,
          const std::string& what) {
  for (size_t i = 0; i < want.size(); ++i)
    if (got[i] != want[i])
      throw Failure(what + ": other bits than undivided in row " + show(i / p.row_bytes()) + ", byte " +
                    show(i % p.row_bytes()));
}

/// Bodies run per device and instruction set (architecture) with the problem loaded.
void on_all(const Problem& p, const std::function<void(Loaded&, const std::string&)>& body) {
  for (const DeviceId device : devices())
    for_each_isa(device, [&](const std::string& where) {
      Loaded loaded(device, p);
      body(loaded, where + ": " + p.describe());
    });
}

void check_lanes(Random& random, const Problem& p, int lanes) {
  const int64_t tokens = p.shape.tokens, rows = p.shape.slots();
  const Buckets b = p.buckets(tokens);
  const std::vector<int32_t> lane_of = random_lanes(random, p.desc.experts, lanes);
  const LaneTable even = table_of(lane_of, lanes, random_shares(random, lanes, 4));
  // One lane has hardly any blocks, so each of them walks many tiles.
  std::vector<int32_t> shares = random_shares(random, lanes, 3);
  shares[static_cast<size_t>(random.integer(0, lanes - 1))] = 60;
  const LaneTable uneven = table_of(lane_of, lanes, shares);
  shares.front() = 1'000'000'000;
  const LaneTable starved = table_of(lane_of, lanes, shares);
  on_all(p, [&](Loaded& l, const std::string& where) {
    const std::string what = where + ", " + show(lanes) + " lanes";
    GroupedLinearArgs a = l.args(tokens, b, l.upload_rows(tokens));
    const std::vector<uint8_t> want = l.launch(a, rows);

    // A launch per lane, each into memory of its own: exactly its rows.
    a.lanes.table = upload(l.bench, even);
    a.lanes.trace = empty_trace(l.bench);
    for (int lane = 0; lane < lanes; ++lane) {
      a.lanes.lane = lane;
      std::vector<uint8_t> own(want.size(), 0xFF);
      for (int e = 0; e < p.desc.experts; ++e) {
        if (lane_of[static_cast<size_t>(e)] != lane) continue;
        for (int64_t i = b.offsets[static_cast<size_t>(e)]; i < b.offsets[static_cast<size_t>(e) + 1]; ++i) {
          const auto at = static_cast<std::ptrdiff_t>(static_cast<size_t>(p.output_row(b, i)) * p.row_bytes());
          std::copy_n(want.begin() + at, p.row_bytes(), own.begin() + at);
        }
      }
      same(l.launch(a, rows), own, p, what + ", lane " + show(lane) + " alone");
    }
    check_trace(l, a.lanes.trace, b, lane_of, what + ", a launch each");

    a.lanes.lane = -1;
    for (const LaneTable* table : {&even, &uneven, &starved}) {
      const std::string kind = what + (table == &even     ? ", cooperative"
                                       : table == &uneven ? ", cooperative, uneven"
                                                          : ", cooperative, lanes without a block");
      a.lanes.table = upload(l.bench, *table);
      a.lanes.trace = nullptr;
      same(l.launch(a, rows), want, p, kind);
      a.lanes.trace = empty_trace(l.bench);
      same(l.launch(a, rows), want, p, kind + ", traced");
      check_trace(l, a.lanes.trace, b, lane_of, kind);
    }
  });
}

}  // namespace

TEST_IN_PARTS("lanes.union: a launch per lane, and one launch divided among them, give the undivided launch's bytes") {
  Random random(40);
  for (const DType t : kFloatTypes)
    for (const Shape& s : kShapes)
      if (part.mine())
        check_lanes(random, Problem(random, t, s, static_cast<int>(random.integer(0, 15))),
                    static_cast<int>(random.integer(1, 8)));
}

TEST_IN_PARTS("lanes.flags: gather, scatter, bias and row scale in every combination, divided among three lanes") {
  Random random(41);
  for (const DType t : kFloatTypes)
    for (int flags = 0; flags < 16; ++flags)
      if (part.mine()) check_lanes(random, Problem(random, t, kShapes[flags % 5], flags), 3);
}

TEST("lanes.most: 64 lanes, one expert each, and lanes that have none") {
  Random random(42);
  const Problem p(random, DType::kBF16, {"64 experts", 64, 150, 2, 64, 96}, 3);
  const Buckets b = p.buckets(p.shape.tokens);
  std::vector<int32_t> lane_of(64);
  for (size_t e = 0; e < 64; ++e) lane_of[e] = static_cast<int32_t>(63 - e);
  std::vector<int32_t> few(64);
  for (size_t e = 0; e < 64; ++e) few[e] = e % 2 ? 63 : 31;
  on_all(p, [&](Loaded& l, const std::string& where) {
    GroupedLinearArgs a = l.args(p.shape.tokens, b, l.upload_rows(p.shape.tokens));
    const std::vector<uint8_t> want = l.launch(a, p.shape.slots());
    for (const auto& lanes : {lane_of, few}) {
      a.lanes.table = upload(l.bench, table_of(lanes, 64, random_shares(random, 64, 2)));
      a.lanes.trace = empty_trace(l.bench);
      same(l.launch(a, p.shape.slots()), want, p, where);
      check_trace(l, a.lanes.trace, b, lanes, where);
    }
    // Neighbours in the table, which one thread of a warp may look after, in lanes of their own.
    a.output = l.output(p.shape.slots());
    for (const int lane : {31, 63}) {
      a.lanes.lane = lane;
      grouped_linear(*l.bench.stream, p.desc, a);
    }
    same(l.bench.read(a.output, want.size()), want, p, where + ", a launch each");
  });
}

TEST("lanes.share: a cooperative lane keeps to its share of the units") {
  Random random(43);
  // On Hopper a block of this variant fills an SM, so a lane's SMs are at most its blocks.
  const Problem p(random, DType::kBF16, {"long", 8, 512, 2, 64, 2048}, 3);
  const Buckets b = p.buckets(p.shape.tokens);
  std::vector<int32_t> lane_of(8);
  for (size_t e = 0; e < 8; ++e) lane_of[e] = e % 2;
  on_all(p, [&](Loaded& l, const std::string& where) {
    const bool whole_units = l.bench.device.is_cpu() ||
                             grouped_linear_variant(l.bench.device, p.desc, p.shape.slots()).rfind("wgmma_", 0) == 0;
    GroupedLinearArgs a = l.args(p.shape.tokens, b, l.upload_rows(p.shape.tokens));
    for (const int32_t units : {1, 2}) {
      a.lanes.table = upload(l.bench, table_of(lane_of, 2, {units, 4 - units}));
      a.lanes.trace = empty_trace(l.bench);
      l.launch(a, p.shape.slots());
      check_trace(l, a.lanes.trace, b, lane_of, where);
      if (!whole_units) continue;
      const int first = units_of(l.bench, a.lanes.trace)[0], width = l.bench.stream->width();
      if (first > (width * units + 3) / 4)
        throw Failure(where + ": " + show(units) + "/4 of " + show(width) + " units, but " + show(first) + " at work");
    }
  });
}

TEST_IN_PARTS(
    "lanes.share_sm: on a stream that shares its SMs, whole, lane by lane and cooperative: a plain stream's bytes") {
  Random random(50);
  // Beside the other shapes: enough steps of k that every stage of a pipeline is filled again and again.
  std::vector<Shape> shapes(std::begin(kShapes), std::end(kShapes));
  shapes.push_back({"few rows, long k", 8, 20, 2, 1032, 264});
  shapes.push_back({"a full tile and one row more", 2, 97, 2, 264, 264});
  shapes.push_back({"hundreds of rows, long k", 2, 400, 1, 776, 328});
  shapes.push_back({"over 768 rows", 2, 1600, 1, 264, 136});
  int flags = -1;
  for (const DType t : kFloatTypes)
    for (const Shape& s : shapes)
      for (const Epilogue epilogue : {Epilogue::kIdentity, Epilogue::kSwiglu, Epilogue::kClampedSwiglu}) {
        ++flags;
        if (!part.mine()) continue;
        Problem p(random, t, s, flags & 15);
        p.desc.epilogue = epilogue;
        p.width = is_gated(epilogue) ? s.n / 2 : s.n;
        const Buckets b = p.buckets(s.tokens);
        const std::vector<int32_t> lane_of = random_lanes(random, s.experts, 3);
        const LaneTable table = table_of(lane_of, 3, random_shares(random, 3, 4));
        on_all(p, [&](Loaded& l, const std::string& where) {
          const auto shared = Stream::create(l.bench.device, 0, {.share_sm = true});
          GroupedLinearArgs a = l.args(s.tokens, b, l.upload_rows(s.tokens));
          const std::vector<uint8_t> want = l.launch(a, s.slots());
          const auto check_shared = [&](const std::vector<LaneView>& views, const char* how) {
            a.output = l.output(s.slots());
            l.bench.stream->synchronize();
            for (const LaneView& view : views) {
              a.lanes = view;
              grouped_linear(*shared, p.desc, a);
            }
            shared->synchronize();
            same(l.bench.read(a.output, want.size()), want, p, where + how);
          };
          const LaneTable* const on_device = upload(l.bench, table);
          uint32_t* const trace = empty_trace(l.bench);
          check_shared({LaneView{}}, ", SMs shared");
          check_shared({{on_device, 0}, {on_device, 1}, {on_device, 2}}, ", SMs shared, a launch per lane");
          check_shared({{on_device, -1, trace}}, ", SMs shared, cooperative");
          check_trace(l, trace, b, lane_of, where + ", SMs shared, cooperative");
        });
      }
}

// Without it the test above might compare a kernel with itself.
TEST("lanes.share_sm: another tile where a block would fill an SM, or most of its shared memory (CUDA)") {
  require_cuda();
  GroupedLinearDesc d;
  d.dtype = DType::kBF16, d.experts = 4, d.k = 256, d.n = 512;
  const auto name = [&](int64_t rows, bool share_sm) { return grouped_linear_variant(DeviceId{0}, d, rows, share_sm); };
  for_each_isa(DeviceId{0}, [&](const std::string& where) {
    GroupedLinearDesc large = d;  // too much to read for the matrix-vector path
    large.k = large.n = 8192;
    CHECK_EQ(grouped_linear_variant(DeviceId{0}, large, 8), "mma_16x32x128_s6");
    CHECK_EQ(grouped_linear_variant(DeviceId{0}, large, 8, true), "mma_16x32x128_s3");
    const bool hopper = where.ends_with("/90");
    for (const int64_t rows : {32, 400, 1200, 16000}) {
      CHECK_EQ(name(rows, false).rfind("wgmma_", 0) == 0, hopper);
      CHECK_EQ(name(rows, false) != name(rows, true), hopper || rows == 32);
    }
    CHECK_EQ(name(16000, true).ends_with("_pair"), hopper);
  });
}

TEST("lanes.trace: without a table all tiles are lane 0's") {
  Random random(44);
  for (const Shape& s : kShapes) {
    const Problem p(random, DType::kF16, s, 7);
    const Buckets b = p.buckets(s.tokens);
    on_all(p, [&](Loaded& l, const std::string& where) {
      GroupedLinearArgs a = l.args(s.tokens, b, l.upload_rows(s.tokens));
      const std::vector<uint8_t> want = l.launch(a, s.slots());
      a.lanes.trace = empty_trace(l.bench);
      same(l.launch(a, s.slots()), want, p, where);
      check_trace(l, a.lanes.trace, b, std::vector<int32_t>(static_cast<size_t>(s.experts), 0), where);
    });
  }
}

namespace {

/// Laid out for all of a problem's tokens, run with fewer: the bytes of the plain call that chooses its variant by the
/// same number of rows, and nothing beyond them.
void check_step(Random& random, const Problem& p) {
  const int64_t bound = p.shape.tokens, slots = p.shape.slots();
  for (const int64_t tokens : {int64_t{0}, int64_t{1}, bound / 3, bound - 1, bound}) {
    const Buckets b = p.buckets(tokens);
    const std::vector<int32_t> lane_of = random_lanes(random, p.desc.experts, 3);
    const LaneTable table = table_of(lane_of, 3, random_shares(random, 3, 4));
    on_all(p, [&](Loaded& l, const std::string& where) {
      const std::string what = where + ", step of " + show(tokens) + " tokens laid out for " + show(bound);
      const void* x = l.upload_rows(tokens);
      GroupedLinearArgs a = l.args(tokens, b, x);
      a.choice_rows = slots;
      std::vector<uint8_t> want(static_cast<size_t>(slots) * p.row_bytes(), 0xFF);
      if (tokens > 0) {
        const std::vector<uint8_t> rows = l.launch(a, b.slots());
        std::copy(rows.begin(), rows.end(), want.begin());
      }
      StepBlock block;
      block.x = x, block.tokens = static_cast<int32_t>(tokens);
      block.dense[1] = static_cast<int32_t>(tokens);
      a.step = static_cast<const StepBlock*>(l.bench.upload(&block, sizeof block));
      a.step_input = true;
      a.input = nullptr;
      if (p.desc.experts == 1 && !p.has_order()) a.offsets = a.step->dense;
      a.max_rows = slots;
      a.choice_rows = 0;
      same(l.launch(a, slots), want, p, what);
      a.lanes.table = upload(l.bench, table);
      a.lanes.trace = empty_trace(l.bench);
      same(l.launch(a, slots), want, p, what + ", cooperative");
      check_trace(l, a.lanes.trace, b, lane_of, what);
    });
  }
}

}  // namespace

TEST_IN_PARTS(
    "lanes.step: a step of fewer tokens than its bound gives the plain call's bytes and touches nothing beyond") {
  Random random(45);
  int flags = -1;
  for (const DType t : kFloatTypes)
    for (const Shape& s : kShapes) {
      ++flags;
      if (part.mine()) check_step(random, Problem(random, t, s, flags & 15));
    }
}

TEST("lanes.step: a dense product reads its number of rows from the block") {
  Random random(46);
  for (const DType t : kFloatTypes)
    for (const int64_t tokens : {1, 7, 48, 130, 400})
      check_step(random, Problem(random, t, {"dense", 1, tokens, 1, 136, 264}, tokens % 2 ? 4 : 0));
}

// On the CPU the kernel follows from an expert's own rows, so that there is nothing to choose.
TEST("lanes.choice: with the choice of more rows, a row has the bits that it has among them (CUDA)") {
  require_cuda();
  Random random(47);
  for (const DType t : kFloatTypes)
    for (const Shape& s : kShapes) {
      const Problem p(random, t, s, 3);
      for_each_isa(DeviceId{0}, [&](const std::string& where) {
        Loaded l(DeviceId{0}, p);
        const void* x = l.upload_rows(s.tokens);
        std::vector<uint8_t> all = l.launch(l.args(s.tokens, p.buckets(s.tokens), x), s.slots());
        for (const int64_t tokens : {int64_t{1}, s.tokens / 2}) {
          GroupedLinearArgs a = l.args(tokens, p.buckets(tokens), x);
          a.choice_rows = s.slots();
          const int64_t rows = tokens * s.top_k;
          const std::vector<uint8_t> some = l.launch(a, rows);
          same(some, {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(some.size())}, p, where + p.describe());
        }
      });
    }
}

TEST("lanes.mlp: whole MLPs by lanes, and in a step, give the plain MLP's bytes") {
  Random random(48);
  for (const DType t : kFloatTypes)
    for (const MlpKind kind : {MlpKind::kTwoLayer, MlpKind::kThreeLayer, MlpKind::kGated})
      for (const int64_t bound : {2, 40, 300}) {
        const int32_t top_k = 2;
        const int64_t tokens = bound - bound / 4, slots = bound * top_k;
        MlpDesc d;
        d.dtype = t, d.kind = kind, d.experts = 16, d.input = 72, d.hidden = 88, d.output = 80;
        d.activation = kind == MlpKind::kGated ? Epilogue::kSwiglu : Epilogue::kRelu;
        std::vector<int32_t> expert(static_cast<size_t>(tokens * top_k));
        for (auto& e : expert) e = static_cast<int32_t>(random.integer(0, d.experts - 1));
        const Buckets b = bucket(d.experts, expert);
        const std::vector<int32_t> lane_of = random_lanes(random, d.experts, 4);
        const LaneTable table = table_of(lane_of, 4, random_shares(random, 4, 3));
        std::array<HostArray, 3> weight;
        for (int i = 0; i < mlp_layers(kind); ++i) {
          const GroupedLinearDesc linear = mlp_layer(d, i);
          weight[static_cast<size_t>(i)] =
              HostArray::rounded(t, uniforms(random, d.experts * linear.n * linear.k, 0.2f));
        }
        const HostArray x = HostArray::rounded(t, uniforms(random, tokens * d.input));
        for (const DeviceId device : devices())
          for_each_isa(device, [&](const std::string& where) {
            Bench bench(device);
            MlpWeights w;
            for (int i = 0; i < mlp_layers(kind); ++i)
              w.weight[static_cast<size_t>(i)] = bench.upload(weight[static_cast<size_t>(i)]);
            MlpArgs a;
            a.x = bench.upload(x);
            a.tokens = tokens, a.top_k = top_k, a.choice_tokens = bound;
            a.offsets = bench.upload(b.offsets), a.order = bench.upload(b.order);
            a.workspace = bench.poisoned<uint8_t>(mlp_workspace_bytes(device, d, slots));
            const size_t bytes = static_cast<size_t>(slots * d.output) * size_of(t);
            const auto run = [&](const std::vector<LaneView>& views) {
              a.rows = bench.poisoned<uint8_t>(bytes);
              for (const LaneView& view : views) {
                a.lanes = view;
                grouped_mlp(*bench.stream, d, w, a);
              }
              return bench.read(a.rows, bytes);
            };
            const std::vector<uint8_t> want = run({{}});
            std::vector<LaneView> each;
            for (int lane = 0; lane < 4; ++lane) each.push_back({upload(bench, table), lane, nullptr});
            const LaneView together{each[0].table, -1, nullptr};
            const std::string what = where + ", " + name_of(t) + ", kind " + show(kind) + ", bound " + show(bound);
            if (run(each) != want) throw Failure(what + ": lane by lane");
            if (run({together}) != want) throw Failure(what + ": cooperative");
            StepBlock block;
            block.x = a.x, block.tokens = static_cast<int32_t>(tokens), block.dense[1] = block.tokens;
            a.step = static_cast<const StepBlock*>(bench.upload(&block, sizeof block));
            a.x = nullptr, a.tokens = bound, a.choice_tokens = 0;
            if (run({{}}) != want) throw Failure(what + ": in a step");
            if (run(each) != want) throw Failure(what + ": in a step, lane by lane");
            if (run({together}) != want) throw Failure(what + ": in a step, cooperative");
          });
      }
}

TEST("lanes.router: logits of a step with fewer tokens than its bound are the plain call's, and nothing beyond") {
  Random random(49);
  const std::pair<DType, DType> kinds[] = {{DType::kF32, DType::kF32},
                                           {DType::kBF16, DType::kBF16},
                                           {DType::kF16, DType::kF16},
                                           {DType::kBF16, DType::kF32},
                                           {DType::kF16, DType::kF32}};
  constexpr int experts = 37;
  for (const auto& [x_type, w_type] : kinds)
    for (const int64_t hidden : {33, 200})
      for (const int64_t bound : {4, 32, 300}) {
        const HostArray x = HostArray::rounded(x_type, uniforms(random, bound * hidden));
        const HostArray weight = HostArray::rounded(w_type, uniforms(random, experts * hidden, 0.2f));
        const std::vector<float> bias = uniforms(random, experts);
        for (const DeviceId device : devices())
          for_each_isa(device, [&](const std::string& where) {
            for (const int64_t tokens : {int64_t{0}, int64_t{1}, bound / 2, bound}) {
              Bench bench(device);
              RouterLogitsArgs a;
              a.x = bench.upload(x.data(), static_cast<size_t>(tokens * hidden) * size_of(x_type));
              a.x_dtype = x_type, a.weight_dtype = w_type;
              a.weight = bench.upload(weight);
              a.bias = tokens % 2 ? bench.upload(bias) : nullptr;
              a.tokens = tokens, a.hidden = hidden, a.experts = experts, a.choice_tokens = bound;
              a.logits = bench.poisoned<float>(static_cast<size_t>(bound * experts));
              router_logits(*bench.stream, a);
              const size_t bytes = static_cast<size_t>(bound * experts) * sizeof(float);
              const std::vector<uint8_t> want = bench.read(static_cast<const void*>(a.logits), bytes);
              StepBlock block;
              block.x = a.x, block.tokens = static_cast<int32_t>(tokens), block.dense[1] = block.tokens;
              a.step = static_cast<const StepBlock*>(bench.upload(&block, sizeof block));
              a.x = nullptr, a.tokens = bound, a.choice_tokens = 0;
              a.logits = bench.poisoned<float>(static_cast<size_t>(bound * experts));
              router_logits(*bench.stream, a);
              if (bench.read(static_cast<const void*>(a.logits), bytes) != want)
                throw Failure(where + ": " + name_of(x_type) + " by " + name_of(w_type) + ", " + show(tokens) + " of " +
                              show(bound) + " tokens, hidden " + show(hidden));
            }
          });
      }
}
