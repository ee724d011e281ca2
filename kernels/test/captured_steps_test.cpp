// Steps of layers in a graph of somebody else's: they give the eager steps' bytes at every launch, whatever the layers
// do beside it, and the graph holds what they need for as long as it lives.
#include <optional>

#include "layer_data.h"

using namespace nexus;
using namespace nexus::test;

namespace {

/// As wide at its output as at its input.
LayerDesc chained() { return with_shared(basic(DType::kF32, MlpKind::kGated, Epilogue::kSwiglu), true); }
LayerDesc narrow() {
  LayerDesc d = basic(DType::kBF16, MlpKind::kGated, Epilogue::kSwiglu);
  d.experts.input = d.experts.output = 256;
  d.experts.hidden = 128;
  return d;
}

std::shared_ptr<Layer> make_layer(Bench& bench, const LayerDesc& desc, uint64_t seed) {
  Random random(seed);
  return Layer::create(desc, upload(bench.stream, random_weights(random, desc, {})), bench.device);
}

ExecPlan make_plan(const Bench& bench, const LayerDesc& desc, Strategy strategy, int lanes = 3) {
  ExecPlan plan;
  plan.strategy = strategy;
  plan.shared_stream = Stream::create(bench.device);
  if (strategy == Strategy::kFused) return plan;
  std::vector<int32_t> lane_of;
  for (int e = 0; e < desc.router.experts; ++e) lane_of.push_back(e % lanes);
  plan.lanes = LaneSet::create(bench.stream, lane_of, lanes, {}, true);
  for (int l = 0; strategy != Strategy::kCooperative && l < lanes; ++l)
    plan.streams.push_back(Stream::create(bench.device));
  return plan;
}

/// What one step reads and writes, of a number of tokens that does not change.
struct StepIo {
  StepArgs args;
  size_t size = 0, slots = 0;
  DType dtype = DType::kF32;

