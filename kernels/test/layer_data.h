// Layers for the tests: descriptors, random weights on host and device, and one step's memory and results.
#pragma once
#include <atomic>
#include <memory>
#include <thread>

#include "data_plane.h"
#include "nexus/layer.h"

namespace nexus::test {

/// A layer's weights on the host, by the same names as LayerWeights.
struct HostWeights {
  HostArray router_weight, shared_gate;
  std::vector<float> router_bias, select_bias;
  std::array<HostArray, 3> expert_weight, shared_weight;
  std::array<std::vector<float>, 3> expert_bias, shared_bias;
};

struct Options {
  bool biases = false, router_bias = false, select_bias = false, given_logits = false;
};

inline HostWeights random_weights(Random& random, const LayerDesc& d, const Options& o) {
  HostWeights w;
  const auto matrix = [&](DType t, int64_t rows, int64_t columns) {
    return HostArray::rounded(
        t, random.normals(static_cast<size_t>(rows * columns), 1.f / std::sqrt(static_cast<float>(columns))));
  };
  if (!o.given_logits) w.router_weight = matrix(d.router_dtype, d.router.experts, d.experts.input);
  if (o.router_bias) w.router_bias = random.normals(static_cast<size_t>(d.router.experts));
  if (o.select_bias) w.select_bias = random.normals(static_cast<size_t>(d.router.experts), 0.1f);
  const auto mlp = [&](const MlpDesc& m, auto& weight, auto& bias) {
    for (int i = 0; i < mlp_layers(m.kind); ++i) {
      const GroupedLinearDesc l = mlp_layer(m, i);
      weight[static_cast<size_t>(i)] = matrix(l.dtype, l.experts * l.n, l.k);
      if (o.biases) bias[static_cast<size_t>(i)] = random.normals(static_cast<size_t>(l.experts * l.n), 0.3f);
    }
  };
  mlp(d.experts, w.expert_weight, w.expert_bias);
  if (d.has_shared) mlp(d.shared, w.shared_weight, w.shared_bias);
  if (d.shared_gate) w.shared_gate = matrix(d.experts.dtype, 1, d.experts.input);
  return w;
}

inline LayerWeights upload(const std::shared_ptr<Stream>& stream, const HostWeights& h) {
  const auto raw = [&](const void* data, size_t bytes) -> std::shared_ptr<Buffer> {
    if (bytes == 0) return nullptr;
    auto staging = HostBuffer::allocate(stream->device(), bytes);
    std::memcpy(staging->data(), data, bytes);
    auto buffer = Buffer::allocate(stream, bytes);
    stream->copy(buffer->data(), staging->data(), bytes);
    stream->synchronize();
    return buffer;
  };
  const auto array = [&](const HostArray& a) { return raw(a.data(), a.bytes.size()); };
  const auto floats = [&](const std::vector<float>& v) { return raw(v.data(), v.size() * 4); };
  LayerWeights w;
  w.router_weight = array(h.router_weight);
  w.router_bias = floats(h.router_bias);
  w.select_bias = floats(h.select_bias);
  w.shared_gate = array(h.shared_gate);
  for (size_t i = 0; i < 3; ++i) {
    w.expert_weight[i] = array(h.expert_weight[i]);
    w.expert_bias[i] = floats(h.expert_bias[i]);
    w.shared_weight[i] = array(h.shared_weight[i]);
    w.shared_bias[i] = floats(h.shared_bias[i]);
  }
  return w;
}

inline size_t output_size(const LayerDesc& d, int64_t tokens) {
  return static_cast<size_t>(tokens * d.experts.output * (d.combine == CombineMode::kConcat ? d.router.top_k : 1));
}

inline LayerDesc basic(DType t, MlpKind kind, Epilogue activation) {
  LayerDesc d;
  d.router = {.experts = 7, .top_k = 2, .normalize = Normalize::kSumPlusEpsilon};
  d.experts = {.dtype = t,
               .kind = kind,
               .activation = activation,
               .params = {1.5f, 1.702f},
               .experts = 7,
               .input = 40,
               .hidden = 52,
               .output = 40};
  return d;
}
inline LayerDesc with_shared(LayerDesc d, bool gate) {
  d.has_shared = true;
  d.shared = d.experts;
  d.shared.experts = 1;
  d.shared.hidden = 33;
  d.shared_gate = gate;
  return d;
}

/// Holds a CPU stream until it is let go.
struct Hold {
  std::shared_ptr<std::atomic<bool>> go = std::make_shared<std::atomic<bool>>(false);
  explicit Hold(Stream& stream) {
    stream.enqueue([go = go] {
      while (!*go) std::this_thread::yield();
    });
  }
  ~Hold() { *go = true; }
};

/// Tokens of one step, on the host and on a bench's device.
struct Batch {
  int64_t tokens = 0;
  const void* x = nullptr;
  const float* logits = nullptr;

