// Strategies and recorded steps against fused eager ones: whatever plan runs a layer's experts, on whatever streams,
// eager or recorded, with its lanes changed midway, the output, choice, weights and counts are the same bytes.
#include <optional>

#include "layer_data.h"

using namespace nexus;
using namespace nexus::test;

namespace {

int one_of(Random& random, std::initializer_list<int> values) {
  return *(values.begin() + random.integer(0, static_cast<int64_t>(values.size()) - 1));
}
bool coin(Random& random) { return random.integer(0, 1) == 1; }

struct RandomLayer {
  LayerDesc desc;
  Options options;
};

RandomLayer random_layer(Random& random) {
  RandomLayer made;
  LayerDesc& d = made.desc;
  MlpDesc& m = d.experts;
  m.dtype = kFloatTypes[random.integer(0, 2)];
  m.kind = static_cast<MlpKind>(random.integer(0, 2));
  m.activation = m.kind == MlpKind::kGated        ? Epilogue::kSwiglu
                 : m.kind == MlpKind::kThreeLayer ? Epilogue::kRelu
                                                  : Epilogue::kGelu;
  m.experts = one_of(random, {1, 2, 3, 5, 8, 13, 16, 33});
  m.input = one_of(random, {8, 24, 33, 40, 64, 128});
  m.hidden = one_of(random, {7, 16, 33, 52, 64, 128});
  m.output = coin(random) ? m.input : one_of(random, {8, 31, 64, 96});
  d.router.experts = m.experts;
  d.router.top_k = static_cast<int>(random.integer(1, std::min(4, m.experts)));
  if (coin(random)) d.router.normalize = Normalize::kSumPlusEpsilon;
  d.router_dtype = coin(random) ? DType::kF32 : m.dtype;
  d.scale_input = random.integer(0, 3) == 0;
  if (random.integer(0, 4) == 0)
    d.combine = CombineMode::kConcat;
  else if (coin(random))
    d = with_shared(d, coin(random));
  made.options = {.biases = coin(random), .router_bias = coin(random), .select_bias = coin(random)};
  return made;
}

int64_t random_tokens(Random& random) {
  if (coin(random)) return one_of(random, {0, 1, 2, 3, 5, 7, 13, 17, 31, 61, 97, 113});
  return random.integer(0, 130);
}

/// A plan and what it was made of.
struct TestPlan {
  ExecPlan plan;
  std::vector<int> slices;  ///< units by lane where each lane has a slice of its own, else empty
  std::string what;
};

std::vector<int32_t> random_lanes(Random& random, int experts, int lanes) {
  std::vector<int32_t> lane_of(static_cast<size_t>(experts));
  for (auto& l : lane_of) l = static_cast<int32_t>(random.integer(0, lanes - 1));
  return lane_of;
}
std::vector<int32_t> random_shares(Random& random, int lanes) {
  std::vector<int32_t> shares;
  if (coin(random))
    for (int l = 0; l < lanes; ++l) shares.push_back(static_cast<int32_t>(random.integer(1, 5)));
  return shares;
}

/// Sizes of `count` slices of a device, as many as fit; together they are all of it, so that one has the remainder.
std::vector<int> random_slices(Random& random, const PartitionInfo& info, int count) {
  const int least = (info.minimum + info.granularity - 1) / info.granularity * info.granularity;
  const int slices = std::min(count, info.units / least);
  std::vector<int> units;
  int left = info.units;
  for (int i = 0; i + 1 < slices; ++i) {
    const int more = (left - least * (slices - i)) / info.granularity;
    units.push_back(least + info.granularity * static_cast<int>(random.integer(0, more)));
    left -= units.back();
  }
  units.push_back(left);
  std::rotate(units.begin(), units.begin() + random.integer(0, slices - 1), units.end());
  return units;
}

TestPlan random_plan(Random& random, const std::shared_ptr<Stream>& stream, const LayerDesc& d, Strategy strategy) {
  TestPlan made;
  ExecPlan& plan = made.plan;
  plan.strategy = strategy;
  const DeviceId device = stream->device();
  const bool forks = strategy == Strategy::kTiered || strategy == Strategy::kStreams;
  int lanes = static_cast<int>(random.integer(1, 6));
  static const char* const names[] = {"fused", "tiered", "streams", "cooperative"};
  made.what = names[static_cast<int>(strategy)];

  std::shared_ptr<Partition> partition;
  if (strategy == Strategy::kTiered) {
    const PartitionInfo info = partition_info(device);
    if (info.enforcement == Enforcement::kHardware || info.enforcement == Enforcement::kCooperative) {
      made.slices = random_slices(random, info, lanes + 1);  // the last one for the shared expert
      lanes = std::min(lanes, static_cast<int>(made.slices.size()));
      partition = Partition::create(device, made.slices);
    }
  }
  if (strategy != Strategy::kFused) {
    plan.lanes = LaneSet::create(stream, random_lanes(random, d.router.experts, lanes), lanes,
                                 random_shares(random, lanes), true);
    made.what += " " + show(lanes) + " lanes";
  }
  for (int l = 0; forks && l < lanes; ++l)
    plan.streams.push_back(partition != nullptr ? partition->create_stream(l, 0) : Stream::create(device));
  if (coin(random)) {
    plan.shared_stream = partition != nullptr ? partition->create_stream(static_cast<int>(made.slices.size()) - 1, 0)
                                              : Stream::create(device);
    made.what += ", shared beside";
  }
  if (partition != nullptr) made.what += ", sliced";
  return made;
}

/// What a lane set's trace says, and clears: for each lane the units that computed tiles of it.
std::vector<std::vector<uint32_t>> take_trace(const std::shared_ptr<Stream>& stream, LaneSet& lanes) {
  const size_t words = static_cast<size_t>(lanes.lanes()) * kTraceWords;
  auto host = HostBuffer::allocate(stream->device(), words * sizeof(uint32_t));
  lanes.take_trace(stream, static_cast<uint32_t*>(host->data()));
  stream->synchronize();
  const auto* bits = static_cast<const uint32_t*>(host->data());
  std::vector<std::vector<uint32_t>> trace;
  for (int l = 0; l < lanes.lanes(); ++l) trace.emplace_back(bits + l * kTraceWords, bits + (l + 1) * kTraceWords);
  return trace;
}

/// The lanes that had rows worked, no other did, and lanes with slices of their own kept apart.
void check_trace(const std::vector<std::vector<uint32_t>>& trace, const std::vector<int32_t>& lane_of,
                 const std::vector<int32_t>& counts, bool apart, const std::string& where) {
  std::vector<uint32_t> seen(kTraceWords, 0);
  for (size_t l = 0; l < trace.size(); ++l) {
    bool rows = false, worked = false;
    for (size_t e = 0; e < lane_of.size(); ++e) rows = rows || (lane_of[e] == static_cast<int32_t>(l) && counts[e] > 0);
    for (size_t w = 0; w < kTraceWords; ++w) {
      worked = worked || trace[l][w] != 0;
      if (apart && (trace[l][w] & seen[w]) != 0) throw Failure(where + ": lane " + show(l) + " ran in another's slice");
      seen[w] |= trace[l][w];
    }
    if (rows != worked)
      throw Failure(where + ": lane " + show(l) + (rows ? " has rows and left no trace" : " has no rows and a trace"));
  }
}

/// Graph or eager, one step by a plan.
struct Runner {
  std::shared_ptr<Layer> layer;
  std::shared_ptr<LayerGraph> graph;  // null: eager
  void operator()(const std::shared_ptr<Stream>& stream, const StepArgs& args) const {
    if (graph == nullptr)
      layer->enqueue(stream, args);
    else
      layer->replay(stream, *graph, args);
  }
};

/// One plan, three steps: before and after its lanes changed, and on another stream.
void check_plan_bits(Random& random, Bench& bench, const std::shared_ptr<Layer>& layer, Strategy strategy) {
  const LayerDesc& d = layer->desc();
  const bool given = random.integer(0, 2) == 0, recorded = coin(random), ringed = coin(random);
  TestPlan made = random_plan(random, bench.stream, d, strategy);
  const std::shared_ptr<LaneSet>& lanes = made.plan.lanes;
  std::vector<int32_t> lane_of;
  if (lanes != nullptr) {
    lane_of = random_lanes(random, d.router.experts, lanes->lanes());
    lanes->update(bench.stream, lane_of, random_shares(random, lanes->lanes()));
  }
  const auto ring = ringed ? CountRing::create(bench.device, d.router.experts, 4) : nullptr;
  const Batch first(random, bench, d, random_tokens(random), given);
  const int64_t bucket = token_bucket(first.tokens);
  // Another number of tokens of the same bucket, for which the graph serves as well.
  int64_t again = first.tokens;
  while (again > 0 && token_bucket(again - 1) == bucket && coin(random)) --again;
  const Batch second(random, bench, d, again, given);

  Runner run{layer, nullptr};
  if (recorded) run.graph = layer->capture(bench.stream, bucket, given, &made.plan, ring.get());
  uint64_t next = 0;
  const auto step = [&](const std::shared_ptr<Stream>& stream, const Batch& batch, const char* when) {
    const std::string where = bench.device.name() + " " + name_of(d.experts.dtype) + " " + show(d.router.experts) +
                              " experts top " + show(d.router.top_k) + ", " + made.what +
                              (recorded ? ", recorded, " : ", eager, ") + show(batch.tokens) + " tokens, " + when;
    StepMemory fused(bench, d, batch), planned(bench, d, batch);
    layer->enqueue(bench.stream, fused.args());
    const Outcome want = fused.read();
    run(stream, planned.args(&made.plan, ring.get()));
    stream->synchronize();
    check_same(planned.read(), want, where);
    if (lanes != nullptr)
      check_trace(take_trace(bench.stream, *lanes), lane_of, want.counts,
                  !made.slices.empty() && strategy == Strategy::kTiered, where);
    CHECK_EQ(planned.record().phases, !recorded);
    CHECK(planned.record().marks[0]->elapsed_ms(*planned.record().marks[4]) >= 0);
    if (ring != nullptr) {
      const CountRing::Reading reading = ring->read(next);
      if (reading.steps.size() != 1 || reading.tokens[0] != batch.tokens || reading.counts != want.counts)
        throw Failure(where + ": the ring has other counts");
      next = reading.next;
    }
  };
  step(bench.stream, first, "as made");
  if (lanes != nullptr) {
    lane_of = random_lanes(random, d.router.experts, lanes->lanes());
    lanes->update(bench.stream, lane_of, random_shares(random, lanes->lanes()));
  }
  step(bench.stream, second, "migrated");
  if (random.integer(0, 3) == 0) step(Stream::create(bench.device), first, "on another stream");
}

}  // namespace

