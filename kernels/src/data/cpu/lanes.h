// Lanes on the CPU: which tasks of a grouped product run, and on which virtual workers. Read from the table when the
// closure runs. A task's bits do not depend on any of it.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "nexus/step.h"

namespace nexus::cpu {

/// Whether expert e is one of this launch's.
inline bool runs_expert(const LaneView& view, int e) {
  return view.table == nullptr || view.lane < 0 || view.table->lane_of[e] == view.lane;
}

/// Calls body(i) for all tasks, task i being one of expert expert_of[i] of `experts`. Cooperative lanes keep to their
/// share of `workers` virtual workers; the trace gets the worker of each task.
void run_in_lanes(const LaneView& view, int experts, const std::vector<int32_t>& expert_of, int workers,
                  const std::function<void(int64_t)>& body);

}  // namespace nexus::cpu
