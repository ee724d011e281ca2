// A layer's steps in a capture of somebody else's: what their graph holds.
//
// Such a graph is launched whenever and wherever its owner likes, without the layer: beside the layer's other steps,
// beside other graphs of it, after it was disposed of. So it shares nothing that a step writes with any of them. It has
// workspaces of its own, in which its steps follow one another, its own branches, and a table of lanes that nobody
// changes; and it holds the weights, which are only read.
#pragma once
#include "exec/fork_join.h"
#include "exec/layer_workspace.h"

namespace nexus {

/// Of one layer and one capture. The capture keeps it, then the graph (kept_by_capture); used under the layer's lock.
class CapturedSteps {
 public:
  /// `aside`: a stream that takes part in no capture, on which memory is made.
  CapturedSteps(LayerWeights weights, const std::shared_ptr<Stream>& aside)
      : branches(aside->device()),
        weights_(std::move(weights)),
        aside_(aside),
        order_(Event::create(aside->device())) {}

  /// Memory for a step, there and in order when this returns: the host waits for it, so that no launch has to. What
  /// earlier steps of the capture were recorded with stays.
  Scratch prepare(const Layout& layout);
  /// That step is recorded.
  void queued(const Layout& layout) { workspaces_.back()->queued(&layout); }
  /// The plan with a table of lanes that stays what it is now; null is null.
  const ExecPlan* plan(const ExecPlan* given);
  /// The layer's steps of the capture go on, on `stream`: they share a workspace.
  void follow(const std::shared_ptr<Stream>& stream);

  ForkJoin branches;

 private:
  struct Plan {
    std::shared_ptr<LaneSet> of;  ///< whose table it was made from
    ExecPlan plan;
  };

  const LayerWeights weights_;
  const std::shared_ptr<Stream> aside_;
  const std::shared_ptr<Event> order_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;  // the last one is the largest
  std::vector<std::unique_ptr<Plan>> plans_;
  std::weak_ptr<Stream> last_;  // of the capture, which holds it: a graph is not to hold the stream it was recorded on
};

}  // namespace nexus
