// The whole layer against a composed float64 oracle: every kind of MLP, router options, shared expert and its gate,
// concat, given logits, scaled input. The oracle takes the layer's own choice of experts (near ties may fall either
// way; router_test.cpp judges the choice) after checking it against the routing oracle's.
#include "nexus/layer.h"

#include <chrono>
#include <thread>

#include "data/reference.h"
#include "layer_data.h"

using namespace nexus;
using namespace nexus::test;

namespace {

MlpWeights pointers(const std::array<HostArray, 3>& weight, const std::array<std::vector<float>, 3>& bias) {
  MlpWeights w;
  for (size_t i = 0; i < 3; ++i) {
    w.weight[i] = weight[i].bytes.empty() ? nullptr : weight[i].data();
    w.bias[i] = bias[i].empty() ? nullptr : bias[i].data();
  }
  return w;
}

/// The routing oracle's choice, for comparison.
std::vector<int32_t> oracle_ids(const LayerDesc& d, const HostWeights& h, const HostArray& x, int64_t tokens,
                                const std::vector<float>& given) {
  const size_t experts = static_cast<size_t>(d.router.experts), slots = static_cast<size_t>(tokens * d.router.top_k);
  std::vector<float> logits = given;
  if (given.empty()) {
    std::vector<double> product(static_cast<size_t>(tokens) * experts);
    router_logits_reference({.x = x.data(),
                             .x_dtype = d.experts.dtype,
                             .weight = h.router_weight.data(),
                             .weight_dtype = d.router_dtype,
                             .bias = h.router_bias.empty() ? nullptr : h.router_bias.data(),
                             .tokens = tokens,
                             .hidden = d.experts.input,
                             .experts = d.router.experts},
                            product.data());
    logits.assign(product.begin(), product.end());
  }
  std::vector<int32_t> ids(slots), counts(experts), offsets(experts + 1), order(slots);
  std::vector<float> weights(slots);
  route_reference(d.router, {.logits = logits.data(),
                             .select_bias = h.select_bias.empty() ? nullptr : h.select_bias.data(),
                             .tokens = tokens,
                             .expert_ids = ids.data(),
                             .weights = weights.data(),
                             .counts = counts.data(),
                             .offsets = offsets.data(),
                             .order = order.data()});
  return ids;
}

/// The layer's output in float64 from a routing on; rows are stored in the dtype, as the contract says.
std::vector<double> oracle_output(const LayerDesc& d, const HostWeights& h, const HostArray& x, int64_t tokens,
                                  const std::vector<int32_t>& ids, const std::vector<float>& weights) {
  const Buckets buckets = bucket(d.router.experts, ids);
  const auto rounded = [&](const std::vector<double>& v) {
    return HostArray::rounded(d.experts.dtype, std::vector<float>(v.begin(), v.end()));
  };
  const HostArray rows = rounded(mlp_oracle(d.experts, pointers(h.expert_weight, h.expert_bias),
                                            {.x = x.data(),
                                             .tokens = tokens,
                                             .top_k = d.router.top_k,
                                             .offsets = buckets.offsets.data(),
                                             .order = buckets.order.data(),
                                             .input_scale = d.scale_input ? weights.data() : nullptr}));
  HostArray shared;
  std::vector<float> scale;
  if (d.has_shared)
    shared = rounded(mlp_oracle(d.shared, pointers(h.shared_weight, h.shared_bias), {.x = x.data(), .tokens = tokens}));
  if (d.shared_gate)
    for (int64_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int64_t i = 0; i < d.experts.input; ++i)
        sum += x[static_cast<size_t>(t * d.experts.input + i)] * h.shared_gate[static_cast<size_t>(i)];
      scale.push_back(static_cast<float>(reference::sigmoid(sum)));
    }
  std::vector<double> out(output_size(d, tokens));
  combine_reference({.mode = d.combine,
                     .dtype = d.experts.dtype,
                     .rows = rows.data(),
                     .weights = d.scale_input ? nullptr : weights.data(),
                     .shared = d.has_shared ? shared.data() : nullptr,
                     .shared_scale = d.shared_gate ? scale.data() : nullptr,
                     .tokens = tokens,
                     .width = d.experts.output,
                     .top_k = d.router.top_k},
                    out.data());
  return out;
}

