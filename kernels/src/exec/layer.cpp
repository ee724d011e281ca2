// The whole MoE layer as one enqueue. It owns the weights and one workspace, which grows to the largest bucket seen; a
// step makes no allocation unless that grew.
//
// Order: every step of a layer, eager or recorded, comes behind the one before, whose workspace it uses: on another
// stream than the last it first waits for that stream. The lanes of a step are joined to its stream before it ends, so
// the last step's stream stands for all use of weights and workspace, and letting go of them notes that one stream.
//
// Failure: what is wrong with arguments is found before anything is queued. When an operation cannot be queued half way
// through a step, its output is undefined, its branches are joined, and the layer serves the next step as before. When
// a stream or a device has failed, the streams say so themselves at every later call; the layer has no dead state of
// its own but kDisposed.
//
// Captures: capture() records steps in the layer's workspace, for its own replay(). A step that is enqueued on a stream
// which somebody else captures goes into that graph, with everything it needs (layer_capture.h); the layer's order and
// its workspace know nothing of it.
#include "nexus/layer.h"

#include <map>
#include <mutex>

#include "exec/backend.h"
#include "exec/layer_capture.h"
#include "exec/layer_check.h"
#include "exec/layer_graph.h"
#include "exec/layer_step.h"

namespace nexus {
namespace {

class LayerImpl final : public Layer {
 public:
  LayerImpl(const LayerDesc& desc, LayerWeights weights, DeviceId device)
      : desc_(desc), weights_(std::move(weights)), device_(device), branches_(device) {
    check_layer(desc_, weights_, device_);
    table_ = variant_table(device_);
  }
  ~LayerImpl() override { drop_all(); }

  void enqueue(const std::shared_ptr<Stream>& stream, const StepArgs& args) override {
    const std::lock_guard lock(mutex_);
    require_usable(stream);
    check_step(args, -1);
    check_plan(args.plan, desc_, device_);
    check_ring(args.ring, desc_);
    require_logits(args.logits != nullptr);
    if (stream->capturing()) return record(stream, args);
    Scratch scratch = prepare(stream, token_bucket(args.tokens));
    keep(stream, args.plan, args.ring);
    queue(stream, args, scratch, branches_, args.plan);
    workspace_->queued(&layout(token_bucket(args.tokens)));
    finish_record(args, scratch.counts, true, *stream);
  }

  std::shared_ptr<LayerGraph> capture(const std::shared_ptr<Stream>& stream, int64_t bucket, bool with_logits,
                                      const ExecPlan* plan, CountRing* ring) override {
    const std::lock_guard lock(mutex_);
    require_usable(stream);
    refuse_in_capture(*stream);
    if (token_bucket(bucket) != bucket)
      throw_invalid("bucket must be a token bucket, such as " + std::to_string(token_bucket(bucket)) + ", got " +
                    std::to_string(bucket));
    check_plan(plan, desc_, device_);
    check_ring(ring, desc_);
    require_logits(with_logits);

    // Whatever allocates comes before the capture.
    const Scratch scratch = prepare(stream, bucket);
    auto recording = std::make_shared<Recording>(device_, plan, ring);
    recording->branches.reserve(recording->parts.streams.size() + 1);
    LayerStep step{.desc = desc_, .weights = weights_, .scratch = scratch, .branches = recording->branches};
    step.tokens = step.bucket = bucket;
    step.with_logits = with_logits;
    step.block = scratch.step;
    step.plan = plan;
    step.choice = choice();
    if (ring != nullptr) step.ring = ring->view();
    recording->graph = Graph::capture(stream, [&] {
      begin_step(*stream, StepBlock{}, scratch.step);
      queue_step(stream, step);
    });
    return std::make_shared<LayerGraphImpl>(number_, bucket, with_logits, scratch, workspace_, std::move(recording));
  }

