// Decode steps by kernels of their own against the chain of operations that they stand for: outputs, choice, weights,
// counts and ring are the same bytes, eager and recorded, whatever layer within their range; and a step outside of it
// takes the chain. On a GPU of compute capability 9.0 only: elsewhere there is nothing but the chain.
#include <cmath>

#include "cuda_path.h"
#include "layer_data.h"

using namespace nexus;
using namespace nexus::test;

namespace {

bool coin(Random& random) { return random.integer(0, 1) == 1; }
template <class T>
T one_of(Random& random, std::initializer_list<T> values) {
  return *(values.begin() + random.integer(0, static_cast<int64_t>(values.size()) - 1));
}

struct DecodeLayer {
  LayerDesc desc;
  Options options;
  int64_t bucket = 1;
  std::string what;
};

/// Few rows over many experts, so that both linear layers are matrix-vector products.
DecodeLayer any_decode(Random& random) {
  DecodeLayer made;
  LayerDesc& d = made.desc;
  MlpDesc& m = d.experts;
  m.dtype = kFloatTypes[random.integer(0, 2)];
  const int64_t chunk = 16 / static_cast<int64_t>(size_of(m.dtype));
  d.router.experts = m.experts = one_of(random, {1, 4, 8, 16, 33, 64, 100, 128, 130, 257, 512});
  const int rows = m.experts < 4 ? 1 : std::min(16, m.experts / 4);
  made.bucket = one_of<int64_t>(random, {1, 1, 2, 4, 8});
  while (made.bucket > rows) made.bucket /= 2;
  d.router.top_k = static_cast<int>(random.integer(1, std::min<int64_t>(m.experts, rows / made.bucket)));
  d.router.score = one_of(random, {Score::kSoftmax, Score::kSigmoid});
  d.router.weigh = one_of(random, {Weigh::kScore, Weigh::kSoftmaxChosen, Weigh::kSigmoidChosen});
  d.router.normalize = one_of(random, {Normalize::kNone, Normalize::kSumPlusEpsilon});
  d.router.scale = coin(random) ? 1.f : 2.5f;
  if (m.experts % 4 == 0 && random.integer(0, 3) == 0) {
    d.router.groups = 4;
    d.router.keep_groups = static_cast<int>(random.integer(1, 4));
    d.router.top_k = std::min(d.router.top_k, d.router.keep_groups * m.experts / 4);
  }
  m.kind = coin(random) ? MlpKind::kGated : MlpKind::kTwoLayer;
  m.activation = m.kind == MlpKind::kGated
                     ? one_of(random, {Epilogue::kSwiglu, Epilogue::kGeglu, Epilogue::kGegluTanh, Epilogue::kReglu,
                                       Epilogue::kClampedSwiglu})
                     : one_of(random, {Epilogue::kRelu, Epilogue::kGelu, Epilogue::kGeluTanh, Epilogue::kSilu});
  m.input = chunk * one_of<int64_t>(random, {1, 5, 32, 64, 65, 100, 256, 360, 512});
  m.hidden = chunk * one_of<int64_t>(random, {1, 3, 32, 96, 128, 176, 512, 768});
  m.output = coin(random) ? m.input : one_of<int64_t>(random, {1, 6, 64, 97, 1000, 2049});
  d.scale_input = random.integer(0, 3) == 0;
  d.router_dtype = coin(random) ? DType::kF32 : m.dtype;
  made.options = {.biases = coin(random), .router_bias = coin(random), .select_bias = coin(random)};
  made.what = std::string(name_of(m.dtype)) + " " + show(m.experts) + " experts top " + show(d.router.top_k) + ", " +
              show(m.input) + "/" + show(m.hidden) + "/" + show(m.output) + ", activation " + show(m.activation) +
              ", bucket " + show(made.bucket) + (made.options.biases ? ", biased" : "") +
              (d.scale_input ? ", input scaled" : "");
  return made;
}

/// One whose weights do not take longer to make than everything else.
DecodeLayer random_decode(Random& random) {
  for (;;) {
    DecodeLayer made = any_decode(random);
    const MlpDesc& m = made.desc.experts;
    if (m.experts * m.hidden * (2 * m.input + m.output) < int64_t{8} << 20) return made;
  }
}

/// One step with everything that it leaves read back, by a graph or eagerly. No record: its marks would ask for phases.
struct Result {
  HostArray out;
  std::vector<int32_t> ids;
  std::vector<float> weights;
  CountRing::Reading ring;
};
Result run_step(Bench& bench, Layer& layer, LayerGraph* graph, const Batch& batch, CountRing& ring, uint64_t from) {
  const LayerDesc& d = layer.desc();
  const size_t slots = static_cast<size_t>(batch.tokens * d.router.top_k), size = output_size(d, batch.tokens);
  StepArgs a;
  a.x = batch.x, a.tokens = batch.tokens, a.logits = batch.logits;
  a.out = bench.poisoned(d.experts.dtype, size);
  a.ids_out = bench.poisoned<int32_t>(slots);
  a.weights_out = bench.poisoned<float>(slots);
  a.ring = &ring;
  if (graph != nullptr)
    layer.replay(bench.stream, *graph, a);
  else
    layer.enqueue(bench.stream, a);
  Result r;
  r.out = bench.read(d.experts.dtype, a.out, size);
  r.ids = bench.read(a.ids_out, slots);
  r.weights = bench.read(a.weights_out, slots);
  r.ring = ring.read(from);
  return r;
}
void check_equal(const Result& got, const Result& want, const std::string& where) {
  if (got.ids != want.ids) throw Failure(where + ": other experts");
  if (std::memcmp(got.weights.data(), want.weights.data(), 4 * want.weights.size()) != 0)
    throw Failure(where + ": other weights");
  if (got.ring.steps.size() != 1 || got.ring.tokens != want.ring.tokens || got.ring.counts != want.ring.counts)
    throw Failure(where + ": the ring has other counts");
  if (got.out.bytes != want.out.bytes) throw Failure(where + ": other outputs");
}

}  // namespace

