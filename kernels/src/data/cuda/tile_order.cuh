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

/// Tile `index`, where an expert with r rows has ceil(r / ROWS) row tiles. All lanes of a warp call it and get the same
/// answer. False: there is no such tile. LANES: experts of other lanes than `only` have no tiles (only < 0: all have).
template <int ROWS, bool LANES = false>
__device__ __forceinline__ bool find_place(const GroupedParams& p, int index, TilePlace& place, int only = -1) {
  constexpr int kGroup = 8;
  const int wanted = index / p.n_tiles;  // the how-maniest row tile
  int expert = 0, first_tile = 0, begin = 0, rows = 0;
  const auto rows_between = [&](int e, int from, int to) {
    if (LANES && only >= 0 && lane_of(p.lanes.table, e) != only) return 0;
    return max(0, to - from);
  };
  if (p.offsets == nullptr) {
    rows = rows_between(0, 0, static_cast<int>(p.max_rows));
    place.all_tiles = (rows + ROWS - 1) / ROWS;
    if (wanted >= place.all_tiles) return false;
  } else {
    const int lane = threadIdx.x & 31;
    const int per_lane = (p.experts + 31) / 32;
    const int first = min(lane * per_lane, p.experts);
    const int last = min(first + per_lane, p.experts);
    const int lane_begin = offset_at<LANES>(p, first);
    int tiles = 0, previous = lane_begin;
#pragma unroll 4
    for (int e = first; e < last; ++e) {
      const int next = offset_at<LANES>(p, e + 1);
      tiles += (rows_between(e, previous, next) + ROWS - 1) / ROWS;
      previous = next;
    }
    int through = tiles;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const int left = __shfl_up_sync(0xffffffffu, through, d);
      if (lane >= d) through += left;
    }
    place.all_tiles = __shfl_sync(0xffffffffu, through, 31);
    const bool mine = wanted >= through - tiles && wanted < through;
    const unsigned owners = __ballot_sync(0xffffffffu, mine);
    if (owners == 0) return false;
    if (mine) {
      first_tile = through - tiles;
      begin = lane_begin;
      for (expert = first; expert < last; ++expert) {
        const int next = offset_at<LANES>(p, expert + 1);
        rows = rows_between(expert, begin, next);
        const int count = (rows + ROWS - 1) / ROWS;
        if (wanted < first_tile + count) break;
        first_tile += count;
        begin = next;
      }
    }
    const int owner = __ffs(owners) - 1;
    expert = __shfl_sync(0xffffffffu, expert, owner);
    first_tile = __shfl_sync(0xffffffffu, first_tile, owner);
    begin = __shfl_sync(0xffffffffu, begin, owner);
    rows = __shfl_sync(0xffffffffu, rows, owner);
  }
  const int tiles = (rows + ROWS - 1) / ROWS;
  const int local = index - first_tile * p.n_tiles;  // in [0, tiles * n_tiles)
  const int group = local / (kGroup * p.n_tiles);
  const int in_group = min(kGroup, tiles - group * kGroup);
  const int within = local - group * kGroup * p.n_tiles;
  place = {expert,           begin, rows, tiles, first_tile, place.all_tiles, group * kGroup + within % in_group,
           within / in_group};
  return true;
}

}  // namespace nexus::cuda