TEST("strategy: random plans of random layers give the bits of fused eager steps") {
  for (const DeviceId device : devices()) {
    Random random(900);
    for (int l = 0; l < 64; ++l) {
      const RandomLayer made = random_layer(random);
      Bench bench(device);
      const auto layer =
          Layer::create(made.desc, upload(bench.stream, random_weights(random, made.desc, made.options)), device);
      for (const Strategy s : {Strategy::kTiered, Strategy::kStreams, Strategy::kCooperative, Strategy::kFused})
        check_plan_bits(random, bench, layer, s);
    }
  }
}

namespace {

/// A layer of moderate size with all parts, and a plan for it.
struct Fixture {
  Bench bench;
  LayerDesc desc;
  HostWeights host;
  std::shared_ptr<Layer> layer;

  explicit Fixture(DeviceId device, uint64_t seed, DType t = DType::kF32) : bench(device) {
    Random random(seed);
    desc = with_shared(basic(t, MlpKind::kGated, Epilogue::kSwiglu), true);
    host = random_weights(random, desc, {});
    layer = Layer::create(desc, upload(bench.stream, host), device);
  }
  ExecPlan plan(Strategy strategy, int lanes = 3) const {
    ExecPlan plan;
    plan.strategy = strategy;
    if (strategy == Strategy::kFused) return plan;
    std::vector<int32_t> lane_of;
    for (int e = 0; e < desc.router.experts; ++e) lane_of.push_back(e % lanes);
    plan.lanes = LaneSet::create(bench.stream, lane_of, lanes, {}, true);
    if (strategy != Strategy::kCooperative)
      for (int l = 0; l < lanes; ++l) plan.streams.push_back(Stream::create(bench.device));
    return plan;
  }
  Outcome eager(const Batch& batch) {
    StepMemory memory(bench, desc, batch);
    layer->enqueue(bench.stream, memory.args());
    return memory.read();
  }
};

std::optional<Hold> hold(Stream& stream) {
  std::optional<Hold> held;
  if (stream.device().is_cpu()) held.emplace(stream);
  return held;
}

}  // namespace

