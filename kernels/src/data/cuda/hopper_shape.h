// What shapes of the Hopper path (hopper_grouped.cuh) differ in, and the arithmetic of indices that their kernel and
// the host's tests share. Pure: no CUDA header, no device code; the kernel calls the constexpr functions as they are.
#pragma once
#include <cstdint>

namespace nexus::cuda::hopper {

/// BLOCKS: 64-column blocks of weights that a consumer warpgroup multiplies, 1 or 2.
/// STAGED: finished rows go through shared memory and leave as whole lines (hopper_staged.cuh). Pays where tiles have
/// many rows and k is short: direct stores are 16 or 32 bytes a row.
/// LEAN: the producer addresses rows in 32 bits, with half the registers.
template <int BLOCKS_, bool STAGED_ = false, bool LEAN_ = true>
struct Options {
  static constexpr int BLOCKS = BLOCKS_;
  static constexpr bool STAGED = STAGED_, LEAN = LEAN_;
};
/// Of the shapes that have lanes, too.
struct Plain : Options<2, false, false> {};

/// The position in a ring of STAGES buffers: `phase` flips each time it wraps.
template <int STAGES>
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;
  constexpr void advance() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

// ---- rows on their way out through shared memory -------------------------------------------------------------------

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
