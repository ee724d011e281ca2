// Where the tiles of a grouped product lie: the order in which blocks (or the steps of a persistent one) take them,
// found from the device's offsets, and the guarded reads of those offsets and of the slots.
//
// Order: expert by expert; within an expert in groups of up to 8 row tiles, all row tiles of a group before the next
// column tile. So blocks that run at the same time share a weight tile (read from HBM once), and the group's input rows
// stay in L2 while the weights stream by.
//
// Offsets and slots come from the router, but also from a user's own routing: whatever they hold, no kernel leaves its
// buffers. An offset is taken as if it were within the rows, a slot outside of them as a row that is not there.
#pragma once
#include <cstdint>

#include "data/cuda/grouped_lanes.cuh"

namespace nexus::cuda {

/// FRESH: past L1, as a kernel must read that has not yet waited for the one before it.
template <bool FRESH = false>
__device__ __forceinline__ int offset_at(const GroupedParams& p, int expert) {
  const int32_t* const at = p.offsets + expert;
  return max(0, min(FRESH ? __ldcg(at) : *at, static_cast<int>(p.max_rows)));
}

/// The slot of sorted row `row`; -1 where it is none of the max_rows slots.
__device__ __forceinline__ int slot_at(const GroupedParams& p, int row) {
  const int slot = p.order ? p.order[row] : row;
  return static_cast<unsigned>(slot) < static_cast<unsigned>(p.max_rows) ? slot : -1;
}

/// A tile's place: its expert's rows, and which row and column tile of them it is.
struct TilePlace {
  int expert;
  int begin, rows;  // the expert's, in expert-sorted order
  int tiles;        // row tiles of the expert
  int first_tile;   // row tiles of the experts before
  int all_tiles;    // row tiles of all experts; known also where there is no such tile
  int row_tile, column_tile;
};

/// An expert's place among all, counted in some unit of work.
struct ExpertPlace {
  int expert;
  int begin, rows;  // in expert-sorted order
  int first, all;   // units of the experts before, and of all experts; `all` is known also where there is no such unit
};

/// The expert that has unit `wanted`, where one of r rows has units_of(r) of them. All lanes of a warp call it and get
/// the same answer. False: there is no such unit. LANES: experts of other lanes than `only` have none (only < 0: all
/// have).
template <bool LANES, class F>
__device__ __forceinline__ bool find_expert(const GroupedParams& p, int wanted, int only, ExpertPlace& place,
                                            F&& units_of) {
  int expert = 0, first_unit = 0, begin = 0, rows = 0;
  const auto rows_between = [&](int e, int from, int to) {
    if (LANES && only >= 0 && lane_of(p.lanes.table, e) != only) return 0;
    return max(0, to - from);
  };
  if (p.offsets == nullptr) {
    rows = rows_between(0, 0, static_cast<int>(p.max_rows));
    place.all = units_of(rows);
    if (wanted >= place.all) return false;
  } else {
    const int lane = threadIdx.x & 31;
    const int per_lane = (p.experts + 31) / 32;
    const int first = min(lane * per_lane, p.experts);
    const int last = min(first + per_lane, p.experts);
    const int lane_begin = offset_at<LANES>(p, first);
    int units = 0, previous = lane_begin;
#pragma unroll 4
    for (int e = first; e < last; ++e) {
      const int next = offset_at<LANES>(p, e + 1);
      units += units_of(rows_between(e, previous, next));
      previous = next;
    }
    int through = units;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int left = __shfl_up_sync(0xffffffffu, through, d);
      if (lane >= d) through += left;
    }
    place.all = __shfl_sync(0xffffffffu, through, 31);
    const bool mine = wanted >= through - units && wanted < through;
    const unsigned owners = __ballot_sync(0xffffffffu, mine);
    if (owners == 0) return false;
    if (mine) {
      first_unit = through - units;
      begin = lane_begin;
      for (expert = first; expert < last; ++expert) {
        const int next = offset_at<LANES>(p, expert + 1);
        rows = rows_between(expert, begin, next);
        const int count = units_of(rows);
        if (wanted < first_unit + count) break;
        first_unit += count;
        begin = next;
      }
    }
    const int owner = __ffs(owners) - 1;
    expert = __shfl_sync(0xffffffffu, expert, owner);
    first_unit = __shfl_sync(0xffffffffu, first_unit, owner);
    begin = __shfl_sync(0xffffffffu, begin, owner);
    rows = __shfl_sync(0xffffffffu, rows, owner);
  }
  place = {expert, begin, rows, first_unit, place.all};
  return true;
}

/// Tile `index`, where an expert with r rows has ceil(r / ROWS) row tiles. See find_expert().
template <int ROWS, bool LANES = false>
__device__ __forceinline__ bool find_place(const GroupedParams& p, int index, TilePlace& place, int only = -1) {
  const auto tiles_of = [](int rows) { return (rows + ROWS - 1) / ROWS; };
  ExpertPlace at;
  const bool found = find_expert<LANES>(p, index / p.n_tiles, only, at, tiles_of);
  place.all_tiles = at.all;
  if (!found) return false;
  const int tiles = tiles_of(at.rows);
  constexpr int kGroup = 8;
  const int local = index - at.first * p.n_tiles;  // in [0, tiles * n_tiles)
  const int group = local / (kGroup * p.n_tiles);
  const int in_group = min(kGroup, tiles - group * kGroup);
  const int within = local - group * kGroup * p.n_tiles;
  place = {at.expert,        at.begin, at.rows, tiles, at.first, at.all, group * kGroup + within % in_group,
           within / in_group};
  return true;
}

}  // namespace nexus::cuda