/// Batches up and down through one layer, each checked, repeated and, on the CPU, repeated on other numbers of threads.
void check_layer(Random& random, const LayerDesc& d, const Options& o, const std::string& what) {
  const HostWeights h = random_weights(random, d, o);
  for (const DeviceId device : devices()) {
    Bench bench(device);
    const auto layer = Layer::create(d, upload(bench.stream, h), device);
    for (const int64_t tokens : {int64_t{3}, int64_t{0}, int64_t{61}, int64_t{1}}) {
      const size_t slots = static_cast<size_t>(tokens * d.router.top_k), size = output_size(d, tokens);
      const HostArray x =
          HostArray::rounded(d.experts.dtype, random.normals(static_cast<size_t>(tokens * d.experts.input)));
      const std::vector<float> logits =
          o.given_logits ? random.normals(static_cast<size_t>(tokens * d.router.experts)) : std::vector<float>{};
      const void* device_x = bench.upload(x);
      const float* device_logits = o.given_logits ? bench.upload(logits) : nullptr;
      StepRecord record;
      std::vector<int32_t> ids;
      std::vector<float> weights;
      const auto run = [&] {
        void* out = bench.poisoned(d.experts.dtype, size);
        int32_t* ids_out = bench.poisoned<int32_t>(slots);
        float* weights_out = bench.poisoned<float>(slots);
        layer->enqueue(bench.stream, {.x = device_x,
                                      .tokens = tokens,
                                      .logits = device_logits,
                                      .out = out,
                                      .record = &record,
                                      .ids_out = ids_out,
                                      .weights_out = weights_out});
        const HostArray got = bench.read(d.experts.dtype, out, size);
        ids = bench.read(ids_out, slots);
        weights = bench.read(weights_out, slots);
        return got;
      };
      const HostArray got = run();
      const std::string where = device.name() + " " + what + " " + name_of(d.experts.dtype) + " tokens " + show(tokens);
      const std::vector<int32_t> expected = oracle_ids(d, h, x, tokens, logits);
      size_t differing = 0;
      for (size_t s = 0; s < slots; ++s) differing += ids[s] != expected[s];
      if (differing > 2) throw Failure(where + ": " + show(differing) + " slots have another expert than the oracle's");
      check_close(got, oracle_output(d, h, x, tokens, ids, weights), tolerance(d.experts.dtype), where);

      CHECK_EQ(record.tokens, tokens);
      std::vector<int32_t> counts(static_cast<size_t>(d.router.experts), 0);
      for (const int32_t e : ids) ++counts[static_cast<size_t>(e)];
      CHECK(std::memcmp(record.counts->data(), counts.data(), counts.size() * 4) == 0);
      for (size_t i = 0; i + 1 < record.marks.size(); ++i)
        CHECK(record.marks[i]->elapsed_ms(*record.marks[i + 1]) >= 0);

      CHECK(run().bytes == got.bytes);
      if (device.is_cpu())
        for (const int threads : {1, 3}) {
          Threads scope(threads);
          CHECK(run().bytes == got.bytes);
        }
    }
    CHECK(layer->workspace_bytes() > 0 && layer->weight_bytes() > 0);
    layer->release();
    CHECK_EQ(layer->weight_bytes(), 0u);
    CHECK_EQ(layer->workspace_bytes(), 0u);
    expect_error(ErrorCode::kDisposed, [&] { layer->enqueue(bench.stream, {}); });
  }
}

}  // namespace

TEST("layer: two-layer, three-layer and gated experts, with and without biases") {
  Random random(50);
  for (const DType t : kFloatTypes)
    for (const bool biases : {false, true}) {
      for (const Epilogue e : {Epilogue::kRelu, Epilogue::kGelu, Epilogue::kGeluTanh, Epilogue::kSilu})
        check_layer(random, basic(t, MlpKind::kTwoLayer, e), {.biases = biases}, "two-layer");
      check_layer(random, basic(t, MlpKind::kThreeLayer, Epilogue::kRelu), {.biases = biases}, "three-layer");
      for (const Epilogue e : {Epilogue::kSwiglu, Epilogue::kGeglu, Epilogue::kClampedSwiglu})
        check_layer(random, basic(t, MlpKind::kGated, e), {.biases = biases}, "gated");
    }
}

TEST("layer: GPT-OSS: a biased router, softmax over the chosen, clamped swiglu with biases") {
  Random random(51);
  for (const DType t : kFloatTypes) {
    LayerDesc d = basic(t, MlpKind::kGated, Epilogue::kClampedSwiglu);
    d.router_dtype = t;
    d.router = {.experts = 7, .top_k = 4, .score = Score::kIdentity, .weigh = Weigh::kSoftmaxChosen};
    check_layer(random, d, {.biases = true, .router_bias = true}, "gpt-oss");
  }
}

