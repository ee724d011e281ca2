// Steps that follow one another on a stream. A step's routing begins beside the sum of the one before, where that does
// not write what it reads (Stream::settle_but()), and by a word of routing's (RouteArgs::ready) the experts begin
// there, too; whether they do or not, the bytes are those of steps by themselves.
#include "cuda_path.h"
#include "layer_data.h"

using namespace nexus;
using namespace nexus::test;

namespace {

std::shared_ptr<Layer> make_layer(Bench& bench, const LayerDesc& desc, uint64_t seed) {
  Random random(seed);
  return Layer::create(desc, upload(bench.stream, random_weights(random, desc, {})), bench.device);
}

struct Run {
  std::shared_ptr<Layer> layer;
  StepArgs args;
};

size_t output_bytes(const Run& step) {
  const LayerDesc& d = step.layer->desc();
  return output_size(d, step.args.tokens) * size_of(d.experts.dtype);
}

/// The outputs of steps that `queue` queues, into memory that held other bytes before.
template <class F>
std::vector<uint8_t> outputs(Bench& bench, const std::vector<Run>& steps, F&& queue) {
  for (const Run& step : steps) bench.stream->fill(step.args.out, 0xff, output_bytes(step));
  bench.stream->synchronize();
  queue();
  bench.stream->synchronize();
  std::vector<uint8_t> all;
  for (const Run& step : steps) {
    const auto own = bench.read(static_cast<const uint8_t*>(step.args.out), output_bytes(step));
    all.insert(all.end(), own.begin(), own.end());
  }
  return all;
}

/// One behind another, and by a graph, which leaves the least time between them: the bytes of steps with nothing else
/// on the device.
void check_steps(Bench& bench, const std::vector<Run>& steps, const std::string& where) {
  const auto want = outputs(bench, steps, [&] {
    for (const auto& [layer, args] : steps) {
      layer->enqueue(bench.stream, args);
      bench.stream->synchronize();
    }
  });
  const auto all = [&] {
    for (const auto& [layer, args] : steps) layer->enqueue(bench.stream, args);
  };
  const auto graph = Graph::capture(bench.stream, all);
  for (int i = 0; i < 5; ++i) {
    if (outputs(bench, steps, all) != want) throw Failure(where + ": other bytes in a row");
    // Replays in a row: behind the last step of one comes the first, which may have the same copy of routing's results.
    const auto replays = [&] {
      for (int k = 0; k <= i % 3; ++k) graph->launch(bench.stream);
    };
    if (outputs(bench, steps, replays) != want) throw Failure(where + ": other bytes by a graph");
    if (outputs(bench, steps, [&] { replays(), all(); }) != want)
      throw Failure(where + ": other bytes of steps behind a graph's");
  }
}

}  // namespace

TEST_IN_PARTS("steps in a row: by every way of routing, of one layer and of two, the bytes of steps by themselves") {
  for (const DeviceId device : devices())
    for (const int experts : {8, 64, 200})
      for (const int64_t tokens : {1, 4, 64, 100, 300, 700}) {
        if ((device.is_cpu() && tokens > 64) || !part.mine()) continue;
        Random random(static_cast<uint64_t>(7000 + tokens + experts));
        Bench bench(device);
        LayerDesc d = basic(DType::kBF16, MlpKind::kGated, Epilogue::kSwiglu);
        d.experts.input = d.experts.output = 128;
        d.experts.hidden = 64;
        d.router.experts = d.experts.experts = experts;
        d.router.top_k = 8;
        const auto a = make_layer(bench, d, 1), b = make_layer(bench, d, 2);
        std::vector<Run> steps;
        for (int i = 0; i < 12; ++i) {
          StepArgs args;
          args.tokens = i % 5 == 4 ? std::max<int64_t>(1, tokens / 3) : tokens;
          args.x = bench.upload(
              HostArray::rounded(d.experts.dtype, random.normals(static_cast<size_t>(args.tokens * d.experts.input))));
          args.logits = bench.upload(random.normals(static_cast<size_t>(args.tokens * experts)));
          args.out = bench.poisoned(d.experts.dtype, output_size(d, args.tokens));
          steps.push_back({i % 3 == 2 ? b : a, args});
        }
        check_steps(bench, steps, device.name() + " experts " + show(experts) + " tokens " + show(tokens));
      }
}

