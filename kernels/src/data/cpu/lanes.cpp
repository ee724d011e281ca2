// See lanes.h.
#include "data/cpu/lanes.h"

#include <atomic>
#include <string>

#include "nexus/runtime.h"

namespace nexus::cpu {
namespace {

void mark(const LaneView& view, int32_t lane) {
  if (view.trace == nullptr) return;
  const int worker = current_worker();
  if (worker >= 32 * kTraceWords) return;  // more than a trace can tell apart; NEXUS_CPU_WORKERS stays below
  uint32_t& word = view.trace[lane * kTraceWords + worker / 32];
  const uint32_t bit = 1u << (worker % 32);
  const std::atomic_ref<uint32_t> shared(word);
  if ((shared.load(std::memory_order_relaxed) & bit) == 0) shared.fetch_or(bit, std::memory_order_relaxed);
}

int32_t lane_of(const LaneTable& table, int32_t expert) {
  const int32_t lane = table.lane_of[expert];
  if (lane < 0 || lane >= table.lanes || table.lanes > kMaxLanes)
    throw Error(ErrorCode::kInternal, "lane_of[" + std::to_string(expert) + "] is " + std::to_string(lane) +
                                          "; expected 0.." + std::to_string(table.lanes - 1));
  return lane;
}

}  // namespace

void run_in_lanes(const LaneView& view, int experts, const std::vector<int32_t>& expert_of, int workers,
                  const std::function<void(int64_t)>& body) {
  const int64_t tasks = static_cast<int64_t>(expert_of.size());
  if (view.table == nullptr) {
    if (view.trace == nullptr) return parallel_for(tasks, body);
    return parallel_for(tasks, [&](int64_t i) {
      mark(view, 0);
      body(i);
    });
  }
  const LaneTable& table = *view.table;
  const std::function<void(int64_t)> marked = [&](int64_t i) {
    mark(view, lane_of(table, expert_of[static_cast<size_t>(i)]));
    body(i);
  };
  if (view.lane >= 0 || tasks == 0 || table.total <= 0) return parallel_for(tasks, marked);

  const auto first_of = [&](int l) { return static_cast<int>(int64_t{table.begin[l]} * workers / table.total); };
  for (int e = 0; e < experts; ++e)  // a lane with experts and no worker: as if there were no lanes
    if (const int l = lane_of(table, e); first_of(l) >= first_of(l + 1)) return parallel_for(tasks, marked);
  std::vector<std::vector<int64_t>> of_lane(static_cast<size_t>(table.lanes));
  for (int64_t i = 0; i < tasks; ++i)
    of_lane[static_cast<size_t>(lane_of(table, expert_of[static_cast<size_t>(i)]))].push_back(i);
  std::vector<WorkerLoop> loops;
  for (int l = 0; l < table.lanes; ++l) {
    const std::vector<int64_t>& own = of_lane[static_cast<size_t>(l)];
    if (own.empty()) continue;
    loops.push_back({first_of(l), first_of(l + 1) - first_of(l), static_cast<int64_t>(own.size()),
                     [&marked, &own](int64_t i) { marked(own[static_cast<size_t>(i)]); }});
  }
  parallel_for_on(loops);
}

}  // namespace nexus::cpu