TEST("strategy: 64 replays of differing batch sizes are queued without waiting") {
  for (const DeviceId device : devices())
    for (const bool given : {false, true}) {
      Random random(910);
      Fixture f(device, 911, DType::kBF16);
      const ExecPlan plan = f.plan(Strategy::kStreams);
      std::vector<std::shared_ptr<LayerGraph>> graphs;
      for (const int64_t bucket : {0, 1, 2, 4, 8, 16, 24, 32, 48})
        graphs.push_back(f.layer->capture(f.bench.stream, bucket, given, &plan, nullptr));
      std::vector<Batch> batches;
      std::vector<Outcome> want;
      std::vector<StepMemory> memory;
      for (int i = 0; i < 64; ++i) {
        batches.emplace_back(random, f.bench, f.desc, random.integer(0, 48), given);
        want.push_back(f.eager(batches.back()));
        memory.emplace_back(f.bench, f.desc, batches.back());
      }
      {
        const auto held = hold(*f.bench.stream);
        for (size_t i = 0; i < 64; ++i)
          for (const auto& graph : graphs)
            if (graph->bucket() == token_bucket(batches[i].tokens))
              f.layer->replay(f.bench.stream, *graph, memory[i].args());
      }
      for (size_t i = 0; i < 64; ++i)
        check_same(memory[i].read(), want[i], device.name() + " replay " + show(i) + " of " + show(batches[i].tokens));
    }
}

