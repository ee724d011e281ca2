// The two layers of an MLP in one launch against the two launches that it stands for: outputs are the same bytes, eager
// and recorded, in slices and step after step. On a GPU of compute capability 9.0 only.
#include "cuda_path.h"
#include "layer_data.h"

using namespace nexus;
using namespace nexus::test;

namespace {

struct Shape {
  int experts, top_k;
  int64_t input, hidden, output, tokens;
  Epilogue activation;
};

LayerDesc layer_of(const Shape& s, DType dtype) {
  LayerDesc d;
  d.router = {.experts = s.experts, .top_k = s.top_k, .normalize = Normalize::kSumPlusEpsilon};
  d.experts = {.dtype = dtype,
               .kind = is_gated(s.activation) ? MlpKind::kGated : MlpKind::kTwoLayer,
               .activation = s.activation,
               .experts = s.experts,
               .input = s.input,
               .hidden = s.hidden,
               .output = s.output};
  if (s.activation == Epilogue::kClampedSwiglu) d.experts.params = {.limit = 7.f, .alpha = 1.702f};
  return d;
}

/// Up to a tile's rows an expert, widths by whole panels of 64, or whole tiles and enough rows for pairs: what shares a
/// launch.
const Shape kShapes[] = {
    {128, 8, 128, 192, 256, 8, Epilogue::kSwiglu},   {128, 8, 128, 192, 256, 64, Epilogue::kSwiglu},
    {8, 2, 512, 512, 512, 61, Epilogue::kSwiglu},    {33, 3, 192, 320, 136, 201, Epilogue::kClampedSwiglu},
    {16, 4, 64, 128, 72, 64, Epilogue::kGelu},       {3, 2, 1088, 576, 1032, 32, Epilogue::kGegluTanh},
    {512, 10, 128, 64, 128, 512, Epilogue::kSwiglu}, {2, 1, 256, 320, 200, 55, Epilogue::kRelu},
    {64, 4, 192, 320, 192, 90, Epilogue::kSwiglu},   {32, 4, 320, 832, 576, 300, Epilogue::kSwiglu},
    {64, 8, 512, 768, 512, 512, Epilogue::kSwiglu},  {24, 4, 576, 704, 832, 500, Epilogue::kClampedSwiglu},
    {12, 4, 192, 256, 512, 801, Epilogue::kSwiglu},  {3, 1, 64, 256, 256, 1000, Epilogue::kGelu},
};

/// Both layers by one kernel variant, over rows that are dealt out by hand. `width`: SMs that are filled with blocks;
/// 0: all.
void check_named(Random& random, DType dtype, const std::string& name, const std::vector<int32_t>& rows, const Shape& s,
                 int width = 0) {
  Bench bench(DeviceId{0});
  if (width > 0) bench.stream = Stream::create(bench.device, 0, {.max_width = width});
  std::vector<int32_t> expert_of_slot;
  for (size_t e = 0; e < rows.size(); ++e)
    expert_of_slot.insert(expert_of_slot.end(), static_cast<size_t>(rows[e]), static_cast<int32_t>(e));
  for (size_t i = expert_of_slot.size(); i > 1; --i)
    std::swap(expert_of_slot[i - 1],
              expert_of_slot[static_cast<size_t>(random.integer(0, static_cast<int64_t>(i) - 1))]);
  if (expert_of_slot.size() % 2) expert_of_slot.push_back(0);
  const int experts = static_cast<int>(rows.size());
  const Buckets buckets = bucket(experts, expert_of_slot);
  const int64_t slots = buckets.slots();
  MlpDesc d = layer_of(s, dtype).experts;
  d.experts = experts;
  const auto matrix = [&](int64_t count, float deviation) {
    return bench.upload(HostArray::rounded(dtype, random.normals(static_cast<size_t>(count), deviation)));
  };
  MlpWeights w;
  for (int i = 0; i < 2; ++i) {
    const GroupedLinearDesc l = mlp_layer(d, i);
    w.weight[static_cast<size_t>(i)] = matrix(l.experts * l.n * l.k, 1.f / std::sqrt(static_cast<float>(l.k)));
    w.bias[static_cast<size_t>(i)] = bench.upload(random.normals(static_cast<size_t>(l.experts * l.n)));
  }
  MlpArgs args;
  args.x = matrix(slots / 2 * d.input, 1.f), args.tokens = slots / 2, args.top_k = 2;
  args.offsets = bench.upload(buckets.offsets), args.order = bench.upload(buckets.order);
  args.choice.variant = name;
  const int64_t size = slots * d.output;
  const size_t counters = mlp_counter_bytes(bench.device, d);
  void* const zeros = bench.upload(std::vector<int32_t>(counters / 4, 0));
  std::vector<unsigned char> want;
  const Path path(set_mlp_path, "fused");  // small layers, too
  for (int run = 0; run < 4; ++run) {
    args.rows = bench.poisoned(dtype, static_cast<size_t>(size));
    args.workspace = bench.poisoned(dtype, mlp_workspace_bytes(bench.device, d, slots) / 2);
    args.counters = run == 0 ? nullptr : zeros;
    bench.stream->synchronize();
    if (run == 3) {
      const auto graph = Graph::capture(bench.stream, [&] { grouped_mlp(*bench.stream, d, w, args); });
      CHECK_EQ(graph->nodes(), 1);
      for (int i = 0; i < 3; ++i) graph->launch(bench.stream);
    } else {
      grouped_mlp(*bench.stream, d, w, args);
    }
    bench.stream->synchronize();
    const auto got = bench.read(dtype, args.rows, static_cast<size_t>(size)).bytes;
    if (run == 0) want = got;
    if (got != want)
      throw Failure(name + ", " + name_of(dtype) + ", " + show(experts) + " experts: other bits in run " + show(run));
  }
}

}  // namespace

