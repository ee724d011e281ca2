// Times whole steps of one MoE layer on cuda:0, from (x, router logits) to y: route, both linear layers, combine, as a
// step queues them. Many steps in a row are recorded in one graph, each with logits and, where the weights would stay
// in L2, a copy of the weights of its own; ways of running them take turns, so that a chip that warms up slows all of
// them alike; median over the turns.
//
//   step_bench [--tokens=1,8,…] [--skew=S] [--ways=WAY,…] [--turns=N] [--settle=MS] [--seed=N]
//   [NAME=HIDDEN,INTER,EXPERTS,TOPK …]
//
// A way is `auto` (what a step takes that is not one for decode.h), `chain` (a launch for each operation), `mlp` (both
// linear layers in one, hopper_mlp.h) or mlp=VARIANT, `decode` (the kernels of decode.h), or FIRST+SECOND, the kernel
// variants of the two linear layers (bf16); with `~` behind it, a step's routing begins only when the step before has
// ended, as where the logits come from the kernel just before; with `!`, the experts wait for routing's end and not for
// its word (RouteArgs::ready); with `@`, weights are in panels (nexus/weight_panels.h). Each way's outputs are compared
// with those of the first, bit for bit: of its steps one by one, and of up to 1024 tokens of its graph, where steps
// overlap, each with an output of its own. `-`: the way does not serve the step. --skew: the standard deviation of a
// bias that each expert has in all logits. --settle: each way is timed behind so many milliseconds of nothing and as
// many of itself, as at the power limit the clock depends on what ran just before; with the least and the most of the
// turns. --seed: that a run printed, for its logits again.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "bench.h"
#include "data/cuda/decode_path.h"
#include "data/cuda/mlp_path.h"

namespace {
using namespace nexus;
using bench::numbers;

using Shape = bench::LayerShape;

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> list;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) list.push_back(part);
  return list;
}

/// A way without its marks.
std::string unmarked(const std::string& way) { return way.substr(0, way.find_first_of("~!@")); }
bool in_panels(const std::string& way) { return way.find('@') != std::string::npos; }

/// Forces the path of a way while it is recorded.
struct Path {
  explicit Path(std::string way) {
    way = unmarked(way);
    cuda::set_decode_path(way == "decode" ? "fused" : "chain");
    cuda::set_mlp_path(way.starts_with("mlp") ? "fused" : way == "auto" ? "" : "chain");
  }
  ~Path() {
    cuda::set_decode_path("");
    cuda::set_mlp_path("");
  }
};

struct Bench : bench::Memory {
  Bench() : Memory(Stream::create(DeviceId{0})) {}
  int turns = 1;
  double settle = 0;  // ms

  std::shared_ptr<Buffer> upload(const std::vector<float>& values) {
    const auto staging = HostBuffer::allocate(stream->device(), values.size() * 4);
    std::memcpy(staging->data(), values.data(), values.size() * 4);
    auto buffer = bytes(static_cast<int64_t>(values.size()) * 4);
    stream->copy(buffer->data(), staging->data(), values.size() * 4);
    stream->synchronize();
    return buffer;
  }