TEST("strategy: replays that alternate between streams, among eager steps, keep their order") {
  for (const DeviceId device : devices()) {
    Random random(920);
    Fixture f(device, 921);
    const ExecPlan plan = f.plan(Strategy::kCooperative);
    const std::shared_ptr<Stream> other = Stream::create(device);
    const auto reached = Event::create(device);
    const auto graph = f.layer->capture(f.bench.stream, 16, false, &plan, nullptr);
    const Batch batch(random, f.bench, f.desc, 13, false);
    const Outcome want = f.eager(batch);
    std::vector<StepMemory> memory;
    for (int i = 0; i < 12; ++i) memory.emplace_back(f.bench, f.desc, batch);
    f.bench.stream->synchronize();
    {
      const auto held = hold(*f.bench.stream);
      for (size_t i = 0; i < 12; ++i) {
        const auto& stream = i % 2 == 0 ? f.bench.stream : other;
        if (i % 3 == 0)
          f.layer->enqueue(stream, memory[i].args(&plan));
        else
          f.layer->replay(stream, *graph, memory[i].args());
        if (i == 1) reached->record(*other);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      if (held) CHECK(!reached->ready());  // a replay waits for the step before it, whose workspace it shares
    }
    other->synchronize();
    for (auto& m : memory) check_same(m.read(), want, device.name());
  }
}

TEST("strategy: a graph from before the workspace grew replays as before, and pays for what only it holds") {
  for (const DeviceId device : devices()) {
    Random random(930);
    Fixture f(device, 931);
    const ExecPlan plan = f.plan(Strategy::kTiered);
    const Batch small(random, f.bench, f.desc, 7, false), large(random, f.bench, f.desc, 200, false);
    const Outcome want = f.eager(small);
    const auto graph = f.layer->capture(f.bench.stream, 8, false, &plan, nullptr);
    const int64_t before = graph->bytes();
    const auto held = static_cast<int64_t>(f.layer->workspace_bytes());
    const Outcome want_large = f.eager(large);
    CHECK(static_cast<int64_t>(f.layer->workspace_bytes()) > held);
    CHECK_EQ(graph->bytes(), before + held);
    CHECK(graph->nodes() > 0 && graph->capture_ms() >= 0);
    for (int i = 0; i < 3; ++i) {
      StepMemory recorded(f.bench, f.desc, small), eager(f.bench, f.desc, large);
      f.layer->replay(f.bench.stream, *graph, recorded.args());
      f.layer->enqueue(f.bench.stream, eager.args(&plan));
      check_same(recorded.read(), want, device.name() + " old graph");
      check_same(eager.read(), want_large, device.name() + " eager after it");
    }
    const auto later = f.layer->capture(f.bench.stream, 8, false, &plan, nullptr);
    StepMemory recorded(f.bench, f.desc, small);
    f.layer->replay(f.bench.stream, *later, recorded.args());
    check_same(recorded.read(), want, device.name() + " new graph");
  }
}

TEST("strategy: layer, graph, plan, slices and ring are dropped with steps queued, and leave nothing behind") {
  for (const DeviceId device : devices()) {
    Random random(940);
    Bench owner(device);
    std::vector<Outcome> want;
    std::vector<StepMemory> memory;
    std::optional<Fixture> f(std::in_place, device, 941);
    const Batch batch(random, f->bench, f->desc, 13, false);
    const Outcome expected = f->eager(batch);
    for (int i = 0; i < 4; ++i) memory.emplace_back(f->bench, f->desc, batch);
    f->bench.stream->synchronize();
    const MemoryStats start = memory_stats(device);  // weights and a workspace are live
    const size_t layer_bytes = f->layer->weight_bytes() + f->layer->workspace_bytes();
    std::shared_ptr<LayerGraph> graph;
    {
      ExecPlan plan = f->plan(Strategy::kTiered, 2);
      if (const PartitionInfo info = partition_info(device); info.enforcement <= Enforcement::kCooperative) {
        const auto partition = Partition::create(device, random_slices(random, info, 2));
        plan.streams = {partition->create_stream(0, 0), partition->create_stream(1, 0)};
      }
      auto ring = CountRing::create(device, f->desc.router.experts, 8);
      graph = f->layer->capture(f->bench.stream, 16, false, &plan, ring.get());
      const auto held = hold(*f->bench.stream);
      for (size_t i = 0; i < 4; ++i) {
        if (i % 2 == 0)
          f->layer->replay(f->bench.stream, *graph, memory[i].args());
        else
          f->layer->enqueue(f->bench.stream, memory[i].args(&plan, ring.get()));
      }
      f->layer->release();
      const StepArgs args = memory[0].args();
      expect_error(ErrorCode::kDisposed, [&] { f->layer->replay(f->bench.stream, *graph, args); });
      expect_error(ErrorCode::kDisposed, [&] { f->layer->capture(f->bench.stream, 16, false, nullptr, nullptr); });
      CHECK(graph->bytes() > 0);
      f->layer.reset();
      graph.reset();
      ring.reset();
      plan = {};
    }
    for (auto& m : memory) check_same(m.read(), expected, device.name());
    f->bench.stream->synchronize();
    // Slices and what else is not memory of the stream go on a thread of their own.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (memory_stats(device).live_bytes > start.live_bytes - static_cast<int64_t>(layer_bytes) &&
           std::chrono::steady_clock::now() < deadline)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK_EQ(memory_stats(device).live_bytes, start.live_bytes - static_cast<int64_t>(layer_bytes));
  }
}