TEST_IN_PARTS("mlp in one launch: the bytes of two, eager and recorded, step after step") {
  require_hopper();
  Random random(1301);
  Bench bench(DeviceId{0});
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const Shape& s : kShapes) {
      if (!part.mine()) continue;
      const LayerDesc d = layer_of(s, dtype);
      const auto layer =
          Layer::create(d, upload(bench.stream, random_weights(random, d, {.given_logits = true})), bench.device);
      const int64_t bucket = token_bucket(s.tokens), size = s.tokens * d.experts.output;
      std::vector<Batch> batches;
      for (int i = 0; i < 3; ++i) batches.emplace_back(random, bench, d, s.tokens, true);
      const auto run = [&](const Batch& batch, int64_t tokens, LayerGraph* graph) {
        StepArgs a;
        a.x = batch.x, a.tokens = tokens, a.logits = batch.logits;
        a.out = bench.poisoned(dtype, size);
        graph == nullptr ? layer->enqueue(bench.stream, a) : layer->replay(bench.stream, *graph, a);
        bench.stream->synchronize();
        return bench.read(dtype, a.out, size).bytes;
      };
      const auto all = [&](const char* by) {
        const Path path(set_mlp_path, by);
        std::vector<std::vector<unsigned char>> outputs;
        for (const Batch& batch : batches) outputs.push_back(run(batch, s.tokens, nullptr));
        const auto graph = layer->capture(bench.stream, bucket, true, nullptr, nullptr);
        for (const int64_t tokens : {s.tokens, s.tokens / 2, int64_t{0}, int64_t{1}, s.tokens})
          outputs.push_back(run(batches[1], tokens, graph.get()));
        outputs.emplace_back(1, static_cast<unsigned char>(graph->nodes()));
        return outputs;
      };
      auto want = all("chain"), got = all("fused");
      const int nodes[2] = {want.back()[0], got.back()[0]};
      want.pop_back(), got.pop_back();
      const std::string what = std::string(name_of(dtype)) + ", " + show(s.experts) + " experts, " + show(s.tokens) +
                               " tokens: launch " + show(nodes[1]) + " for " + show(nodes[0]);
      for (size_t i = 0; i < want.size(); ++i)
        if (got[i] != want[i]) throw Failure(what + ": other outputs at step " + show(i));
      if (nodes[1] >= nodes[0]) throw Failure(what + ": the two launches were not one");
    }
  }
}