  void run(const Shape& shape, int64_t tokens, float skew, const std::vector<std::string>& ways) {
    constexpr DType kType = DType::kBF16;
    const int64_t h = shape.hidden, inter = shape.inter, e = shape.experts, rows = tokens * shape.top_k;
    const double held = 6. * static_cast<double>(e * inter * h);
    const int copies = std::clamp(static_cast<int>(400e6 / held) + 1, 1, 16), steps = std::max(8, copies);
    RouterDesc router;
    router.experts = shape.experts, router.top_k = shape.top_k, router.normalize = Normalize::kSumPlusEpsilon;
    MlpDesc in_rows;
    in_rows.dtype = kType, in_rows.experts = shape.experts, in_rows.input = in_rows.output = h, in_rows.hidden = inter;
    const bool with_panels = std::any_of(ways.begin(), ways.end(), [](const auto& way) { return in_panels(way); });
    std::vector<std::shared_ptr<Buffer>> weights[2], panels[2], logits;  // of either layer
    for (int i = 0; i < copies; ++i)
      for (int l = 0; l < 2; ++l) {
        const WeightMatrices m = weights_of(mlp_layer(in_rows, l));
        const auto own = normals(kType, m.experts * m.n * m.k, 1.f / 32);
        weights[l].push_back(own);
        if (!with_panels) continue;
        const auto scratch = bytes(static_cast<int64_t>(lay_panels_bytes(m)));
        panels[l].push_back(bytes(static_cast<int64_t>(own->bytes())));
        stream->copy(panels[l].back()->data(), own->data(), own->bytes());
        lay_panels(*stream, m, PanelWay::kFromRows, panels[l].back()->data(), scratch->data());
      }
    std::mt19937_64 engine(seed++);
    std::normal_distribution<float> normal;
    std::vector<float> bias(static_cast<size_t>(e));
    for (float& b : bias) b = skew * normal(engine);
    for (int i = 0; i < steps; ++i) {
      std::vector<float> values(static_cast<size_t>(tokens * e));
      for (size_t v = 0; v < values.size(); ++v) values[v] = normal(engine) + bias[v % static_cast<size_t>(e)];
      logits.push_back(upload(values));
    }

    const auto x = normals(kType, tokens * h, 1.f), out_rows = bytes(rows * h * 2);
    std::vector<std::shared_ptr<Buffer>> ys;
    for (int i = 0; i < steps; ++i) ys.push_back(bytes(tokens * h * 2));
    /// What routing writes, and what goes with it. Steps take turns with two of them, as a layer's do.
    struct Routing {
      std::shared_ptr<Buffer> ids, weights, counts, offsets, order, counters, ready;
    };
    Routing routings[2];
    for (Routing& r : routings) {
      r = {bytes(rows * 4), bytes(rows * 4), bytes(e * 4), bytes((e + 1) * 4), bytes(rows * 4), nullptr, bytes(4)};
      r.counters = bytes(std::max<int64_t>(mlp_counter_bytes(stream->device(), in_rows), 4));
      stream->fill(r.counters->data(), 0, r.counters->bytes());
    }
    const auto scratch = bytes(cuda::route_workspace_bytes(router, tokens));
    const auto hidden = bytes(mlp_workspace_bytes(stream->device(), in_rows, rows));

    const auto step = [&](int i, const std::string& given) {
      const bool late = given.find('~') != std::string::npos, apart = given.find('!') == std::string::npos;
      const std::string way = unmarked(given);
      MlpDesc mlp = in_rows;
      mlp.in_panels = in_panels(given);
      const auto& y = ys[static_cast<size_t>(i)];
      const Routing& routing = routings[apart ? i & 1 : 0];
      const auto &ids = routing.ids, &counts = routing.counts;
      const auto &offsets = routing.offsets, &order = routing.order, &counters = routing.counters;
      RouteArgs ra;
      ra.logits = static_cast<const float*>(logits[static_cast<size_t>(i)]->data()), ra.tokens = tokens;
      ra.expert_ids = static_cast<int32_t*>(ids->data()), ra.weights = static_cast<float*>(routing.weights->data());
      ra.counts = static_cast<int32_t*>(counts->data()), ra.offsets = static_cast<int32_t*>(offsets->data());
      ra.order = static_cast<int32_t*>(order->data()), ra.workspace = scratch->data();
      ra.few_weights = has_few_weights(mlp);
      const auto& own = mlp.in_panels ? panels : weights;
      const auto copy = static_cast<size_t>(i % copies);
      const void *first = own[0][copy]->data(), *second = own[1][copy]->data();
      MlpWeights w;
      w.weight = {first, second, nullptr};
      if (way == "decode") {
        DecodeArgs da;
        da.route = ra, da.choice_tokens = tokens, da.x = x->data(), da.weights = w;
        da.hidden = hidden->data(), da.out = y->data(), da.choice.variant = "gemv_1x8";
        const bool served = cuda::decode_step(*stream, router, mlp, da);
        if (late) stream->cuda_stream();  // which forgets what is settled
        return served;
      }
      if (apart) ra.ready = static_cast<int32_t*>(routing.ready->data());
      const bool ahead =
          !stream->settled(ra.logits, static_cast<size_t>(tokens * e * 4)) || stream->settled(x->data(), x->bytes());
      const bool says = route(*stream, router, ra) && ahead;
      const size_t plus = way.find('+');
      if (plus == std::string::npos) {
        MlpArgs ma;
        ma.x = x->data(), ma.tokens = tokens, ma.top_k = shape.top_k, ma.offsets = ra.offsets, ma.order = ra.order;
        ma.rows = out_rows->data(), ma.workspace = hidden->data(), ma.counters = counters->data();
        if (says) ma.ready = ra.ready;
        if (way.starts_with("mlp=")) ma.choice.variant = std::string_view(way).substr(4);
        grouped_mlp(*stream, mlp, w, ma);
      } else {
        GroupedLinearArgs a1, a2;
        const std::string names[2] = {way.substr(0, plus), way.substr(plus + 1)};
        a1.input = x->data(), a1.weight = first, a1.output = hidden->data(), a1.offsets = ra.offsets;
        a1.order = ra.order, a1.rows_per_input = shape.top_k, a1.gather = true, a1.max_rows = rows;
        a1.choice.variant = names[0];
        grouped_linear(*stream, mlp_layer(mlp, 0), a1);
        a2.input = hidden->data(), a2.weight = second, a2.output = out_rows->data(), a2.offsets = ra.offsets;
        a2.order = ra.order, a2.scatter = true, a2.max_rows = rows, a2.settled = true;
        a2.choice.variant = names[1];
        grouped_linear(*stream, mlp_layer(mlp, 1), a2);
      }
      CombineArgs ca;
      ca.dtype = kType, ca.rows = out_rows->data(), ca.weights = ra.weights;
      ca.tokens = tokens, ca.width = h, ca.top_k = shape.top_k, ca.out = y->data();
      ca.private_inputs = !late;
      combine(*stream, ca);
      if (late) stream->cuda_stream();
      return true;
    };
    const auto poison = [&] {
      for (const auto& b : {out_rows, hidden}) stream->fill(b->data(), 0xff, b->bytes());
      for (const auto& y : ys) stream->fill(y->data(), 0xff, y->bytes());
    };
    const auto outputs_now = [&] {
      const auto host = HostBuffer::allocate(stream->device(), ys[0]->bytes());
      std::string all;
      for (const auto& y : ys) {
        stream->copy(host->data(), y->data(), y->bytes());
        stream->synchronize();
        all.append(static_cast<const char*>(host->data()), y->bytes());
      }
      return all;
    };
    /// The outputs of all steps one after another; empty where the way does not serve.
    const auto outputs = [&](const std::string& way) {
      poison();
      for (int i = 0; i < steps; ++i) {
        if (!step(i, way)) return std::string();
        stream->synchronize();
      }
      return outputs_now();
    };
    /// The same by a graph, in which steps overlap.
    const auto outputs_by = [&](Graph& graph) {
      poison();
      for (int i = 0; i < 3; ++i) graph.launch(stream);
      return outputs_now();
    };

    const auto start = Event::create(stream->device()), end = Event::create(stream->device());
    struct Timed {
      std::string way;
      std::shared_ptr<Graph> graph;
      int replays = 1;
      std::vector<double> us;
      bool same = true;  // the bits of the first way
    };
    std::vector<Timed> timed;
    std::string want;
    const auto replay = [&](const Timed& t) {
      start->record(*stream);
      for (int i = 0; i < t.replays; ++i) t.graph->launch(stream);
      end->record(*stream);
      stream->synchronize();
      return start->elapsed_ms(*end) * 1000 / (t.replays * steps);
    };
    for (const std::string& way : ways) {
      const Path path(way);
      Timed t{way, nullptr, 1, {}};
      try {
        const std::string got = outputs(way);
        if (want.empty()) want = got;
        t.same = got == want;
        if (!got.empty())
          t.graph = Graph::capture(stream, [&] {
            for (int i = 0; i < steps; ++i) step(i, way);
          });
      } catch (const Error&) {  // a variant that does not fit
      }
      stream->synchronize();
      if (t.graph != nullptr) {
        if (tokens <= 1024) t.same = t.same && outputs_by(*t.graph) == want;
        replay(t);
        t.replays = std::clamp(static_cast<int>((settle > 0 ? 20000 : 4000) / (replay(t) * steps)), 1, 100);
      }
      timed.push_back(std::move(t));
    }
    for (int turn = 0; turn < turns; ++turn)
      for (Timed& t : timed)
        if (t.graph != nullptr) {
          if (settle > 0) usleep(static_cast<useconds_t>(settle * 1000));
          for (double ran = 0; ran < settle * 1000;) ran += replay(t) * t.replays * steps;
          t.us.push_back(replay(t));
        }
    for (Timed& t : timed) {
      std::printf("%-16s %6lld %4.1f ", shape.name.c_str(), static_cast<long long>(tokens), static_cast<double>(skew));
      if (t.us.empty()) {
        std::printf("%10s", "-");
      } else {
        std::sort(t.us.begin(), t.us.end());
        std::printf("%10.2f", t.us[static_cast<size_t>(turns / 2)]);
        if (settle > 0) std::printf(" (%.1f to %.1f)", t.us.front(), t.us.back());
      }
      std::printf("  %s%s\n", t.way.c_str(), t.us.empty() || t.same ? "" : " (OTHER BITS)");
    }
    std::fflush(stdout);
  }
};

}  // namespace