  void replay(const std::shared_ptr<Stream>& stream, LayerGraph& recorded, const StepArgs& args) override {
    const std::lock_guard lock(mutex_);
    require_usable(stream);
    refuse_in_capture(*stream);
    auto* graph = dynamic_cast<LayerGraphImpl*>(&recorded);
    if (graph == nullptr || graph->layer != number_) throw_invalid("graph must be of this layer, it is of another");
    check_step(args, graph->bucket());
    // No tokens have no logits either: an empty array may well be null.
    if (args.tokens > 0 && graph->with_logits() != (args.logits != nullptr))
      throw_invalid(std::string("logits must be ") +
                    (graph->with_logits() ? "given: the graph was recorded with them"
                                          : "null: the graph was recorded with the layer's own product"));
    StepBlock block;
    block.x = args.x;
    block.logits = args.logits;
    block.out = args.out;
    block.tokens = block.dense[1] = static_cast<int32_t>(args.tokens);

    follow(stream);
    graph->workspace->used_on(stream);
    graph->workspace->queued(nullptr);
    graph->recording->parts.used_on(stream);
    graph->last = stream;
    mark(args.record, 0, *stream);
    graph->recording->graph->launch(stream, block);
    mark(args.record, 4, *stream);
    finish_record(args, graph->scratch.counts, false, *stream);
    const size_t bytes = 4 * static_cast<size_t>(args.tokens) * static_cast<size_t>(desc_.router.top_k);
    if (args.ids_out != nullptr) stream->copy(args.ids_out, graph->scratch.expert_ids, bytes);
    if (args.weights_out != nullptr) stream->copy(args.weights_out, graph->scratch.weights, bytes);
  }

  const LayerDesc& desc() const override { return desc_; }

  VariantChoice choice() const override { return {.table = table_.get(), .batch_invariant = desc_.batch_invariant}; }

  size_t weight_bytes() const override {
    const std::lock_guard lock(mutex_);
    size_t sum = 0;
    for_each_weight([&sum](const std::shared_ptr<Buffer>& b) { sum += b == nullptr ? 0 : b->bytes(); });
    return sum;
  }

  size_t workspace_bytes() const override {
    const std::lock_guard lock(mutex_);
    return workspace_ == nullptr ? 0 : workspace_->bytes();
  }

  void release() override {
    const std::lock_guard lock(mutex_);
    released_ = true;
    drop_all();
  }

 private:
  void require_usable(const std::shared_ptr<Stream>& stream) const {
    if (released_) throw Error(ErrorCode::kDisposed, "the layer was disposed");
    check_stream("stream", stream, device_);
  }
  static void refuse_in_capture(const Stream& stream) {
    if (stream.capturing())
      throw Error(ErrorCode::kGraphCapture,
                  "stream: is being recorded, and a graph of a layer cannot be part of another one; enqueue the step");
  }
  void require_logits(bool given) const {
    if (!given && weights_.router_weight == nullptr)
      throw_invalid("logits must be given: this layer has no router weight");
  }

  void queue(const std::shared_ptr<Stream>& stream, const StepArgs& args, Scratch& scratch, ForkJoin& branches,
             const ExecPlan* plan) {
    if (args.ids_out != nullptr) scratch.expert_ids = args.ids_out;
    if (args.weights_out != nullptr) scratch.weights = args.weights_out;
    // The caller's memory is one copy.
    if (args.ids_out != nullptr || args.weights_out != nullptr) scratch.ready = nullptr;
    LayerStep step{.desc = desc_, .weights = weights_, .scratch = scratch, .branches = branches};
    step.tokens = args.tokens;
    step.bucket = token_bucket(args.tokens);
    step.with_logits = args.logits != nullptr;
    step.x = args.x;
    step.logits = args.logits;
    step.out = args.out;
    step.plan = plan;
    step.choice = choice();
    if (args.ring != nullptr) step.ring = args.ring->view();
    step.record = args.record;
    queue_step(stream, step);
  }

  /// A step in a capture of somebody else's.
  void record(const std::shared_ptr<Stream>& stream, const StepArgs& args) {
    const auto refuse = [](const char* what) { throw Error(ErrorCode::kGraphCapture, what); };
    if (args.record != nullptr) refuse("record: a step that is being recorded does not run, expected null");
    if (args.ring != nullptr) refuse("ring: launches of a graph have no order with other steps, expected null");
    if (aside_ == nullptr) aside_ = Stream::create(device_);
    const auto kept =
        kept_by_capture(stream, number_, [&] { return std::make_shared<CapturedSteps>(weights_, aside_); });
    if (kept == nullptr) refuse("stream: its capture ended while a step was being recorded");
    auto& steps = *static_cast<CapturedSteps*>(kept.get());
    Scratch scratch = steps.prepare(layout(token_bucket(args.tokens)));
    const ExecPlan* plan = steps.plan(args.plan);
    try {
      steps.follow(stream);
      queue(stream, args, scratch, steps.branches, plan);
      steps.queued(layout(token_bucket(args.tokens)));
    } catch (const std::exception& e) {
      fail_capture(stream, std::string("a layer's step could not be recorded: ") + e.what());
      throw;
    }
  }