TEST_IN_PARTS("steps in a row: by one launch and by two, skewed, odd and even, of any sizes, in a chain") {
  for (const DeviceId device : devices())
    for (const char* by : {"chain", "fused"})  // of few weights, whose two launches have their own; and the one launch
      for (const int64_t tokens : {8, 64, 250, 500}) {
        if (device.is_cpu()) continue;
        const Path path(set_mlp_path, by);
        Random random(static_cast<uint64_t>(7300 + tokens));
        Bench bench(device);
        LayerDesc d = basic(DType::kBF16, MlpKind::kGated, Epilogue::kSwiglu);
        d.experts.input = d.experts.output = 256;
        d.experts.hidden = 512;
        d.router.experts = d.experts.experts = 16;
        d.router.top_k = 4;
        const auto a = make_layer(bench, d, 5), b = make_layer(bench, d, 6);
        const auto step = [&](const std::shared_ptr<Layer>& layer, int64_t count, int favoured, bool gives) {
          StepArgs args;
          args.tokens = count;
          args.x = bench.upload(
              HostArray::rounded(d.experts.dtype, random.normals(static_cast<size_t>(count * d.experts.input))));
          auto logits = random.normals(static_cast<size_t>(count * d.router.experts));
          if (favoured >= 0)
            for (int64_t t = 0; t < count; ++t) logits[static_cast<size_t>(t * d.router.experts + favoured)] += 5.f;
          args.logits = bench.upload(logits);
          args.out = bench.poisoned(d.experts.dtype, output_size(d, count));
          if (gives) {
            args.ids_out = bench.poisoned<int32_t>(static_cast<size_t>(count * d.router.top_k));
            args.weights_out = bench.poisoned<float>(static_cast<size_t>(count * d.router.top_k));
          }
          return Run{layer, args};
        };
        const auto run = [&](int count, const char* what, auto&& make) {
          if (!part.mine()) return;
          std::vector<Run> steps;
          for (int i = 0; i < count; ++i) steps.push_back(make(i));
          check_steps(bench, steps, std::string(by) + " tokens " + show(tokens) + " " + what);
        };
        // Loads that change from step to step: results of the step before, or of the one before that, would show.
        for (const int count : {1, 2, 7, 12})
          run(count, "one layer", [&](int i) { return step(a, tokens, i % 3 == 0 ? -1 : i % 16, false); });
        run(9, "tokens within a bucket", [&](int i) { return step(a, tokens - i % 3, i, false); });
        run(9, "other buckets", [&](int i) { return step(a, i % 4 == 3 ? 1 : i % 4 == 2 ? 33 : tokens, i, false); });
        run(9, "two layers", [&](int i) { return step(i % 2 ? b : a, tokens, i, false); });
        const void* x = nullptr;  // settled logits, but tokens that the step before writes
        run(9, "a step's output is the next one's tokens", [&](int i) {
          Run made = step(a, tokens, i, false);
          if (i > 0) made.args.x = x;
          x = made.args.out;
          return made;
        });
        run(11, "results given away", [&](int i) { return step(a, tokens, i, i % 4 >= 2); });
      }
}

TEST_IN_PARTS("steps in a row: logits that the step before writes are read when they are there") {
  for (const DeviceId device : devices()) {
    Random random(7100);
    Bench bench(device);
    LayerDesc d = basic(DType::kBF16, MlpKind::kGated, Epilogue::kSwiglu);
    d.router.experts = d.experts.experts = 4;
    d.router.top_k = 2;
    // Little work for the chip, and long: the sum and the next step's routing find room beside it.
    d.experts.input = 128, d.experts.hidden = 16384;
    d.experts.output = 8;  // an output is the next step's logits, whatever its bits mean as float32
    const auto layer = make_layer(bench, d, 3);
    for (const int64_t tokens : {1, 8, 64, 200, 400}) {
      if ((device.is_cpu() && tokens > 8) || !part.mine()) continue;
      const void* const x = bench.upload(
          HostArray::rounded(d.experts.dtype, random.normals(static_cast<size_t>(tokens * d.experts.input))));
      const float* logits = bench.upload(random.normals(static_cast<size_t>(tokens * d.router.experts)));
      std::vector<Run> steps;
      for (int i = 0; i < 10; ++i) {
        StepArgs args;
        args.tokens = tokens;
        args.x = x;
        args.logits = logits;
        args.out = bench.poisoned(d.experts.dtype, output_size(d, tokens));
        logits = static_cast<const float*>(args.out);
        steps.push_back({layer, args});
      }
      check_steps(bench, steps, device.name() + " tokens " + show(tokens));
    }
  }
}

TEST("a CUDA stream knows what is settled until anything else is queued on it") {
  for (const DeviceId device : devices()) {
    if (device.is_cpu()) continue;  // where nothing begins before its turn
    Bench bench(device);
    Stream& stream = *bench.stream;
    char* const at = static_cast<char*>(bench.poisoned(DType::kF32, 64));
    CHECK(!stream.settled(at, 1));
    const auto event = Event::create(device);
    const auto only_until = [&](auto&& queue) {
      stream.settle_but(at + 64, 64);
      CHECK(stream.settled(at, 64) && stream.settled(at + 128, 64) && stream.settled(nullptr, 0));
      CHECK(!stream.settled(at, 65) && !stream.settled(at + 127, 2) && !stream.settled(at + 70, 1));
      CHECK(!stream.settled(at, 256));
      queue();
      CHECK(!stream.settled(at, 64) && !stream.settled(nullptr, 0));
    };
    only_until([&] { stream.fill(at, 0, 256); });
    only_until([&] { stream.copy(at, at + 128, 64); });
    only_until([&] { event->record(stream); });
    only_until([&] { stream.wait(*event); });
    stream.synchronize();
  }
}

TEST("behind a layer's step all but its output is settled, recorded or not") {
  for (const DeviceId device : devices()) {
    if (device.is_cpu()) continue;
    Random random(7200);
    Bench bench(device);
    const LayerDesc d = basic(DType::kBF16, MlpKind::kGated, Epilogue::kSwiglu);
    const auto layer = make_layer(bench, d, 4);
    StepArgs args;
    args.tokens = 64;
    args.x = bench.upload(
        HostArray::rounded(d.experts.dtype, random.normals(static_cast<size_t>(args.tokens * d.experts.input))));
    args.logits = bench.upload(random.normals(static_cast<size_t>(args.tokens * d.router.experts)));
    args.out = bench.poisoned(d.experts.dtype, output_size(d, args.tokens));
    const auto queue = [&] {
      layer->enqueue(bench.stream, args);
      CHECK(bench.stream->settled(args.logits, 1));
      CHECK(!bench.stream->settled(args.out, 1));
    };
    queue();
    Graph::capture(bench.stream, queue)->launch(bench.stream);
    CHECK(!bench.stream->settled(args.logits, 1));
    bench.stream->synchronize();
  }
}
