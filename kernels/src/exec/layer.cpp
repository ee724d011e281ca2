// The whole MoE layer as one enqueue: router product → route → experts → shared expert → combine.
//
// It owns the weights and one workspace, laid out once per largest batch; a step makes no allocation unless the batch
// grew. The workspace is used in stream order: a step on another stream than the last one first waits for that stream.
#include "nexus/layer.h"

#include <algorithm>
#include <mutex>

namespace nexus {
namespace {

constexpr size_t kAlign = 256;

/// Hands out aligned pieces of the workspace; with a null base it only measures.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(size_t bytes) {
    char* p = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + kAlign - 1) / kAlign * kAlign;
    return reinterpret_cast<T*>(p);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

struct Scratch {
  float* logits;
  int32_t *expert_ids, *counts, *offsets, *order;
  float* weights;
  void* route;
  void* rows;
  void* mlp;
  void* shared_rows;
  void* shared_mlp;
  float* shared_scale;
};

std::string got(int64_t v) { return ", got " + std::to_string(v); }

void need(const std::shared_ptr<Buffer>& b, const char* name, int64_t elements, DType dtype, DeviceId device) {
  if (b == nullptr) throw_invalid(std::string(name) + " is missing");
  if (!(b->device() == device))
    throw_invalid(std::string(name) + " must be on " + device.name() + ", it is on " + b->device().name());
  const size_t bytes = static_cast<size_t>(elements) * size_of(dtype);
  if (b->bytes() != bytes)
    throw_invalid(std::string(name) + " must have " + std::to_string(elements) + " elements of " + name_of(dtype) +
                  " (" + std::to_string(bytes) + " bytes)" + got(static_cast<int64_t>(b->bytes())) + " bytes");
}

void check_mlp(const MlpDesc& mlp, const std::array<std::shared_ptr<Buffer>, 3>& weight,
               const std::array<std::shared_ptr<Buffer>, 3>& bias, const char* what, DeviceId device) {
  for (int i = 0; i < mlp_layers(mlp.kind); ++i) {
    const GroupedLinearDesc layer = mlp_layer(mlp, i);
    const std::string name = std::string(what) + " weight " + std::to_string(i);
    need(weight[i], name.c_str(), layer.experts * layer.n * layer.k, layer.dtype, device);
    if (bias[i] != nullptr)
      need(bias[i], (std::string(what) + " bias " + std::to_string(i)).c_str(), layer.experts * layer.n, DType::kF32,
           device);
  }
}

MlpWeights pointers(const std::array<std::shared_ptr<Buffer>, 3>& weight,
                    const std::array<std::shared_ptr<Buffer>, 3>& bias) {
  MlpWeights w;
  for (int i = 0; i < 3; ++i) {
    w.weight[i] = weight[i] == nullptr ? nullptr : weight[i]->data();
    w.bias[i] = bias[i] == nullptr ? nullptr : static_cast<const float*>(bias[i]->data());
  }
  return w;
}

class LayerImpl final : public Layer {
 public:
  LayerImpl(const LayerDesc& desc, LayerWeights weights, DeviceId device)
      : desc_(desc), weights_(std::move(weights)), device_(device) {
    validate();
  }