TEST("strategy: a steady step allocates nothing, eager or recorded") {
  for (const DeviceId device : devices())
    for (const Strategy s : {Strategy::kFused, Strategy::kTiered, Strategy::kCooperative}) {
      Random random(950);
      Fixture f(device, 951);
      const ExecPlan plan = f.plan(s);
      const Batch batch(random, f.bench, f.desc, 13, false);
      StepMemory eager(f.bench, f.desc, batch), recorded(f.bench, f.desc, batch);
      f.layer->enqueue(f.bench.stream, eager.args(&plan));
      f.bench.stream->synchronize();
      const MemoryStats before_capture = memory_stats(device);
      const auto graph = f.layer->capture(f.bench.stream, 16, false, &plan, nullptr);
      CHECK_EQ(memory_stats(device).live_buffers, before_capture.live_buffers);
      f.layer->replay(f.bench.stream, *graph, recorded.args());
      f.bench.stream->synchronize();
      reset_peak(device);
      const MemoryStats before = memory_stats(device);
      for (int i = 0; i < 10; ++i) {
        f.layer->enqueue(f.bench.stream, eager.args(&plan));
        f.layer->replay(f.bench.stream, *graph, recorded.args());
      }
      const MemoryStats after = memory_stats(device);
      CHECK_EQ(after.live_buffers, before.live_buffers);
      CHECK_EQ(after.peak_bytes, before.live_bytes);
      f.bench.stream->synchronize();
    }
}