  StepIo(Bench& bench, const LayerDesc& d, const void* x, int64_t tokens, const float* logits = nullptr)
      : size(output_size(d, tokens)), slots(static_cast<size_t>(tokens * d.router.top_k)), dtype(d.experts.dtype) {
    args.x = x;
    args.tokens = tokens;
    args.logits = logits;
    args.out = bench.poisoned(dtype, size);
    args.ids_out = bench.poisoned<int32_t>(slots);
    args.weights_out = bench.poisoned<float>(slots);
  }
  /// Output, experts and weights, in bytes.
  std::vector<uint8_t> read(Bench& bench) const {
    auto all = bench.read(static_cast<const void*>(args.out), size * size_of(dtype));
    for (const void* part : {static_cast<const void*>(args.ids_out), static_cast<const void*>(args.weights_out)}) {
      const auto bytes = bench.read(part, slots * 4);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }
};

void require_same(const std::vector<uint8_t>& got, const std::vector<uint8_t>& want, const std::string& where) {
  if (got != want) throw Failure(where + ": not the bytes of eager steps");
}

void write(Bench& bench, void* to, const HostArray& from) {
  auto staging = HostBuffer::allocate(bench.device, from.bytes.size());
  std::memcpy(staging->data(), from.data(), from.bytes.size());
  bench.stream->copy(to, staging->data(), from.bytes.size());
  bench.stream->synchronize();
}

HostArray some(Random& random, const LayerDesc& d, int64_t tokens) {
  return HostArray::rounded(d.experts.dtype, random.normals(static_cast<size_t>(tokens * d.experts.input)));
}

/// Whether anything ran by a lane set's table since the last call.
bool take_traced(Bench& bench, LaneSet& lanes) {
  const size_t words = static_cast<size_t>(lanes.lanes()) * kTraceWords;
  auto host = HostBuffer::allocate(bench.device, words * sizeof(uint32_t));
  const auto* bits = static_cast<const uint32_t*>(host->data());
  lanes.take_trace(bench.stream, static_cast<uint32_t*>(host->data()));
  bench.stream->synchronize();
  return std::any_of(bits, bits + words, [](uint32_t word) { return word != 0; });
}

/// Releases wait for launches on threads of their own.
void wait_for_bytes(DeviceId device, int64_t want) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (memory_stats(device).live_bytes != want && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK_EQ(memory_stats(device).live_bytes, want);
}

}  // namespace

TEST("captured steps: two layers, three steps, one graph: the eager bytes at each of 100 launches, by every strategy") {
  for (const DeviceId device : devices())
    for (const Strategy strategy : {Strategy::kFused, Strategy::kTiered, Strategy::kStreams, Strategy::kCooperative})
      for (const int64_t tokens : {1, 13}) {
        Random random(1000 + static_cast<uint64_t>(tokens));
        Bench bench(device);
        // One token of a plain layer: the way of few launches, where a device has it.
        const LayerDesc d = tokens == 1 ? narrow() : chained();
        const auto a = make_layer(bench, d, 1), b = make_layer(bench, d, 2);
        const ExecPlan plan = make_plan(bench, d, strategy);
        void* const x = bench.upload(some(random, d, tokens));
        const float* logits = bench.upload(random.normals(static_cast<size_t>(tokens * d.router.experts)));
        StepIo first(bench, d, x, tokens, logits), second(bench, d, first.args.out, tokens),
            third(bench, d, second.args.out, tokens);
        StepIo one(bench, d, x, tokens, logits), two(bench, d, one.args.out, tokens),
            three(bench, d, two.args.out, tokens);
        for (StepIo* io : {&first, &second, &third}) io->args.plan = &plan;
        const auto all = [&](StepIo& p, StepIo& q, StepIo& r) {
          a->enqueue(bench.stream, p.args);
          b->enqueue(bench.stream, q.args);
          a->enqueue(bench.stream, r.args);
        };
        all(first, second, third);
        if (plan.lanes != nullptr) CHECK(take_traced(bench, *plan.lanes));
        const auto graph = Graph::capture(bench.stream, [&] { all(first, second, third); });
        const std::string where = device.name() + " strategy " + show(static_cast<int>(strategy));
        for (int i = 0; i < 100; ++i) {
          if (i % 20 == 0) write(bench, x, some(random, d, tokens));
          // Lanes that move are the layer's matter: the graph has a table of its own.
          if (plan.lanes != nullptr)
            plan.lanes->update(bench.stream, std::vector<int32_t>(static_cast<size_t>(d.router.experts), i % 3), {});
          graph->launch(bench.stream);
          if (i % 20 != 19) continue;
          all(one, two, three);
          require_same(third.read(bench), three.read(bench), where);
          require_same(second.read(bench), two.read(bench), where);
          require_same(first.read(bench), one.read(bench), where);
        }
        if (plan.lanes != nullptr) CHECK(!take_traced(bench, *plan.lanes));
      }
}

TEST("captured steps: the graph outlives layer and plan, and leaves nothing behind") {
  for (const DeviceId device : devices()) {
    Random random(1010);
    Bench bench(device);
    const LayerDesc d = chained();
    void* const x = bench.upload(some(random, d, 13));
    StepIo io(bench, d, x, 13);
    bench.stream->synchronize();
    const int64_t before = memory_stats(device).live_bytes;
    auto layer = make_layer(bench, d, 3);
    std::optional<ExecPlan> plan = make_plan(bench, d, Strategy::kTiered);
    layer->enqueue(bench.stream, io.args);
    const auto want = io.read(bench);
    const auto weights = static_cast<int64_t>(layer->weight_bytes());
    const auto workspace = static_cast<int64_t>(layer->workspace_bytes());
    io.args.plan = &*plan;
    auto graph = Graph::capture(bench.stream, [&] { layer->enqueue(bench.stream, io.args); });
    CHECK_EQ(static_cast<int64_t>(layer->workspace_bytes()), workspace);
    graph->launch(bench.stream);
    layer->release();
    layer.reset();
    plan.reset();
    bench.stream->synchronize();
    bench.stream->fill(io.args.out, 0, io.size * size_of(io.dtype));
    graph->launch(bench.stream);
    require_same(io.read(bench), want, device.name() + " after the layer");
    CHECK(memory_stats(device).live_bytes >= before + weights + workspace);  // a workspace as large as the layer's
    graph->launch(bench.stream);
    graph.reset();
    require_same(io.read(bench), want, device.name() + " graph dropped with a launch queued");
    wait_for_bytes(device, before);
  }
}

TEST("captured steps: an undone capture, and one that nobody launched, leave nothing behind") {
  for (const DeviceId device : devices()) {
    Random random(1020);
    Bench bench(device);
    const LayerDesc d = chained();
    StepIo io(bench, d, bench.upload(some(random, d, 5)), 5);
    const auto layer = make_layer(bench, d, 4);
    layer->enqueue(bench.stream, io.args);
    const auto want = io.read(bench);
    const int64_t before = memory_stats(device).live_bytes;
    Graph::begin(bench.stream);
    layer->enqueue(bench.stream, io.args);
    CHECK(memory_stats(device).live_bytes > before);
    Graph::abort(bench.stream);
    wait_for_bytes(device, before);
    Graph::capture(bench.stream, [&] { layer->enqueue(bench.stream, io.args); });
    wait_for_bytes(device, before);
    layer->enqueue(bench.stream, io.args);
    require_same(io.read(bench), want, device.name() + " eager after it");
  }
}

TEST("captured steps: steps of several sizes in one graph, beside eager steps that make the layer's workspace grow") {
  for (const DeviceId device : devices()) {
    Random random(1030);
    Bench bench(device);
    const LayerDesc d = chained();
    const auto layer = make_layer(bench, d, 5);
    std::vector<StepIo> recorded, eager;
    for (const int64_t tokens : {3, 60, 7, 0, 150}) {
      void* const x = bench.upload(some(random, d, tokens));
      recorded.emplace_back(bench, d, x, tokens);
      eager.emplace_back(bench, d, x, tokens);
    }
    const auto graph = Graph::capture(bench.stream, [&] {
      for (const StepIo& io : recorded) layer->enqueue(bench.stream, io.args);
    });
    CHECK_EQ(layer->workspace_bytes(), size_t{0});
    for (size_t i = 0; i < eager.size(); ++i) {
      graph->launch(bench.stream);
      layer->enqueue(bench.stream, eager[i].args);
    }
    for (size_t i = 0; i < eager.size(); ++i)
      require_same(recorded[i].read(bench), eager[i].read(bench), device.name() + " step " + show(i));
  }
}

TEST("captured steps: two graphs of one layer on two streams, beside its eager steps on a third") {
  for (const DeviceId device : devices()) {
    Random random(1040);
    Bench bench(device);
    const LayerDesc d = chained();
    const auto layer = make_layer(bench, d, 6);
    std::vector<StepIo> io;
    std::vector<std::vector<uint8_t>> want;
    std::vector<std::shared_ptr<Graph>> graphs;
    for (const int64_t tokens : {90, 90, 90}) {
      io.emplace_back(bench, d, bench.upload(some(random, d, tokens)), tokens);
      layer->enqueue(bench.stream, io.back().args);
      want.push_back(io.back().read(bench));
      graphs.push_back(Graph::capture(bench.stream, [&] { layer->enqueue(bench.stream, io.back().args); }));
    }
    const std::vector<std::shared_ptr<Stream>> streams{Stream::create(device), Stream::create(device)};
    for (int i = 0; i < 300; ++i) {
      for (size_t g = 0; g < 2; ++g) graphs[g]->launch(streams[g]);
      layer->enqueue(bench.stream, io[2].args);
    }
    for (const auto& s : streams) s->synchronize();
    for (size_t i = 0; i < 3; ++i) require_same(io[i].read(bench), want[i], device.name() + " " + show(i));
  }
}

TEST("captured steps: on streams that fork and join, steps of one layer keep their order") {
  for (const DeviceId device : devices()) {
    Random random(1050);
    Bench bench(device);
    const LayerDesc d = chained();
    const auto layer = make_layer(bench, d, 7);
    const auto side = Stream::create(device);
    const auto forked = Event::create(device), joined = Event::create(device);
    std::vector<StepIo> io;
    std::vector<std::vector<uint8_t>> want;
    for (int i = 0; i < 3; ++i) {
      io.emplace_back(bench, d, bench.upload(some(random, d, 70)), 70);
      layer->enqueue(bench.stream, io.back().args);
      want.push_back(io.back().read(bench));
    }
    const auto graph = Graph::capture(bench.stream, [&] {
      forked->record(*bench.stream);
      side->wait(*forked);
      layer->enqueue(bench.stream, io[0].args);
      layer->enqueue(side, io[1].args);
      layer->enqueue(bench.stream, io[2].args);
      joined->record(*side);
      bench.stream->wait(*joined);
    });
    for (int i = 0; i < 20; ++i) graph->launch(bench.stream);
    for (size_t i = 0; i < 3; ++i) require_same(io[i].read(bench), want[i], device.name() + " " + show(i));
    // The layer's own order knows nothing of it.
    layer->enqueue(side, io[1].args);
    side->synchronize();
    require_same(io[1].read(bench), want[1], device.name() + " eager on the side");
  }
}

namespace {

/// A lane set of which one lane's view fails, in copies too.
class Failing final : public LaneSet {
 public:
  explicit Failing(std::shared_ptr<LaneSet> inner) : inner_(std::move(inner)) {}
  void update(const std::shared_ptr<Stream>& s, std::vector<int32_t> lane_of, std::vector<int32_t> shares) override {
    inner_->update(s, std::move(lane_of), std::move(shares));
  }
  LaneView view(int lane) const override {
    if (lane == 1) throw Error(ErrorCode::kDevice, "planted");
    return inner_->view(lane);
  }
  std::shared_ptr<LaneSet> copy(const std::shared_ptr<Stream>& s) const override {
    return std::make_shared<Failing>(inner_->copy(s));
  }
  int lanes() const override { return inner_->lanes(); }
  int experts() const override { return inner_->experts(); }
  bool traced() const override { return inner_->traced(); }
  void record_use(const std::shared_ptr<Stream>& s) override { inner_->record_use(s); }
  void take_trace(const std::shared_ptr<Stream>& s, uint32_t* out) override { inner_->take_trace(s, out); }