  void enqueue(const std::shared_ptr<Stream>& stream, const void* x, int64_t tokens, const float* logits, void* out,
               StepRecord* record, int32_t* ids_out, float* weights_out) override {
    const std::lock_guard lock(mutex_);
    if (released_) throw Error(ErrorCode::kDisposed, "the layer was disposed");
    if (!(stream->device() == device_))
      throw_invalid("stream must be on " + device_.name() + ", it is on " + stream->device().name());
    if (tokens < 0) throw_invalid("tokens must be >= 0" + got(tokens));
    if (logits == nullptr && weights_.router_weight == nullptr)
      throw_invalid("logits must be given: this layer has no router weight");
    Stream& s = *stream;
    Scratch scratch = prepare(stream, tokens);
    if (ids_out != nullptr) scratch.expert_ids = ids_out;
    if (weights_out != nullptr) scratch.weights = weights_out;
    mark(record, 0, s);

    if (logits == nullptr) {
      RouterLogitsArgs product;
      product.x = x;
      product.x_dtype = desc_.experts.dtype;
      product.weight = weights_.router_weight->data();
      product.weight_dtype = desc_.router_dtype;
      product.bias =
          weights_.router_bias == nullptr ? nullptr : static_cast<const float*>(weights_.router_bias->data());
      product.tokens = tokens;
      product.hidden = desc_.experts.input;
      product.experts = desc_.router.experts;
      product.logits = scratch.logits;
      router_logits(s, product);
      logits = scratch.logits;
    }
    RouteArgs route_args;
    route_args.logits = logits;
    route_args.select_bias =
        weights_.select_bias == nullptr ? nullptr : static_cast<const float*>(weights_.select_bias->data());
    route_args.tokens = tokens;
    route_args.expert_ids = scratch.expert_ids;
    route_args.weights = scratch.weights;
    route_args.counts = scratch.counts;
    route_args.offsets = scratch.offsets;
    route_args.order = scratch.order;
    route_args.workspace = scratch.route;
    route(s, desc_.router, route_args);
    if (record != nullptr) {
      record->tokens = tokens;
      const size_t bytes = sizeof(int32_t) * static_cast<size_t>(desc_.router.experts);
      if (record->counts == nullptr) record->counts = HostBuffer::allocate(device_, bytes);
      s.copy(record->counts->data(), scratch.counts, bytes);
    }
    mark(record, 1, s);

    MlpArgs mlp;
    mlp.x = x;
    mlp.tokens = tokens;
    mlp.top_k = desc_.router.top_k;
    mlp.offsets = scratch.offsets;
    mlp.order = scratch.order;
    mlp.input_scale = desc_.scale_input ? scratch.weights : nullptr;
    mlp.rows = scratch.rows;
    mlp.workspace = scratch.mlp;
    grouped_mlp(s, desc_.experts, pointers(weights_.expert_weight, weights_.expert_bias), mlp);
    mark(record, 2, s);

    if (desc_.has_shared) {
      MlpArgs shared;
      shared.x = x;
      shared.tokens = tokens;
      shared.rows = scratch.shared_rows;
      shared.workspace = scratch.shared_mlp;
      grouped_mlp(s, desc_.shared, pointers(weights_.shared_weight, weights_.shared_bias), shared);
      if (desc_.shared_gate) {
        SharedGateArgs gate;
        gate.x = x;
        gate.weight = weights_.shared_gate->data();
        gate.dtype = desc_.experts.dtype;
        gate.tokens = tokens;
        gate.hidden = desc_.experts.input;
        gate.scale = scratch.shared_scale;
        shared_gate(s, gate);
      }
    }
    mark(record, 3, s);

    CombineArgs sum;
    sum.mode = desc_.combine;
    sum.dtype = desc_.experts.dtype;
    sum.rows = scratch.rows;
    sum.weights = desc_.scale_input ? nullptr : scratch.weights;
    sum.shared = desc_.has_shared ? scratch.shared_rows : nullptr;
    sum.shared_scale = desc_.shared_gate ? scratch.shared_scale : nullptr;
    sum.tokens = tokens;
    sum.width = desc_.experts.output;
    sum.top_k = desc_.router.top_k;
    sum.out = out;
    combine(s, sum);
    mark(record, 4, s);
  }

  const LayerDesc& desc() const override { return desc_; }

  size_t weight_bytes() const override {
    size_t sum = 0;
    const auto add = [&sum](const std::shared_ptr<Buffer>& b) { sum += b == nullptr ? 0 : b->bytes(); };
    for (const auto& b : {weights_.router_weight, weights_.router_bias, weights_.select_bias, weights_.shared_gate})
      add(b);
    for (const auto* group :
         {&weights_.expert_weight, &weights_.expert_bias, &weights_.shared_weight, &weights_.shared_bias})
      for (const auto& b : *group) add(b);
    return sum;
  }

  size_t workspace_bytes() const override {
    const std::lock_guard lock(mutex_);
    return workspace_ == nullptr ? 0 : workspace_->bytes();
  }

  void release() override {
    const std::lock_guard lock(mutex_);
    released_ = true;
    weights_ = {};
    workspace_.reset();
    stream_.reset();
  }