namespace {

/// A lane set of which one lane's view fails while it is told to.
class FailingLanes final : public LaneSet {
 public:
  FailingLanes(std::shared_ptr<LaneSet> inner, int lane) : inner_(std::move(inner)), lane_(lane) {}
  void update(const std::shared_ptr<Stream>& s, std::vector<int32_t> lane_of, std::vector<int32_t> shares) override {
    inner_->update(s, std::move(lane_of), std::move(shares));
  }
  LaneView view(int lane) const override {
    if (failing && lane == lane_) throw Error(ErrorCode::kDevice, "planted");
    return inner_->view(lane);
  }
  std::shared_ptr<LaneSet> copy(const std::shared_ptr<Stream>& s) const override { return inner_->copy(s); }
  int lanes() const override { return inner_->lanes(); }
  int experts() const override { return inner_->experts(); }
  bool traced() const override { return inner_->traced(); }
  void record_use(const std::shared_ptr<Stream>& s) override { inner_->record_use(s); }
  void take_trace(const std::shared_ptr<Stream>& s, uint32_t* out) override { inner_->take_trace(s, out); }
  bool failing = true;

 private:
  std::shared_ptr<LaneSet> inner_;
  int lane_;
};

}  // namespace

TEST("strategy: a step that fails at its second lane leaves streams joined and the layer in use") {
  for (const DeviceId device : devices()) {
    Random random(960);
    Fixture f(device, 961);
    ExecPlan plan = f.plan(Strategy::kStreams);
    const auto lanes = std::make_shared<FailingLanes>(plan.lanes, 1);
    plan.lanes = lanes;
    const Batch batch(random, f.bench, f.desc, 13, false);
    const Outcome want = f.eager(batch);
    StepMemory failed(f.bench, f.desc, batch), eager(f.bench, f.desc, batch), recorded(f.bench, f.desc, batch);
    f.bench.stream->synchronize();
    {
      const auto held = hold(*plan.streams[0]);
      CHECK(expect_error(ErrorCode::kDevice, [&] { f.layer->enqueue(f.bench.stream, failed.args(&plan)); }) ==
            "planted");
      const auto done = Event::create(device);
      done->record(*f.bench.stream);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      if (held) CHECK(!done->ready());  // the lane that was launched is joined
    }
    expect_error(ErrorCode::kGraphCapture, [&] { f.layer->capture(f.bench.stream, 16, false, &plan, nullptr); });
    CHECK(!f.bench.stream->capturing());
    for (const auto& s : plan.streams) CHECK(!s->capturing());
    lanes->failing = false;
    f.layer->enqueue(f.bench.stream, eager.args(&plan));
    const auto graph = f.layer->capture(f.bench.stream, 16, false, &plan, nullptr);
    f.layer->replay(f.bench.stream, *graph, recorded.args());
    check_same(eager.read(), want, device.name() + " eager");
    check_same(recorded.read(), want, device.name() + " recorded");
  }
}

TEST("strategy: a layer whose last stream failed goes on on another") {
  Random random(970);
  const DeviceId cpu;  // a CUDA device that failed takes all of its streams with it
  Fixture f(cpu, 971);
  const Batch batch(random, f.bench, f.desc, 13, false);
  const Outcome want = f.eager(batch);
  const auto broken = Stream::create(cpu);
  StepMemory lost(f.bench, f.desc, batch);
  f.layer->enqueue(broken, lost.args());
  broken->enqueue([] { throw Error(ErrorCode::kDevice, "planted"); });
  expect_error(ErrorCode::kDevice, [&] { broken->synchronize(); });
  check_same(f.eager(batch), want, "after a failed stream");
}