  /// The layer's steps go on, on `stream`.
  void follow(const std::shared_ptr<Stream>& stream) {
    if (stream_ == stream) return;
    if (stream_ != nullptr) {
      // What it had queued cannot be waited for until its capture has ended.
      if (stream_->capturing())
        throw Error(ErrorCode::kGraphCapture,
                    "stream: the layer's last step was queued on a stream that is being recorded now, behind which a "
                    "step on another one cannot be ordered; queue it on that one, or before the recording");
      if (switch_ == nullptr) switch_ = Event::create(device_);
      switch_->record(*stream_);
      if (!reached(*switch_)) stream->wait(*switch_);
    }
    stream_ = stream;
  }
  /// A stream that has failed runs nothing more: there is nothing to wait for, and this layer is not to fail with it.
  static bool reached(const Event& event) {
    try {
      return event.ready();
    } catch (const std::exception&) {
      return true;
    }
  }

  const Layout& layout(int64_t bucket) {
    auto found = layouts_.find(bucket);
    if (found == layouts_.end()) found = layouts_.emplace(bucket, Layout(desc_, device_, bucket)).first;
    return found->second;
  }

  Scratch prepare(const std::shared_ptr<Stream>& stream, int64_t bucket) {
    const Layout& layout = this->layout(bucket);
    follow(stream);
    if (workspace_ == nullptr || workspace_->bytes() < layout.bytes()) {
      drop_workspace();  // first, so that the pool can hand the same memory out again
      workspace_ = std::make_shared<Workspace>(stream, layout);
    }
    workspace_->used_on(stream);
    return workspace_->next(layout);
  }

  /// Whoever made them may let go of a plan's parts and of a ring while the step is queued.
  void keep(const std::shared_ptr<Stream>& stream, const ExecPlan* plan, CountRing* ring) {
    if (!parts_.uses(plan, ring)) {
      StepParts parts(plan, ring);
      if (!parts_.empty()) keep_until_reached(stream, std::make_shared<StepParts>(std::move(parts_)));
      parts_ = std::move(parts);
    }
    parts_.used_on(stream);
  }

  void finish_record(const StepArgs& args, const int32_t* counts, bool phases, Stream& stream) const {
    if (args.record == nullptr) return;
    args.record->tokens = args.tokens;
    args.record->phases = phases;
    copy_counts(args.record, counts, desc_.router.experts, stream);
  }

  template <class Visit>
  void for_each_weight(const Visit& visit) const {
    for (const auto* b : {&weights_.router_weight, &weights_.router_bias, &weights_.select_bias, &weights_.shared_gate})
      visit(*b);
    for (const auto* group :
         {&weights_.expert_weight, &weights_.expert_bias, &weights_.shared_weight, &weights_.shared_bias})
      for (const auto& b : *group) visit(b);
  }

  void drop_workspace() {
    if (workspace_ != nullptr) workspace_->retire();
    workspace_.reset();
  }
  void drop_all() {
    for_each_weight([this](const std::shared_ptr<Buffer>& b) { drop_behind(stream_, b); });
    weights_ = {};
    drop_workspace();
    if (!parts_.empty()) keep_until_reached(stream_, std::make_shared<StepParts>(std::move(parts_)));
    parts_ = {};
    stream_.reset();
    aside_.reset();
  }

  static uint64_t next_number() {
    static std::atomic<uint64_t> last{0};
    return ++last;
  }

  const uint64_t number_ = next_number();
  LayerDesc desc_;
  LayerWeights weights_;
  DeviceId device_;
  std::shared_ptr<const VariantTable> table_;  // for life; null: the heuristic
  mutable std::mutex mutex_;
  std::map<int64_t, Layout> layouts_;  // by bucket
  std::shared_ptr<Workspace> workspace_;
  std::shared_ptr<Stream> stream_;  // of the last step
  std::shared_ptr<Event> switch_;
  std::shared_ptr<Stream> aside_;  // never captured: memory for steps in others' captures is made on it
  ForkJoin branches_;
  StepParts parts_;  // of the last eager step
  bool released_ = false;
};

}  // namespace

std::shared_ptr<Layer> Layer::create(const LayerDesc& desc, LayerWeights weights, DeviceId device) {
  return std::make_shared<LayerImpl>(desc, std::move(weights), device);
}

}  // namespace nexus