  Batch(Random& random, Bench& bench, const LayerDesc& d, int64_t tokens, bool with_logits) : tokens(tokens) {
    x = bench.upload(
        HostArray::rounded(d.experts.dtype, random.normals(static_cast<size_t>(tokens * d.experts.input))));
    if (with_logits) logits = bench.upload(random.normals(static_cast<size_t>(tokens * d.router.experts)));
  }
};

/// All that a step gives.
struct Outcome {
  HostArray out;
  std::vector<int32_t> ids, counts;
  std::vector<float> weights;
};

/// The memory of one step: outputs poisoned before it, read after it.
class StepMemory {
 public:
  StepMemory(Bench& bench, const LayerDesc& d, const Batch& batch) : bench_(&bench), desc_(&d) {
    slots_ = static_cast<size_t>(batch.tokens * d.router.top_k);
    size_ = output_size(d, batch.tokens);
    args_.x = batch.x;
    args_.tokens = batch.tokens;
    args_.logits = batch.logits;
    args_.out = bench.poisoned(d.experts.dtype, size_);
    args_.ids_out = bench.poisoned<int32_t>(slots_);
    args_.weights_out = bench.poisoned<float>(slots_);
  }
  StepArgs args(const ExecPlan* plan = nullptr, CountRing* ring = nullptr) {
    StepArgs a = args_;
    a.record = record_.get();
    a.plan = plan;
    a.ring = ring;
    return a;
  }
  const StepRecord& record() const { return *record_; }
  Outcome read() {
    Outcome o;
    o.out = bench_->read(desc_->experts.dtype, args_.out, size_);
    o.ids = bench_->read(args_.ids_out, slots_);
    o.weights = bench_->read(args_.weights_out, slots_);
    o.counts.resize(static_cast<size_t>(desc_->router.experts));
    std::memcpy(o.counts.data(), record_->counts->data(), o.counts.size() * sizeof(int32_t));
    return o;
  }

 private:
  Bench* bench_;
  const LayerDesc* desc_;
  size_t slots_, size_;
  StepArgs args_;
  std::unique_ptr<StepRecord> record_ = std::make_unique<StepRecord>();
};

inline void check_same(const Outcome& got, const Outcome& want, const std::string& where) {
  if (got.counts != want.counts) throw Failure(where + ": other counts");
  if (got.ids != want.ids) throw Failure(where + ": other experts");
  if (got.weights.size() != want.weights.size() ||
      (!got.weights.empty() &&
       std::memcmp(got.weights.data(), want.weights.data(), got.weights.size() * sizeof(float)) != 0))
    throw Failure(where + ": other weights");
  size_t differing = 0;
  for (size_t i = 0; i < want.out.bytes.size(); ++i) differing += got.out.bytes[i] != want.out.bytes[i];
  if (got.out.bytes.size() != want.out.bytes.size() || differing != 0)
    throw Failure(where + ": " + show(differing) + " of " + show(want.out.bytes.size()) +
                  " bytes of the output differ");
}

}  // namespace nexus::test