TEST("strategy: plans that do not fit the layer are refused by name") {
  for (const DeviceId device : devices()) {
    Random random(980);
    Fixture f(device, 981);
    const Batch batch(random, f.bench, f.desc, 3, false);
    StepMemory memory(f.bench, f.desc, batch);
    const auto refused = [&](const std::string& word, Strategy s, const std::function<void(ExecPlan&)>& spoil,
                             CountRing* ring = nullptr) {
      ExecPlan plan = f.plan(s);
      spoil(plan);
      const auto expect_word = [&](const std::function<void()>& call) {
        const std::string message = expect_error(ErrorCode::kInvalidArgument, call);
        if (message.find(word) == std::string::npos)
          throw Failure("expected a message with '" + word + "', got: " + message);
      };
      expect_word([&] { f.layer->enqueue(f.bench.stream, memory.args(&plan, ring)); });
      expect_word([&] { f.layer->capture(f.bench.stream, 4, false, &plan, ring); });
    };
    const auto lane_set = [&](int experts) {
      return LaneSet::create(f.bench.stream, std::vector<int32_t>(static_cast<size_t>(experts), 0), 3, {}, false);
    };
    refused("plan.strategy", Strategy::kTiered, [](ExecPlan& p) { p.strategy = static_cast<Strategy>(7); });
    refused("plan.lanes", Strategy::kTiered, [](ExecPlan& p) { p.lanes = nullptr; });
    refused("plan.lanes", Strategy::kCooperative, [](ExecPlan& p) { p.lanes = nullptr; });
    refused("plan.lanes", Strategy::kFused, [&](ExecPlan& p) { p.lanes = lane_set(7); });
    refused("7 experts, got 6", Strategy::kTiered, [&](ExecPlan& p) { p.lanes = lane_set(6); });
    refused("3 lanes, got 2", Strategy::kStreams, [](ExecPlan& p) { p.streams.pop_back(); });
    refused("plan.streams", Strategy::kCooperative, [&](ExecPlan& p) { p.streams = {f.bench.stream}; });
    refused("plan.streams[1]", Strategy::kStreams, [](ExecPlan& p) { p.streams[1] = nullptr; });
    const auto ring = CountRing::create(device, 6, 4);
    refused("ring", Strategy::kFused, [](ExecPlan&) {}, ring.get());
    if (device.is_cuda()) {
      const auto foreign = Stream::create(DeviceId{-1});
      refused("plan.streams[2]", Strategy::kTiered, [&](ExecPlan& p) { p.streams[2] = foreign; });
      refused("plan.shared_stream", Strategy::kFused, [&](ExecPlan& p) { p.shared_stream = foreign; });
    }
    CHECK(f.layer->workspace_bytes() == 0);
    check_same(f.eager(batch), f.eager(batch), "still in use");
  }
}

TEST("strategy: replay refuses what the graph was not recorded for") {
  for (const DeviceId device : devices()) {
    Random random(990);
    Fixture f(device, 991), g(device, 992);
    const Batch batch(random, f.bench, f.desc, 4, false), logits(random, f.bench, f.desc, 4, true);
    const Batch large(random, f.bench, f.desc, 5, false), none(random, f.bench, f.desc, 0, false);
    StepMemory own(f.bench, f.desc, batch), given(f.bench, f.desc, logits), five(f.bench, f.desc, large),
        zero(f.bench, f.desc, none);
    const auto by_own = f.layer->capture(f.bench.stream, 4, false, nullptr, nullptr);
    const auto by_logits = f.layer->capture(f.bench.stream, 4, true, nullptr, nullptr);
    const auto refused = [&](const std::string& word, const std::function<void()>& call) {
      const std::string message = expect_error(ErrorCode::kInvalidArgument, call);
      if (message.find(word) == std::string::npos)
        throw Failure("expected a message with '" + word + "', got: " + message);
    };
    refused("graph", [&] { g.layer->replay(f.bench.stream, *by_own, own.args()); });
    refused("tokens", [&] { f.layer->replay(f.bench.stream, *by_own, five.args()); });
    refused("logits", [&] { f.layer->replay(f.bench.stream, *by_own, given.args()); });
    refused("logits", [&] { f.layer->replay(f.bench.stream, *by_logits, own.args()); });
    refused("bucket", [&] { f.layer->capture(f.bench.stream, 5, false, nullptr, nullptr); });
    refused("tokens", [&] { f.layer->capture(f.bench.stream, -1, false, nullptr, nullptr); });
    refused("stream", [&] { f.layer->replay(nullptr, *by_own, own.args()); });
    CHECK(by_logits->with_logits() && !by_own->with_logits());
    f.layer->replay(f.bench.stream, *by_logits, zero.args());  // no tokens: no logits either
    CHECK(zero.read().counts == std::vector<int32_t>(7, 0));
    f.layer->replay(f.bench.stream, *by_own, own.args());
    check_same(own.read(), f.eager(batch), device.name());
  }
}