TEST_IN_PARTS("decode: random layers give the bits of the chain, eager and recorded, for every number of tokens") {
  require_hopper();
  Random random(1200);
  for (int l = 0; l < 150; ++l) {
    if (!part.mine()) continue;
    const DecodeLayer made = random_decode(random);
    Bench bench(DeviceId{0});
    const auto layer =
        Layer::create(made.desc, upload(bench.stream, random_weights(random, made.desc, made.options)), bench.device);
    const bool given = coin(random);
    const auto ring = CountRing::create(bench.device, made.desc.router.experts, 4);
    const Batch first(random, bench, made.desc, made.bucket, given);
    uint64_t steps = 0;
    const auto record = [&](const char* by) {
      const Path path(set_decode_path, by);
      run_step(bench, *layer, nullptr, first, *ring, steps++);  // before a capture comes an eager step
      return layer->capture(bench.stream, made.bucket, given, nullptr, ring.get());
    };
    const auto chain = record("chain"), fused = record("fused");
    if (fused->nodes() >= chain->nodes())
      throw Failure(made.what + ": " + show(fused->nodes()) + " nodes, and the chain has " + show(chain->nodes()));
    for (int64_t tokens = 0; tokens <= made.bucket; ++tokens) {
      const Batch batch(random, bench, made.desc, tokens, given);
      const std::string where = made.what + ", " + show(tokens) + " tokens";
      const Result want = run_step(bench, *layer, chain.get(), batch, *ring, steps++);
      for (int again = 0; again < 3; ++again)
        check_equal(run_step(bench, *layer, fused.get(), batch, *ring, steps++), want, where + ", recorded");
      if (token_bucket(tokens) != made.bucket) continue;
      const Path path(set_decode_path, "fused");
      check_equal(run_step(bench, *layer, nullptr, batch, *ring, steps++), want, where + ", eager");
    }
  }
}

