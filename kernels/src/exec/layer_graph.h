// A recorded step of a layer, and what its launches need.
#pragma once
#include "exec/fork_join.h"
#include "exec/layer_workspace.h"

namespace nexus {

/// What a step uses besides weights and workspace: alive until the steps that use it are done.
struct StepParts {
  StepParts() = default;
  StepParts(const ExecPlan* plan, CountRing* ring);
  bool uses(const ExecPlan* plan, const CountRing* ring) const;
  bool empty() const { return lanes == nullptr && ring == nullptr && shared_stream == nullptr; }
  /// A step on this stream uses them. Lanes' streams are joined to it, so it stands for them.
  void used_on(const std::shared_ptr<Stream>& stream);

  std::shared_ptr<LaneSet> lanes;
  std::vector<std::shared_ptr<Stream>> streams;
  std::shared_ptr<Stream> shared_stream;
  std::shared_ptr<CountRing> ring;

 private:
  std::shared_ptr<Stream> noted_;  // the last that lanes and ring were told of
};

/// What a recording is made of, in the order in which it comes to be.
struct Recording {
  Recording(DeviceId device, const ExecPlan* plan, CountRing* ring) : parts(plan, ring), branches(device) {}
  StepParts parts;
  ForkJoin branches;  // events of its own: those of eager steps are never part of a capture
  std::shared_ptr<Graph> graph;
};

class LayerGraphImpl final : public LayerGraph {
 public:
  LayerGraphImpl(uint64_t layer, int64_t bucket, bool with_logits, const Scratch& scratch,
                 std::shared_ptr<Workspace> workspace, std::shared_ptr<Recording> recording)
      : layer(layer),
        scratch(scratch),
        workspace(std::move(workspace)),
        recording(std::move(recording)),
        bucket_(bucket),
        with_logits_(with_logits) {}
  /// Launches may still be queued: what was recorded goes when they are done.
  ~LayerGraphImpl() override { keep_until_reached(last, std::move(recording)); }

  int64_t bucket() const override { return bucket_; }
  bool with_logits() const override { return with_logits_; }
  int nodes() const override { return recording->graph->nodes(); }
  int64_t bytes() const override {
    return recording->graph->bytes() + (workspace->retired() ? static_cast<int64_t>(workspace->bytes()) : 0);
  }
  bool bytes_estimated() const override { return recording->graph->bytes_estimated(); }
  double capture_ms() const override { return recording->graph->capture_ms(); }

  const uint64_t layer;  ///< number of the layer that recorded it
  const Scratch scratch;
  const std::shared_ptr<Workspace> workspace;
  std::shared_ptr<Recording> recording;
  std::shared_ptr<Stream> last;  ///< of the last launch, under the layer's lock

 private:
  int64_t bucket_;
  bool with_logits_;
};

}  // namespace nexus
