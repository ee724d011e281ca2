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

/// Of 3 to 160 rows an expert: the range of the shapes that it has.
const Shape kShapes[] = {
    {128, 8, 128, 512, 1024, 64, Epilogue::kSwiglu}, {8, 2, 512, 1024, 512, 61, Epilogue::kSwiglu},
    {8, 2, 512, 1024, 512, 256, Epilogue::kSwiglu},  {33, 3, 136, 264, 136, 301, Epilogue::kClampedSwiglu},
    {16, 4, 64, 72, 64, 64, Epilogue::kGelu},        {3, 2, 1032, 520, 1032, 128, Epilogue::kGegluTanh},
    {512, 10, 128, 64, 128, 512, Epilogue::kSwiglu}, {2, 1, 200, 328, 200, 255, Epilogue::kRelu},
    {60, 4, 512, 352, 512, 200, Epilogue::kSwiglu},
};

}  // namespace

TEST("mlp in one launch: the bytes of two, eager and recorded, step after step") {
  require_hopper();
  Random random(1301);
  Bench bench(DeviceId{0});
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const Shape& s : kShapes) {
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

TEST("mlp in one launch: in slices, beside one another") {
  require_hopper();
  const auto info = partition_info(DeviceId{0});
  if (info.enforcement != Enforcement::kHardware) throw Skipped(info.reason);
  Random random(1302);
  Bench bench(DeviceId{0});
  const LayerDesc d = layer_of(kShapes[0], DType::kBF16);
  const int64_t tokens = kShapes[0].tokens, size = tokens * d.experts.output;
  const Batch batch(random, bench, d, tokens, true);
  const auto make = [&] {
    return Layer::create(d, upload(bench.stream, random_weights(random, d, {.given_logits = true})), bench.device);
  };
  std::shared_ptr<Layer> layers[2] = {make(), make()};
  const auto partition = Partition::create(bench.device, {info.minimum, 2 * info.minimum});
  const std::shared_ptr<Stream> streams[2] = {partition->create_stream(0, 0), partition->create_stream(1, 0)};
  std::vector<unsigned char> want[2];
  void* out[2];
  for (const char* by : {"chain", "fused"}) {
    const Path path(set_mlp_path, by);
    for (int l = 0; l < 2; ++l) out[l] = bench.poisoned(DType::kBF16, size);
    bench.stream->synchronize();
    for (int repeat = 0; repeat < 20; ++repeat)
      for (int l = 0; l < 2; ++l) {
        StepArgs a;
        a.x = batch.x, a.tokens = tokens, a.logits = batch.logits, a.out = out[l];
        layers[l]->enqueue(streams[l], a);
      }
    for (int l = 0; l < 2; ++l) {
      streams[l]->synchronize();
      const auto bytes = bench.read(DType::kBF16, out[l], size).bytes;
      if (want[l].empty())
        want[l] = bytes;
      else if (bytes != want[l])
        throw Failure("other outputs in slice " + show(l));
    }
  }
}

TEST("mlp in one launch: a path that is none is refused by name") {
  require_hopper();
  const std::string message = expect_error(ErrorCode::kInvalidArgument, [] { set_mlp_path("sideways"); });
  CHECK(message.find("set_mlp_path") != std::string::npos && message.find("sideways") != std::string::npos);
}