TEST("layer: DeepSeek-V3: sigmoid, selection bias, groups, a shared expert without gate") {
  Random random(52);
  for (const DType t : kFloatTypes) {
    LayerDesc d = with_shared(basic(t, MlpKind::kGated, Epilogue::kSwiglu), false);
    d.experts.experts = 16;
    d.router = {.experts = 16,
                .top_k = 4,
                .score = Score::kSigmoid,
                .groups = 4,
                .keep_groups = 2,
                .group_value = GroupValue::kTopTwoSum,
                .normalize = Normalize::kSumPlusEpsilon,
                .epsilon = 1e-20f,
                .scale = 2.5f};
    check_layer(random, d, {.select_bias = true}, "deepseek-v3");
  }
}

TEST("layer: Qwen2-MoE: a shared expert behind its sigmoid gate") {
  Random random(53);
  for (const DType t : kFloatTypes)
    check_layer(random, with_shared(basic(t, MlpKind::kGated, Epilogue::kSwiglu), true), {}, "qwen2");
}

TEST("layer: Llama-4: the weight scales the expert's input") {
  Random random(54);
  for (const DType t : kFloatTypes) {
    LayerDesc d = with_shared(basic(t, MlpKind::kGated, Epilogue::kSwiglu), false);
    d.router = {.experts = 7, .top_k = 1, .score = Score::kIdentity, .weigh = Weigh::kSigmoidChosen};
    d.scale_input = true;
    check_layer(random, d, {}, "llama-4");
  }
}

TEST("layer: concat, and given logits without a router weight") {
  Random random(55);
  for (const DType t : kFloatTypes) {
    LayerDesc d = basic(t, MlpKind::kGated, Epilogue::kSwiglu);
    d.combine = CombineMode::kConcat;
    check_layer(random, d, {}, "concat");
    check_layer(random, basic(t, MlpKind::kTwoLayer, Epilogue::kRelu), {.given_logits = true}, "given logits");
  }
}

TEST("layer: steps alternating between two streams give the same bits") {
  Random random(56);
  const LayerDesc d = with_shared(basic(DType::kF32, MlpKind::kGated, Epilogue::kSwiglu), true);
  const HostWeights h = random_weights(random, d, {});
  for (const DeviceId device : devices()) {
    Bench a(device), b(device);
    const auto layer = Layer::create(d, upload(a.stream, h), device);
    const HostArray x = HostArray::rounded(DType::kF32, random.normals(50 * 40));
    std::vector<std::vector<uint8_t>> outputs;
    std::vector<std::pair<Bench*, void*>> pending;
    for (Bench* bench : {&a, &b, &a, &b}) {
      const void* device_x = bench->upload(x);
      void* out = bench->poisoned<float>(50 * 40);
      layer->enqueue(bench->stream, {.x = device_x, .tokens = 50, .out = out});
      pending.emplace_back(bench, out);
    }
    for (auto& [bench, out] : pending) outputs.push_back(bench->read(out, 50 * 40 * 4));
    for (const auto& bytes : outputs) CHECK(bytes == outputs[0]);
  }
}

TEST("layer: create refuses descriptors and weights that do not fit") {
  Random random(57);
  const DeviceId cpu;
  auto stream = Stream::create(cpu);
  const LayerDesc good = with_shared(basic(DType::kF32, MlpKind::kGated, Epilogue::kSwiglu), true);
  const HostWeights h = random_weights(random, good, {.biases = true, .router_bias = true});
  const auto refused = [&](const std::string& word, const std::function<void(LayerDesc&, LayerWeights&)>& spoil) {
    LayerDesc d = good;
    LayerWeights w = upload(stream, h);
    spoil(d, w);
    const std::string message = expect_error(ErrorCode::kInvalidArgument, [&] { Layer::create(d, w, cpu); });
    if (message.find(word) == std::string::npos)
      throw Failure("expected a message with '" + word + "', got: " + message);
  };
  CHECK(Layer::create(good, upload(stream, h), cpu) != nullptr);
  refused("router", [](LayerDesc&, LayerWeights& w) { w.router_weight = w.router_bias; });
  refused("expert weight 1", [](LayerDesc&, LayerWeights& w) { w.expert_weight[1] = nullptr; });
  refused("expert bias 0", [](LayerDesc&, LayerWeights& w) { w.expert_bias[0] = w.expert_bias[1]; });
  refused("shared weight 0", [](LayerDesc&, LayerWeights& w) { w.shared_weight[0] = nullptr; });
  refused("shared gate", [](LayerDesc&, LayerWeights& w) { w.shared_gate = nullptr; });
  refused("experts", [](LayerDesc& d, LayerWeights&) { d.router.experts = 6; });
  refused("top_k", [](LayerDesc& d, LayerWeights&) { d.router.top_k = 8; });
  refused("concat", [](LayerDesc& d, LayerWeights&) { d.combine = CombineMode::kConcat; });
  refused("activation", [](LayerDesc& d, LayerWeights&) { d.experts.activation = Epilogue::kRelu; });
}