 private:
  void validate() {
    const RouterDesc& r = desc_.router;
    const MlpDesc& m = desc_.experts;
    // The data plane checks descriptors on every call; running those checks here, on no tokens' worth of sizes, makes a
    // wrong layer fail where it is made.
    route_workspace_bytes(device_, r, 0);
    mlp_workspace_bytes(device_, m, 0);
    if (r.experts != m.experts)
      throw_invalid("router.experts (" + std::to_string(r.experts) + ") and experts.experts (" +
                    std::to_string(m.experts) + ") differ");
    if (desc_.router_dtype != DType::kF32 && desc_.router_dtype != m.dtype)
      throw_invalid(std::string("router_dtype must be f32 or ") + name_of(m.dtype) + ", got " +
                    name_of(desc_.router_dtype));
    if (weights_.router_weight != nullptr)
      need(weights_.router_weight, "router weight", r.experts * m.input, desc_.router_dtype, device_);
    if (weights_.router_bias != nullptr) need(weights_.router_bias, "router bias", r.experts, DType::kF32, device_);
    if (weights_.select_bias != nullptr) need(weights_.select_bias, "select bias", r.experts, DType::kF32, device_);
    check_mlp(m, weights_.expert_weight, weights_.expert_bias, "expert", device_);
    if (desc_.has_shared) {
      const MlpDesc& shared = desc_.shared;
      mlp_workspace_bytes(device_, shared, 0);
      if (desc_.combine == CombineMode::kConcat) throw_invalid("a shared expert cannot be combined by concat");
      if (shared.experts != 1) throw_invalid("shared.experts must be 1" + got(shared.experts));
      if (shared.input != m.input || shared.output != m.output || shared.dtype != m.dtype)
        throw_invalid("the shared expert's input, output and dtype must be the experts'");
      check_mlp(shared, weights_.shared_weight, weights_.shared_bias, "shared", device_);
    }
    if (desc_.shared_gate) {
      if (!desc_.has_shared) throw_invalid("shared_gate needs a shared expert");
      need(weights_.shared_gate, "shared gate", m.input, m.dtype, device_);
    }
  }

  Scratch carve(Carver& c, int64_t tokens) const {
    const RouterDesc& r = desc_.router;
    const MlpDesc& m = desc_.experts;
    const size_t t = static_cast<size_t>(tokens), slots = t * static_cast<size_t>(r.top_k);
    const size_t e = static_cast<size_t>(r.experts);
    Scratch s{};
    s.logits = c.take<float>(t * e * sizeof(float));
    s.expert_ids = c.take<int32_t>(slots * sizeof(int32_t));
    s.weights = c.take<float>(slots * sizeof(float));
    s.counts = c.take<int32_t>(e * sizeof(int32_t));
    s.offsets = c.take<int32_t>((e + 1) * sizeof(int32_t));
    s.order = c.take<int32_t>(slots * sizeof(int32_t));
    s.route = c.take<void>(route_workspace_bytes(device_, r, tokens));
    s.rows = c.take<void>(slots * static_cast<size_t>(m.output) * size_of(m.dtype));
    s.mlp = c.take<void>(mlp_workspace_bytes(device_, m, tokens * r.top_k));
    if (desc_.has_shared) {
      s.shared_rows = c.take<void>(t * static_cast<size_t>(m.output) * size_of(m.dtype));
      s.shared_mlp = c.take<void>(mlp_workspace_bytes(device_, desc_.shared, tokens));
      s.shared_scale = c.take<float>(t * sizeof(float));
    }
    return s;
  }

  Scratch prepare(const std::shared_ptr<Stream>& stream, int64_t tokens) {
    if (stream_ != stream) {
      if (stream_ != nullptr) {
        if (switch_ == nullptr) switch_ = Event::create(device_);
        switch_->record(*stream_);
        stream->wait(*switch_);
      }
      if (workspace_ != nullptr) workspace_->record_use(stream);
      for (const auto& b : all_weights()) b->record_use(stream);
      stream_ = stream;
    }
    Carver measure(nullptr);
    carve(measure, tokens);
    if (workspace_ == nullptr || workspace_->bytes() < measure.used()) {
      workspace_.reset();  // released first, so that the pool can hand the same memory out again
      workspace_ = Buffer::allocate(stream, measure.used());
    }
    Carver carver(workspace_->data());
    return carve(carver, tokens);
  }

  std::vector<std::shared_ptr<Buffer>> all_weights() const {
    std::vector<std::shared_ptr<Buffer>> list{weights_.router_weight, weights_.router_bias, weights_.select_bias,
                                              weights_.shared_gate};
    for (const auto* group :
         {&weights_.expert_weight, &weights_.expert_bias, &weights_.shared_weight, &weights_.shared_bias})
      list.insert(list.end(), group->begin(), group->end());
    std::erase(list, nullptr);
    return list;
  }

  void mark(StepRecord* record, int i, Stream& s) const {
    if (record == nullptr) return;
    auto& event = record->marks[static_cast<size_t>(i)];
    if (event == nullptr) event = Event::create(device_);
    event->record(s);
  }

  LayerDesc desc_;
  LayerWeights weights_;
  DeviceId device_;
  mutable std::mutex mutex_;
  std::shared_ptr<Buffer> workspace_;
  std::shared_ptr<Stream> stream_;  // of the last step
  std::shared_ptr<Event> switch_;
  bool released_ = false;
};

}  // namespace

std::shared_ptr<Layer> Layer::create(const LayerDesc& desc, LayerWeights weights, DeviceId device) {
  return std::make_shared<LayerImpl>(desc, std::move(weights), device);
}

}  // namespace nexus
