// Lanes on the device (nexus/step.h): which blocks of a launch walk which experts' tiles, and the record of where they
// ran. All of it is read from device memory, so experts migrate and shares change under recorded graphs.
//
// No sum depends on it: a tile is computed whole by one block (a cluster), with the code of the plain launch, and lanes
// only say which block that is.
//
// Kernels take part as instances of their own (LANES): a plain launch's code knows nothing of tables.
#pragma once
#include <cstdint>

#include "data/cuda/convert.cuh"
#include "data/cuda/grouped.h"

namespace nexus::cuda {

/// Fields written by earlier kernels are read past L1: some are read before this SM has seen those kernels end.
__device__ __forceinline__ int lane_of(const LaneTable* table, int expert) { return __ldcg(table->lane_of + expert); }

/// The tiles of one block (cluster): first, first + stride, … of those of lane `lane`; lane < 0: of all experts.
struct Walk {
  int first, stride, lane;
};

/// The walk of block `block` of `blocks`. All lanes of a warp call it and get the same answer.
///
/// Cooperative: lane l has the blocks from begin[l] * blocks / total to begin[l + 1] * blocks / total. A warp's lane i
/// looks after the table's lanes i and i + 32, so the ranges cost six loads that do not wait for one another.
__device__ __forceinline__ Walk lanes_walk(const GroupedParams& p, int block, int blocks) {
  const LaneTable* const table = p.lanes.table;
  const Walk all{block, blocks, -1};
  if (table == nullptr) return all;
  if (p.lanes.lane >= 0) return {block, blocks, p.lanes.lane};
  const int i = threadIdx.x & 31;
  const int lanes = min(__ldcg(&table->lanes), kMaxLanes), total = __ldcg(&table->total);
  int begin[2], end[2];
#pragma unroll
  for (int h = 0; h < 2; ++h)
    begin[h] = __ldcg(table->begin + i + h * 32), end[h] = __ldcg(table->begin + i + h * 32 + 1);
  if (total <= 0) return all;
  unsigned own[2], none[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const bool is = i + h * 32 < lanes;
    begin[h] = static_cast<int>(divide(static_cast<int64_t>(begin[h]) * blocks, total));
    end[h] = static_cast<int>(divide(static_cast<int64_t>(end[h]) * blocks, total));
    own[h] = __ballot_sync(0xffffffffu, is && block >= begin[h] && block < end[h]);
    none[h] = __ballot_sync(0xffffffffu, is && begin[h] >= end[h]);
  }
  if ((own[0] | own[1]) == 0) return all;
  if (none[0] | none[1]) {  // lanes without a block: do they have experts?
    unsigned used[2] = {0, 0};
    for (int e = i; e < p.experts; e += 32) {
      const int l = lane_of(table, e);
      if (l >> 5 == 0) used[0] |= 1u << (l & 31);
      if (l >> 5 == 1) used[1] |= 1u << (l & 31);
    }
    used[0] = __reduce_or_sync(0xffffffffu, used[0]), used[1] = __reduce_or_sync(0xffffffffu, used[1]);
    if ((used[0] & none[0]) | (used[1] & none[1])) return all;
  }
  const bool low = own[0] != 0;
  const int at = __ffs(low ? own[0] : own[1]) - 1;
  const int from = __shfl_sync(0xffffffffu, low ? begin[0] : begin[1], at);
  const int to = __shfl_sync(0xffffffffu, low ? end[0] : end[1], at);
  return {block - from, to - from, low ? at : at + 32};
}

/// Marks this SM as one that computed a tile of `expert`. One thread of the block calls it.
__device__ __forceinline__ void trace_tile(const GroupedParams& p, int expert) {
  if (p.lanes.trace == nullptr) return;
  const unsigned lane = p.lanes.table ? static_cast<unsigned>(lane_of(p.lanes.table, expert)) : 0u;
  unsigned sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  if (lane < kMaxLanes && sm < kTraceWords * 32) atomicOr(p.lanes.trace + lane * kTraceWords + sm / 32, 1u << sm % 32);
}

/// Where the input is: with a step, its x. After wait_for_previous(); asked for early, since the answer is under way
/// for a while.
__device__ __forceinline__ const void* input_of(const GroupedParams& p) {
  if (p.step == nullptr) return p.input;
  return reinterpret_cast<const void*>(__ldcg(reinterpret_cast<const unsigned long long*>(&p.step->x)));
}

}  // namespace nexus::cuda