TEST_IN_PARTS("decode: real widths, in slices and on the whole chip, steps one behind the other") {
  require_hopper();
  struct Shape {
    int experts, top_k;
    int64_t hidden, inter, tokens;
    DType dtype = DType::kBF16;
  };
  Random random(1201);
  for (const Shape& s : {Shape{128, 8, 2048, 768, 1}, Shape{128, 8, 2048, 768, 2}, Shape{64, 6, 2048, 1408, 1},
                         Shape{32, 4, 2880, 2880, 1}, Shape{64, 6, 2056, 1408, 3}, Shape{32, 4, 2880, 2880, 2},
                         Shape{8, 2, 512, 1024, 1}, Shape{16, 2, 1024, 2048, 1}, Shape{8, 2, 512, 14336, 1},
                         Shape{8, 2, 4096, 512, 1}, Shape{16, 2, 1032, 4096, 2},
                         Shape{64, 8, 2048, 768, 1, DType::kF16}, Shape{64, 8, 1024, 768, 1, DType::kF32}}) {
    if (!part.mine()) continue;
    LayerDesc d;
    d.router = {.experts = s.experts, .top_k = s.top_k, .normalize = Normalize::kSumPlusEpsilon};
    d.experts = {.dtype = s.dtype, .experts = s.experts, .input = s.hidden, .hidden = s.inter, .output = s.hidden};
    Bench bench(DeviceId{0});
    // Weights that repeat every few experts: distinct rows matter here, not distinct experts' bytes.
    LayerWeights w;
    const auto matrix = [&](int64_t n, int64_t k) {
      auto buffer = Buffer::allocate(bench.stream, static_cast<size_t>(s.experts * n * k) * size_of(s.dtype));
      const HostArray some = HostArray::rounded(
          s.dtype, random.normals(static_cast<size_t>(n * k), 1.f / std::sqrt(static_cast<float>(k))));
      const auto staging = HostBuffer::allocate(bench.device, some.bytes.size());
      std::memcpy(staging->data(), some.data(), some.bytes.size());
      for (int e = 0; e < s.experts; ++e)  // each expert's rows begin elsewhere in the same data
        for (int part = 0; part < 2; ++part) {
          const size_t cut = static_cast<size_t>(e * n / s.experts * k) * size_of(s.dtype), all = some.bytes.size();
          char* const to = static_cast<char*>(buffer->data()) + static_cast<size_t>(e) * all;
          const char* const from = static_cast<const char*>(staging->data());
          if (part == 0)
            bench.stream->copy(to, from + cut, all - cut);
          else if (cut > 0)
            bench.stream->copy(to + (all - cut), from, cut);
        }
      bench.stream->synchronize();
      return buffer;
    };
    w.expert_weight = {matrix(2 * s.inter, s.hidden), matrix(s.hidden, s.inter), nullptr};
    const auto layer = Layer::create(d, w, bench.device);
    const auto ring = CountRing::create(bench.device, s.experts, 64);
    const std::string what = show(s.hidden) + "/" + show(s.inter) + "/" + show(s.experts) + "/" + show(s.top_k);
    std::vector<Batch> batches;
    std::vector<Result> want;
    uint64_t steps = 0;
    for (int i = 0; i < 4; ++i) {
      batches.emplace_back(random, bench, d, s.tokens, true);
      const Path path(set_decode_path, "chain");
      want.push_back(run_step(bench, *layer, nullptr, batches.back(), *ring, steps++));
    }
    const Path path(set_decode_path, "fused");
    const auto graph = layer->capture(bench.stream, token_bucket(s.tokens), true, nullptr, ring.get());
    const size_t size = output_size(d, s.tokens);
    for (int round = 0; round < 20; ++round) {  // queued without a wait: a step must not disturb the next one's start
      std::vector<void*> outs;
      for (size_t i = 0; i < batches.size(); ++i) {
        StepArgs a;
        a.x = batches[i].x, a.tokens = s.tokens, a.logits = batches[i].logits;
        a.out = bench.poisoned(s.dtype, size);
        if (round % 2 == 0)
          layer->replay(bench.stream, *graph, a);
        else
          layer->enqueue(bench.stream, a);
        outs.push_back(a.out);
      }
      for (size_t i = 0; i < batches.size(); ++i)
        if (bench.read(s.dtype, outs[i], size).bytes != want[i].out.bytes)
          throw Failure(what + ": other outputs in round " + show(round));
    }
    if (partition_info(bench.device).enforcement != Enforcement::kHardware) continue;
    const auto partition = Partition::create(bench.device, {8, 24});
    for (int slice = 0; slice < 2; ++slice) {
      const auto stream = partition->create_stream(slice, 0);
      StepArgs a;
      a.x = batches[0].x, a.tokens = s.tokens, a.logits = batches[0].logits;
      a.out = bench.poisoned(s.dtype, size);
      bench.stream->synchronize();
      layer->enqueue(stream, a);
      stream->synchronize();
      if (bench.read(s.dtype, a.out, size).bytes != want[0].out.bytes)
        throw Failure(what + ": other outputs in slice " + show(slice));
    }
  }
}

TEST("decode: equal logits, zeros of both signs, infinite and missing ones") {
  require_hopper();
  Random random(1204);
  Bench bench(DeviceId{0});
  for (const int experts : {4, 33, 128, 512})
    for (const Score score : {Score::kSoftmax, Score::kSigmoid, Score::kIdentity}) {
      LayerDesc d;
      d.router = {.experts = experts, .top_k = std::min(8, experts / 4)};
      d.router.score = score;
      d.experts = {.dtype = DType::kBF16, .experts = experts, .input = 64, .hidden = 64, .output = 64};
      const auto layer =
          Layer::create(d, upload(bench.stream, random_weights(random, d, {.given_logits = true})), bench.device);
      const auto ring = CountRing::create(bench.device, experts, 2);
      uint64_t steps = 0;
      for (int round = 0; round < 8; ++round) {
        std::vector<float> logits(static_cast<size_t>(experts), 1.f);
        for (float& l : logits) {
          if (round == 0) break;  // all are equal
          l = round % 2 == 0 ? one_of(random, {0.f, -0.f, -1.f})
                             : one_of(random, {0.f, -0.f, -1.f, 1.f, 2.f, NAN, -INFINITY});
          if (round > 5 && score != Score::kIdentity && random.integer(0, 9) == 0) l = INFINITY;
        }
        Batch batch(random, bench, d, 1, true);
        batch.logits = bench.upload(logits);
        std::vector<Result> results;
        for (const char* by : {"chain", "fused"}) {
          const Path path(set_decode_path, by);
          results.push_back(run_step(bench, *layer, nullptr, batch, *ring, steps++));
        }
        check_equal(results[1], results[0],
                    show(experts) + " experts, score " + show(static_cast<int>(score)) + ", round " + show(round));
      }
    }
}