namespace {

/// A small float32 layer and one step of it, for the tests of what happens between streams.
struct SmallLayer {
  LayerDesc desc;
  HostWeights host;
  HostArray x;
  static constexpr int64_t kTokens = 5;
  SmallLayer() {
    Random random(54);
    desc.router = {.experts = 3, .top_k = 2};
    desc.experts.kind = MlpKind::kGated;
    desc.experts.activation = Epilogue::kSwiglu;
    desc.experts.experts = 3;
    desc.experts.input = desc.experts.output = 8;
    desc.experts.hidden = 6;
    host = random_weights(random, desc, {});
    x = HostArray::rounded(DType::kF32, random.normals(static_cast<size_t>(kTokens * 8)));
  }
  size_t size() const { return output_size(desc, kTokens); }
  std::vector<uint8_t> expected(DeviceId device) const {
    Bench bench(device);
    const auto layer = Layer::create(desc, upload(bench.stream, host), device);
    void* out = bench.poisoned(DType::kF32, size());
    layer->enqueue(bench.stream, {.x = bench.upload(x), .tokens = kTokens, .out = out});
    return bench.read(DType::kF32, out, size()).bytes;
  }
};

}  // namespace

TEST("layer: a step on another stream waits for the one before, whose scratch memory it uses") {
  const SmallLayer small;
  const DeviceId cpu{-1};
  Bench first(cpu), second(cpu);
  const auto layer = Layer::create(small.desc, upload(first.stream, small.host), cpu);
  const void *x1 = first.upload(small.x), *x2 = second.upload(small.x);
  void *out1 = first.poisoned(DType::kF32, small.size()), *out2 = second.poisoned(DType::kF32, small.size());
  first.stream->synchronize();
  second.stream->synchronize();
  {
    Hold hold(*first.stream);
    layer->enqueue(first.stream, {.x = x1, .tokens = SmallLayer::kTokens, .out = out1});
    layer->enqueue(second.stream, {.x = x2, .tokens = SmallLayer::kTokens, .out = out2});
    const auto done = Event::create(cpu);
    done->record(*second.stream);
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    CHECK(!done->ready());
  }
  const auto want = small.expected(cpu);
  CHECK(first.read(DType::kF32, out1, small.size()).bytes == want);
  CHECK(second.read(DType::kF32, out2, small.size()).bytes == want);
}

TEST("layer: weights that are dropped stay until a step on another stream is done with them") {
  const SmallLayer small;
  const DeviceId cpu{-1};
  Bench owner(cpu), user(cpu);
  const void* x = user.upload(small.x);
  void* out = user.poisoned(DType::kF32, small.size());
  user.stream->synchronize();
  {
    Hold hold(*user.stream);
    auto layer = Layer::create(small.desc, upload(owner.stream, small.host), cpu);
    layer->enqueue(user.stream, {.x = x, .tokens = SmallLayer::kTokens, .out = out});
    layer.reset();
    owner.stream->synchronize();
    std::vector<std::shared_ptr<Buffer>> kept;
    // Memory of the same sizes: the arena would hand out the weights' blocks again.
    for (const auto& w : {small.host.router_weight, small.host.expert_weight[0], small.host.expert_weight[1]})
      for (int i = 0; i < 8; ++i) {
        kept.push_back(Buffer::allocate(owner.stream, w.bytes.size()));
        owner.stream->fill(kept.back()->data(), 0xFF, w.bytes.size());
      }
    owner.stream->synchronize();
  }
  CHECK(user.read(DType::kF32, out, small.size()).bytes == small.expected(cpu));
}