TEST_IN_PARTS("mlp in one launch: every shape, with hot experts, odd tiles and experts without rows") {
  require_hopper();
  Random random(1303);
  std::vector<int32_t> skewed(70), sparse(130, 0);
  for (size_t e = 0; e < skewed.size(); ++e) skewed[e] = e % 9 == 4 ? 100 : static_cast<int32_t>(random.integer(0, 9));
  sparse[77] = 1;
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const std::string name : {"wgmma_256x32x128_s3", "wgmma_128x64x128_s4", "wgmma_128x32x128_s5",
                                   "wgmma_256x64x64_s5", "wgmma_256x160x64_s4", "wgmma_256x160x64_s4_rest"}) {
      if (!part.mine()) continue;
      check_named(random, dtype, name, skewed, {0, 2, 64, 192, 264, 0, Epilogue::kSwiglu});
      check_named(random, dtype, name, sparse, {0, 2, 64, 192, 72, 0, Epilogue::kSwiglu});
      check_named(random, dtype, name, {17, 64, 0, 33, 1, 0, 8}, {0, 2, 704, 64, 776, 0, Epilogue::kClampedSwiglu});
      check_named(random, dtype, name, {32}, {0, 2, 128, 192, 136, 0, Epilogue::kGelu});
      if (name.find("x32x") == std::string::npos)
        check_named(random, dtype, name, {170, 0, 1, 64, 65, 5, 8, 9}, {0, 2, 192, 320, 328, 0, Epilogue::kSwiglu});
    }
}

TEST("mlp in one launch: pairs, a small layer") {
  require_hopper();
  Random random(1306);
  const Shape s{0, 2, 64, 64, 72, 0, Epilogue::kSwiglu};
  check_named(random, DType::kBF16, "wgmma_256x320x64_s4_pair", {170, 0, 331}, s);
}

TEST_IN_PARTS("mlp in one launch: pairs, with hot experts, odd shares and experts without rows") {
  require_hopper();
  Random random(1305);
  std::vector<int32_t> skewed(70), even(128), sparse(130, 0);
  for (size_t e = 0; e < skewed.size(); ++e) skewed[e] = e % 9 == 4 ? 700 : static_cast<int32_t>(random.integer(0, 90));
  for (int32_t& rows : even) rows = static_cast<int32_t>(random.integer(200, 330));
  sparse[77] = 1;
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const auto check = [&](const std::vector<int32_t>& rows, const Shape& s) {
      if (part.mine()) check_named(random, dtype, "wgmma_256x320x64_s4_pair", rows, s);
    };
    check(skewed, {0, 2, 64, 192, 328, 0, Epilogue::kSwiglu});
    check(even, {0, 2, 64, 64, 136, 0, Epilogue::kSwiglu});
    check(sparse, {0, 2, 64, 64, 72, 0, Epilogue::kSwiglu});
    check({17, 64, 0, 33, 1, 0, 8}, {0, 2, 704, 64, 776, 0, Epilogue::kClampedSwiglu});
    check({2000}, {0, 2, 72, 200, 1032, 0, Epilogue::kGelu});
  }
}

TEST("mlp in one launch: pairs, so many turns that slots are used again") {
  require_hopper();
  Random random(1307);
  check_named(random, DType::kBF16, "wgmma_256x320x64_s4_pair", {170, 0, 331, 700, 40},
              {0, 2, 64, 192, 328, 0, Epilogue::kSwiglu}, 2);
}

TEST("mlp in one launch: so many tiles that slots are used again") {
  require_hopper();
  Random random(1308);
  std::vector<int32_t> rows(16);
  for (int32_t& r : rows) r = static_cast<int32_t>(random.integer(1, 40));
  for (const std::string name : {"wgmma_128x32x128_s5", "wgmma_256x64x64_s5", "wgmma_256x160x64_s4_rest"})
    check_named(random, DType::kBF16, name, rows, {0, 2, 128, 192, 264, 0, Epilogue::kSwiglu}, 2);
}