int main(int argc, char** argv) try {
  std::vector<Shape> shapes;
  std::vector<int64_t> tokens{1, 8, 64, 512, 4096};
  std::vector<std::string> ways{"auto", "chain", "decode"};
  float skew = 0;
  int turns = 9;
  double settle = 0;
  std::optional<uint64_t> seed;
  for (int i = 1; i < argc; ++i) {
    const bench::Argument argument(argv[i]);
    const auto& [key, value] = argument;
    if (key == "--tokens" && !value.empty()) {
      tokens = numbers(value);
    } else if (key == "--ways" && !value.empty()) {
      ways = words(value);
    } else if (key == "--skew" && !value.empty()) {
      skew = std::stof(value);
    } else if (key == "--turns" && !value.empty()) {
      turns = std::max(1, std::stoi(value));
    } else if (key == "--settle" && !value.empty()) {
      settle = std::stod(value);
    } else if (key == "--seed" && !value.empty()) {
      seed = std::stoull(value);
    } else if (!bench::add_shape(argument, shapes)) {
      std::fprintf(
          stderr,
          "usage: step_bench [--tokens=1,8,...] [--skew=S] [--ways=auto|chain|mlp|mlp=VARIANT|decode|FIRST+SECOND,...] "
          "[--turns=N] [--settle=MS] [--seed=N] [NAME=HIDDEN,INTER,EXPERTS,TOPK ...]\n");
      return 2;
    }
  }
  if (shapes.empty())
    shapes = {{"qwen3-30b-a3b", 2048, 768, 128, 8},
              {"olmoe-1b-7b", 2048, 1024, 64, 8},
              {"deepseek-v2-lite", 2048, 1408, 64, 6},
              {"gpt-oss-20b", 2880, 2880, 32, 4},
              {"mixtral-8x7b", 4096, 14336, 8, 2}};
  Bench bench;
  bench.turns = turns, bench.settle = settle;
  if (seed) bench.seed = *seed;
  std::printf("%-16s %6s skew  us a step  way (bf16, seed %llu)\n", "shape", "tokens",
              static_cast<unsigned long long>(bench.seed));
  for (const Shape& shape : shapes)
    for (const int64_t t : tokens) bench.run(shape, t, skew, ways);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "step_bench: %s\n", e.what());
  return 1;
}