TEST("decode: what it does not serve takes the chain") {
  require_hopper();
  Random random(1202);
  Bench bench(DeviceId{0});
  const auto taken = [&](const LayerDesc& d, int64_t bucket) {
    const auto layer =
        Layer::create(d, upload(bench.stream, random_weights(random, d, {.given_logits = true})), bench.device);
    const auto ring = CountRing::create(bench.device, d.router.experts, 1);
    const Batch batch(random, bench, d, bucket, true);
    int nodes[2], i = 0;
    for (const char* by : {"fused", "chain"}) {
      const Path path(set_decode_path, by);
      run_step(bench, *layer, nullptr, batch, *ring, static_cast<uint64_t>(i));
      nodes[i++] = layer->capture(bench.stream, bucket, true, nullptr, nullptr)->nodes();
    }
    return nodes[0] < nodes[1];
  };
  LayerDesc d;
  d.router = {.experts = 16, .top_k = 2, .normalize = Normalize::kSumPlusEpsilon};
  d.experts = {.dtype = DType::kBF16, .experts = 16, .input = 64, .hidden = 64, .output = 64};
  CHECK(taken(d, 1));
  LayerDesc other = d;
  other.combine = CombineMode::kConcat;
  CHECK(!taken(other, 1));
  other = d;
  other.experts.kind = MlpKind::kThreeLayer, other.experts.activation = Epilogue::kRelu;
  CHECK(!taken(other, 1));
  other = with_shared(d, true);
  CHECK(!taken(other, 1));
  other = d;
  other.experts.input = other.experts.output = 36;  // rows that are not aligned to 16 bytes
  CHECK(!taken(other, 1));
  CHECK(!taken(d, 16));  // more than 16 rows
  const std::string message = expect_error(ErrorCode::kInvalidArgument, [] { set_decode_path("sideways"); });
  CHECK(message.find("set_decode_path") != std::string::npos && message.find("sideways") != std::string::npos);
}

namespace {

/// For layers made in its scope: matrix-vector products for both linear layers, at so many rows.
struct GemvTable {
  GemvTable(const MlpDesc& mlp, int64_t rows) {
    std::vector<VariantTable::Choice> choices;
    for (int i = 0; i < mlp_layers(mlp.kind); ++i)
      choices.push_back({variant_key(mlp_layer(mlp, i)), rows, {"gemv_1x8"}});
    set_variant_table(device_, std::make_shared<VariantTable>(choices, std::vector<VariantTable::Order>{}));
  }
  ~GemvTable() { set_variant_table(device_, nullptr); }
  GemvTable(const GemvTable&) = delete;
  GemvTable& operator=(const GemvTable&) = delete;

 private:
  const std::string device_ = device_class(DeviceId{0});
};

}  // namespace

TEST("decode: 64 rows by a table, unless a block cannot hold the keys of so many experts") {
  require_hopper();
  Random random(1203);
  Bench bench(DeviceId{0});
  for (const int experts : {64, 512}) {
    LayerDesc d;
    d.router = {.experts = experts, .top_k = 1};
    d.experts = {.dtype = DType::kBF16, .experts = experts, .input = 64, .hidden = 64, .output = 64};
    const GemvTable table(d.experts, 64);
    const auto layer =
        Layer::create(d, upload(bench.stream, random_weights(random, d, {.given_logits = true})), bench.device);
    const auto ring = CountRing::create(bench.device, experts, 2);
    const Batch batch(random, bench, d, 64, true);
    std::vector<Result> results;
    std::vector<int> nodes;
    for (const char* by : {"chain", "fused"}) {
      const Path path(set_decode_path, by);
      results.push_back(run_step(bench, *layer, nullptr, batch, *ring, results.size()));
      nodes.push_back(layer->capture(bench.stream, 64, true, nullptr, nullptr)->nodes());
    }
    check_equal(results[1], results[0], show(experts) + " experts");
    CHECK_EQ(nodes[1] < nodes[0], experts == 64);
  }
}