TEST("layer: the scratch memory grows with the batch and is kept for smaller ones") {
  const SmallLayer small;
  const DeviceId cpu{-1};
  Bench bench(cpu);
  const auto layer = Layer::create(small.desc, upload(bench.stream, small.host), cpu);
  const auto step = [&](int64_t tokens) {
    Random random(55);
    const void* x = bench.upload(random.normals(static_cast<size_t>(tokens * 8)));
    void* out = bench.poisoned(DType::kF32, output_size(small.desc, tokens));
    layer->enqueue(bench.stream, {.x = x, .tokens = tokens, .out = out});
    return layer->workspace_bytes();
  };
  const size_t at_64 = step(64), at_96 = step(96);
  CHECK(at_64 >= 64 * 2 * 8 * 4);  // at least its rows
  CHECK(at_96 > at_64);
  CHECK_EQ(step(5), at_96);
}

TEST("layer: a token bucket is the least of the list that holds the tokens") {
  const std::vector<int64_t> list{0,   1,   2,   4,   8,   16,  24,   32,   48,   64,   96,
                                  128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096};
  for (int64_t tokens = 0; tokens <= 4096; ++tokens)
    CHECK_EQ(token_bucket(tokens), *std::lower_bound(list.begin(), list.end(), tokens));
  for (int64_t power = 4096; power < (int64_t{1} << 61); power *= 2) {
    CHECK_EQ(token_bucket(power + 1), power + power / 2);
    CHECK_EQ(token_bucket(power + power / 2 + 1), 2 * power);
    CHECK_EQ(token_bucket(2 * power), 2 * power);
  }
  for (const int64_t wrong : {int64_t{-1}, INT64_MIN, INT64_MAX})
    expect_error(ErrorCode::kInvalidArgument, [&] { token_bucket(wrong); });
}

TEST("layer: a recorded step refuses an x that does not start at a multiple of 16 bytes; an eager one takes it") {
  const SmallLayer small;
  Random random(77);
  for (const DeviceId device : devices()) {
    Bench bench(device);
    const auto layer = Layer::create(small.desc, upload(bench.stream, small.host), device);
    const HostArray x =
        HostArray::rounded(DType::kF32, random.normals(static_cast<size_t>(2 * small.desc.experts.input)));
    HostArray moved = x;  // the same rows, one element further on
    moved.bytes.insert(moved.bytes.begin(), size_of(DType::kF32), 0);
    const void* const aligned = bench.upload(x);
    const void* const beside = static_cast<const uint8_t*>(bench.upload(moved)) + size_of(DType::kF32);
    const auto graph = layer->capture(bench.stream, 2, false, nullptr, nullptr);
    const size_t size = output_size(small.desc, 2);
    const auto step = [&](const void* from, bool recorded) {
      const StepArgs args{.x = from, .tokens = 2, .out = bench.poisoned(DType::kF32, size)};
      recorded ? layer->replay(bench.stream, *graph, args) : layer->enqueue(bench.stream, args);
      return bench.read(DType::kF32, args.out, size);
    };
    const std::string message = expect_error(ErrorCode::kInvalidArgument, [&] { step(beside, true); });
    if (message.find("x ") == std::string::npos || message.find("16 bytes") == std::string::npos)
      throw Failure("expected a message about x and 16 bytes, got: " + message);
    const HostArray want = step(aligned, true);  // the refused step left nothing behind
    check_close(step(beside, false), want, tolerance(DType::kF32), device.name());
  }
}

TEST("layer: a step's wrong arguments are named before anything is queued") {
  const SmallLayer small;
  for (const DeviceId device : devices()) {
    Bench bench(device);
    const auto layer = Layer::create(small.desc, upload(bench.stream, small.host), device);
    const auto refused = [&](const std::string& word, const std::shared_ptr<Stream>& stream, const StepArgs& args) {
      const std::string message = expect_error(ErrorCode::kInvalidArgument, [&] { layer->enqueue(stream, args); });
      if (message.find(word) == std::string::npos)
        throw Failure("expected a message with '" + word + "', got: " + message);
    };
    void* memory = bench.poisoned(DType::kF32, small.size());
    refused("stream", nullptr, {});
    refused("tokens", bench.stream, {.x = memory, .tokens = -1, .out = memory});
    refused("x ", bench.stream, {.tokens = 1, .out = memory});
    refused("out ", bench.stream, {.x = memory, .tokens = 1});
    CHECK_EQ(layer->workspace_bytes(), 0u);
  }
}