 private:
  std::shared_ptr<LaneSet> inner_;
};

}  // namespace

TEST("captured steps: half a step makes no graph, also where its error was swallowed") {
  for (const DeviceId device : devices()) {
    Random random(1060);
    Bench bench(device);
    const LayerDesc d = chained();
    const auto layer = make_layer(bench, d, 8);
    StepIo io(bench, d, bench.upload(some(random, d, 13)), 13);
    layer->enqueue(bench.stream, io.args);
    const auto want = io.read(bench);
    ExecPlan plan = make_plan(bench, d, Strategy::kStreams);
    plan.lanes = std::make_shared<Failing>(plan.lanes);
    Graph::begin(bench.stream);
    io.args.plan = &plan;
    CHECK(expect_error(ErrorCode::kDevice, [&] { layer->enqueue(bench.stream, io.args); }) == "planted");
    io.args.plan = nullptr;
    const std::string what = expect_error(ErrorCode::kGraphCapture, [&] { Graph::end(bench.stream); });
    CHECK(what.find("a layer's step could not be recorded: planted") != std::string::npos);
    CHECK(!bench.stream->capturing());
    for (const auto& s : plan.streams) CHECK(!s->capturing());
    layer->enqueue(bench.stream, io.args);
    require_same(io.read(bench), want, device.name());
  }
}

TEST("captured steps: what cannot be recorded is refused by name, and the capture goes on") {
  for (const DeviceId device : devices()) {
    Random random(1070);
    Bench bench(device);
    const LayerDesc d = chained();
    const auto layer = make_layer(bench, d, 9);
    StepIo io(bench, d, bench.upload(some(random, d, 4)), 4);
    layer->enqueue(bench.stream, io.args);
    const auto want = io.read(bench);
    const auto own = layer->capture(bench.stream, 4, false, nullptr, nullptr);
    const auto ring = CountRing::create(device, d.router.experts, 4);
    StepRecord record;
    const auto refused = [](ErrorCode code, const char* name, const std::function<void()>& f) {
      const std::string what = expect_error(code, f);
      if (what.find(name) == std::string::npos) throw Failure(std::string(name) + " is not named: " + what);
    };
    const auto graph = Graph::capture(bench.stream, [&] {
      StepArgs args = io.args;
      args.record = &record;
      refused(ErrorCode::kGraphCapture, "record", [&] { layer->enqueue(bench.stream, args); });
      args = io.args;
      args.ring = ring.get();
      refused(ErrorCode::kGraphCapture, "ring", [&] { layer->enqueue(bench.stream, args); });
      args = io.args;
      args.out = nullptr;
      refused(ErrorCode::kInvalidArgument, "out", [&] { layer->enqueue(bench.stream, args); });
      refused(ErrorCode::kGraphCapture, "stream", [&] { layer->replay(bench.stream, *own, io.args); });
      refused(ErrorCode::kGraphCapture, "stream", [&] { layer->capture(bench.stream, 4, false, nullptr, nullptr); });
      layer->enqueue(bench.stream, io.args);
    });
    bench.stream->fill(io.args.out, 0, io.size * size_of(io.dtype));
    graph->launch(bench.stream);
    require_same(io.read(bench), want, device.name());
    // An eager step elsewhere shares the layer's workspace with those that were queued on the stream before.
    const auto other = Stream::create(device);
    Graph::begin(bench.stream);
    refused(ErrorCode::kGraphCapture, "stream", [&] { layer->enqueue(other, io.args); });
    CHECK(!other->capturing());
    Graph::abort(bench.stream);
    layer->enqueue(other, io.args);
    other->synchronize();
    require_same(io.read(bench), want, device.name() + " on another stream");
    Graph::begin(bench.stream);
    layer->release();
    expect_error(ErrorCode::kDisposed, [&] { layer->enqueue(bench.stream, io.args); });
    Graph::abort(bench.stream);
  }
}
