// What a graph holds of a layer whose steps were recorded in it; see layer_capture.h.
#include "exec/layer_capture.h"

namespace nexus {

Scratch CapturedSteps::prepare(const Layout& layout) {
  if (workspaces_.empty() || workspaces_.back()->bytes() < layout.bytes()) {
    auto made = std::make_unique<Workspace>(aside_, layout);
    aside_->synchronize();
    workspaces_.push_back(std::move(made));
    // Nobody has used it, and between two replays of a graph nothing is under way: a first step is as one in a row.
    workspaces_.back()->queued(&layout);
  }
  return workspaces_.back()->next(layout);
}

const ExecPlan* CapturedSteps::plan(const ExecPlan* given) {
  if (given == nullptr) return nullptr;
  for (const auto& known : plans_)
    if (known->of == given->lanes && known->plan.strategy == given->strategy && known->plan.streams == given->streams &&
        known->plan.shared_stream == given->shared_stream)
      return &known->plan;
  auto made = std::make_unique<Plan>(Plan{given->lanes, *given});
  if (given->lanes != nullptr) {
    made->plan.lanes = given->lanes->copy(aside_);
    aside_->synchronize();
  }
  plans_.push_back(std::move(made));
  return &plans_.back()->plan;
}

void CapturedSteps::follow(const std::shared_ptr<Stream>& stream) {
  const auto last = last_.lock();
  if (last == stream) return;
  if (last != nullptr) {
    order_->record(*last);
    stream->wait(*order_);
  }
  last_ = stream;
}

}  // namespace nexus