TEST_IN_PARTS("mlp in one launch: in slices, beside one another") {
  require_hopper();
  const auto info = partition_info(DeviceId{0});
  if (info.enforcement != Enforcement::kHardware) throw Skipped(info.reason);
  Random random(1302);
  Bench bench(DeviceId{0});
  for (const Shape& s : {kShapes[1], kShapes[12]}) {  // single blocks, pairs
    const LayerDesc d = layer_of(s, DType::kBF16);
    const int64_t tokens = s.tokens, size = tokens * d.experts.output;
    const Batch batch(random, bench, d, tokens, true);
    const HostWeights weights = random_weights(random, d, {.given_logits = true});
    const auto make = [&] { return Layer::create(d, upload(bench.stream, weights), bench.device); };
    std::shared_ptr<Layer> layers[2] = {make(), make()};
    const auto step = [&](void* out) {
      StepArgs a;
      a.x = batch.x, a.tokens = tokens, a.logits = batch.logits, a.out = out;
      return a;
    };
    const auto bytes_of = [&](void* out) { return bench.read(DType::kBF16, out, size).bytes; };
    const auto want = [&] {  // of a step with nothing beside it
      const Path path(set_mlp_path, "chain");
      void* const out = bench.poisoned(DType::kBF16, size);
      layers[0]->enqueue(bench.stream, step(out));
      bench.stream->synchronize();
      return bytes_of(out);
    }();
    const auto partition = Partition::create(bench.device, {info.minimum, 2 * info.minimum});
    // In slices of their own, and as two streams that compete for the same SMs.
    const std::shared_ptr<Stream> sliced[2] = {partition->create_stream(0, 0), partition->create_stream(1, 0)};
    const std::shared_ptr<Stream> plain[2] = {Stream::create(bench.device), Stream::create(bench.device)};
    for (const char* by : {"chain", "fused"})
      for (const auto* streams : {&sliced, &plain})
        for (int round = 0; round < 4; ++round) {
          if (!part.mine()) continue;
          const Path path(set_mlp_path, by);
          void* out[2];
          for (void*& o : out) o = bench.poisoned(DType::kBF16, size);
          bench.stream->synchronize();
          for (int repeat = 0; repeat < 5; ++repeat)
            for (int l = 0; l < 2; ++l) layers[l]->enqueue((*streams)[l], step(out[l]));
          for (int l = 0; l < 2; ++l) {
            (*streams)[l]->synchronize();
            if (bytes_of(out[l]) != want) throw Failure("other outputs of stream " + show(l) + ", " + by);
          }
        }
  }
}

TEST("mlp in one launch: by itself, but for small second layers") {
  require_hopper();
  Random random(1304);
  Bench bench(DeviceId{0});
  const auto nodes = [&](const LayerDesc& d, int64_t tokens, const char* by) {
    const Path path(set_mlp_path, by);
    const auto layer =
        Layer::create(d, upload(bench.stream, random_weights(random, d, {.given_logits = true})), bench.device);
    return layer->capture(bench.stream, token_bucket(tokens), true, nullptr, nullptr)->nodes();
  };
  const LayerDesc small = layer_of(kShapes[2], DType::kBF16), other = layer_of(kShapes[1], DType::kBF16);
  CHECK_EQ(nodes(small, kShapes[2].tokens, ""), nodes(small, kShapes[2].tokens, "chain"));
  CHECK(nodes(other, kShapes[1].tokens, "") < nodes(other, kShapes[1].tokens, "chain"));
  // Pairs: with many turns of the second layer, not with few.
  const Shape many{64, 2, 128, 128, 1024, 5200, Epilogue::kSwiglu};
  const LayerDesc pairs = layer_of(many, DType::kBF16), few = layer_of(kShapes[12], DType::kBF16);
  CHECK(nodes(pairs, many.tokens, "") < nodes(pairs, many.tokens, "chain"));
  CHECK_EQ(nodes(few, kShapes[12].tokens, ""), nodes(few, kShapes[12].tokens, "chain"));
}

TEST("mlp in one launch: a path that is none is refused by name") {
  require_hopper();
  const std::string message = expect_error(ErrorCode::kInvalidArgument, [] { set_mlp_path("sideways"); });
  CHECK(message.find("set_mlp_path") != std::string::npos && message.find("sideways") != std::string::npos);
}
