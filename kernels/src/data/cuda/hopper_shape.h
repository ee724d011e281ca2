// What shapes of the Hopper path (hopper_grouped.cuh) differ in, and the arithmetic of indices that their kernel and
// the host's tests share. Pure: no CUDA header, no device code; the kernel calls the constexpr functions as they are.
#pragma once
#include <cstdint>

namespace nexus::cuda::hopper {

/// BLOCKS: 64-column blocks of weights that a consumer warpgroup multiplies, 1 or 2.
/// STAGED: finished rows go through shared memory and leave as whole lines (hopper_staged.cuh). Pays where tiles have
/// many rows and k is short: direct stores are 16 or 32 bytes a row.
/// AHEAD: starts on weights before the kernel before it has ended, and lets the next one do the same.
/// TURNS: the two consumer warpgroups take whole tiles in turns, so that one's epilogue is beside the other's products.
/// MIXED: tiles of experts with several row tiles are spread evenly among those of the others (tile_mix.h).
template <int BLOCKS_, bool STAGED_ = false, bool AHEAD_ = false, bool TURNS_ = false, bool MIXED_ = false>
struct Options {
  static constexpr int BLOCKS = BLOCKS_;
  static constexpr bool STAGED = STAGED_, AHEAD = AHEAD_, TURNS = TURNS_, MIXED = MIXED_;
  static constexpr bool LEAN = true;  // of the producer's registers
};
/// The shapes that were measured first.
struct Plain : Options<2> {
  static constexpr bool LEAN = false;
};

/// The position in a ring of STAGES buffers: `phase` flips each time it wraps.
template <int STAGES>
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;
  constexpr void advance() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
  /// As `steps` times advance().
  constexpr void skip(int steps) {
    const int to = stage + steps, wraps = to / STAGES;
    stage = to - wraps * STAGES;
    phase ^= static_cast<uint32_t>(wraps) & 1;
  }
};

// ---- the tile a block most likely begins with
// ------------------------------------------------------------------------

struct GuessedTile {
  int expert, column_tile;
};
/// Tile `index` of the order in tile_order.cuh, where every expert has `row_tiles` row tiles (at least 1).
constexpr GuessedTile guess_tile(int index, int column_tiles, int row_tiles) {
  constexpr int kGroup = 8;
  const int tiles = row_tiles < 1 ? 1 : row_tiles;
  const int64_t of_expert = static_cast<int64_t>(tiles) * column_tiles;
  const auto expert = static_cast<int>(index / of_expert);
  const auto local = static_cast<int>(index - expert * of_expert);
  const int group = local / (kGroup * column_tiles), left = tiles - group * kGroup;
  return {expert, (local - group * kGroup * column_tiles) / (left < kGroup ? left : kGroup)};
}

// ---- rows on their way out through shared memory
// ---------------------------------------------------------------------

/// Rows that a warpgroup stages at a time, and its buffers of them: one is filled while the other may still be read.
constexpr int kStagedRows = 16, kStagedBuffers = 2;

/// Where 16-byte unit `unit` of row `row` lies among rows of `units` units, 8 or 16: swizzled, so that eight rows of
/// one unit, or eight units of one row, are in different banks.
constexpr int staged_offset(int row, int unit, int units) { return (row * units + (unit ^ (row & 7))) * 16; }

/// A lane gives the address of row lane % 8 of matrix lane / 8 of a stmatrix.x4. Without gates, matrix m is of rows
/// 8·(m / 2) and of columns 8·(m % 2) of the warp's 16 in 64-column block `block`; with gates (half as many columns),
/// of the warp's 8 columns in block m % 2.
constexpr int staged_row(int lane) { return (lane >> 4) * 8 + (lane & 7); }
constexpr int staged_unit(int lane, int warp, int block) { return block * 8 + warp * 2 + (lane >> 3 & 1); }
constexpr int staged_unit_gated(int lane, int warp) { return (lane >> 3 & 1) * 4 + warp; }

/// In bytes; 0 where results are not staged. `columns`: of a warpgroup.
constexpr int staging_bytes(bool staged, int columns) {
  return staged ? 2 * kStagedBuffers * kStagedRows * columns * 2 : 0;
}

}  // namespace nexus::cuda::hopper
