// What a recorded or queued step keeps alive.
#include "exec/layer_graph.h"

namespace nexus {

StepParts::StepParts(const ExecPlan* plan, CountRing* ring) {
  if (plan != nullptr) {
    lanes = plan->lanes;
    streams = plan->streams;
    shared_stream = plan->shared_stream;
  }
  if (ring != nullptr) this->ring = ring->shared_from_this();
}

bool StepParts::uses(const ExecPlan* plan, const CountRing* ring) const {
  if (this->ring.get() != ring) return false;
  if (plan == nullptr) return lanes == nullptr && shared_stream == nullptr;
  return lanes == plan->lanes && shared_stream == plan->shared_stream && streams == plan->streams;
}

void StepParts::used_on(const std::shared_ptr<Stream>& stream) {
  if (noted_ == stream) return;
  if (lanes != nullptr) lanes->record_use(stream);
  if (ring != nullptr) ring->record_use(stream);
  noted_ = stream;
}

}  // namespace nexus
