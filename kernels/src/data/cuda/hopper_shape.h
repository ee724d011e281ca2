// What shapes of the Hopper path (hopper_grouped.cuh) differ in, and the arithmetic of indices that their kernel and
// the host's tests share. Pure: no CUDA header, no device code; the kernel calls the constexpr functions as they are.
#pragma once
#include <cstdint>

namespace nexus::cuda::hopper {

/// BLOCKS: 64-column blocks of weights that a consumer warpgroup multiplies, 1 or 2.
/// STAGED: finished rows go through shared memory and leave as whole lines (hopper_staged.cuh). Pays where tiles have
/// many rows: direct stores are 16 or 32 bytes a row.
/// PANELS: of 64 elements of k in a stage, 1 or 2. With two, 256 consecutive bytes of each row of weights are asked for
/// together, which memory delivers 5 % faster than 128 (4.46 against 4.26 TB/s of an H200 at k = 4096).
template <int BLOCKS_, bool STAGED_, int PANELS_ = 1>
struct Options {
  static constexpr int BLOCKS = BLOCKS_, PANELS = PANELS_;
  static constexpr bool STAGED = STAGED_;
};

/// The position in a ring of STAGES buffers: `phase` flips each time it wraps.
template <int STAGES>
struct Cursor {
  int stage = 0;
  uint32_t phase = 0;
  constexpr void advance() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

/// Buffers of a block's ring of `stages` that may be filled or under way, in quarters, where `blocks` are to have
/// `read_ahead` bytes of weights under way together, `bytes` in a buffer; all with read_ahead = 0. The consumers hold
/// one buffer. With less than two, they and the producer would wait for each other.
constexpr int ring_quarters(int64_t read_ahead, int64_t blocks, int64_t bytes, int stages) {
  if (read_ahead <= 0) return 4 * stages;
  const int64_t under_way = read_ahead / ((blocks * bytes + 3) / 4);
  return under_way >= 4 * (stages - 1) ? 4 * stages : under_way < 4 ? 8 : 4 + static_cast<int>(under_way);
}
/// The same as a whole number, for step `step`: a quarter more is a buffer more in every fourth step.
constexpr int ring_limit(int quarters, int step) { return (quarters + (step & 3)) >> 2; }

// ---- an expert's rows among its tiles ------------------------------------------------------------------------------

/// The part of a block: rows from `from` on, which its products run over in `padded`, a multiple of 8 and at least 8.
struct RowShare {
  int from, padded;
};
/// Part `part` of `parts` of an expert's `rows`: as equal as eights of rows come, the larger ones first. So at most 7
/// rows of an expert's products are for nothing, where parts of one size would each be rounded up.
constexpr RowShare row_share(int rows, int parts, int part) {
  const int eights = (rows + 7) / 8, each = eights / parts, larger = eights - each * parts;
  const int own = each + (part < larger ? 1 : 0), before = part * each + (part < larger ? part : larger);
  return {before * 8, own > 0 ? own * 8 : 8};
}

/// What a block of a pair does at a turn. An expert's rows are cut into as few shares as a block's tile allows. Two
/// shares are a turn for each column tile, in which both blocks read the same weights. Of an odd number one share is
/// left: two column tiles of it are a turn, in which each block reads weights of its own (`alone`), right behind the
/// other shares' turns of these columns, while L2 has the weights; if a column tile is left as well, both take half of
/// the share's rows. Were the rows cut into an even number of shares instead, blocks would read weights as often for
/// fewer rows.
struct PairTurn {
  RowShare rows;
  int column;  // tile
  bool alone;
};
/// Row tiles of two shares that a group has at most: more, and their rows do not stay in L2 while weights stream by
/// (Mixtral at 16384 tokens: 18.1 ms with 3 to 6, 18.3 with 7, 20 with 13).
constexpr int kPairGroup = 6;
constexpr int pair_turns(int shares, int columns) { return shares / 2 * columns + (shares & 1) * ((columns + 1) / 2); }
constexpr PairTurn pair_turn(int index, int rows, int shares, int columns, int rank) {
  // Groups of row tiles of two shares each; the share that is left goes with the last.
  const int pairs = shares / 2, groups = pairs > 0 ? (pairs + kPairGroup - 1) / kPairGroup : 1;
  const int most = (pairs + groups - 1) / groups, last = groups - 1;
  const int group = index < last * most * columns ? index / (most * columns) : last;
  const int before = group * most, here = group < last ? most : pairs - before;
  const int odd = group < last ? 0 : shares & 1;
  // In a group by two column tiles: its turns of the first, of the second, of the share that is left.
  const int left = index - before * columns, both = 2 * here + odd, first = left / both * 2, within = left % both;
  const bool second = first + 1 < columns;
  if (within < (second ? 2 : 1) * here)
    return {row_share(rows, shares, (before + within % here) * 2 + rank), first + within / here, false};
  const RowShare share = row_share(rows, shares, shares - 1);
  if (second) return {share, first + rank, true};
  const int half = (share.padded / 8 + 1) / 2 * 8, rest = share.padded - half;
  return {rank == 0 ? RowShare{share.from, half} : RowShare{share.from + half, rest > 0 ? rest : 8}, first, false};
}

// ---- columns left behind whole tiles --------------------------------------------------------------------------------

/// A tile of a layer's `whole` column tiles, or of the one behind them, which has fewer columns.
struct Turn {
  bool rest;
  int index;  // among all tiles of its kind, in the order of tile_order.cuh
};

/// What block `block` of `blocks` takes at its turn `turn`. A tile of the rest takes a third of a whole one's time or
/// less, so they are dealt out: of whole + 1 consecutive turns of a block, one is a tile of the rest, and at about the
/// turn when others have the whole tiles of the same rows, which then are in L2. Each round deals out as many row tiles
/// as there are blocks, block b the rest of the b-th. In a fixed order of all tiles, blocks would take those of the
/// rest by the common divisors of blocks and tiles: some in every round and some never. A tile of the rest that is not
/// there says nothing about the block's next turn; a whole one that is not there ends it.
constexpr Turn turn_of(int turn, int block, int blocks, int whole, bool with_rest) {
  if (!with_rest) return {false, turn * blocks + block};
  const int round = turn / (whole + 1), now = turn - round * (whole + 1);
  // Blocks from `from` up to `to` have their tile of the rest now.
  const int from = (now * blocks + whole) / (whole + 1), to = ((now + 1) * blocks + whole) / (whole + 1);
  if (block >= from && block < to) return {true, round * blocks + block};
  const int before = round * whole * blocks + now * blocks - from;  // whole ones of earlier turns
  return {false, before + (block < from ? block : block - (to - from))};
}

/// Of `left` columns from a consumer warpgroup's first on: its blocks of 64 that have any.
constexpr int column_blocks(int left, int blocks) {
  const int all = left > 0 ? (left + 63) / 64 : 0;
  return all < blocks ? all : blocks;
}

// ---- rows on their way out through shared memory -------------------------------------------------------------------

/// A warpgroup stages up to 4 KiB at a time, 16 or 32 rows of `units` 16-byte units, and has two buffers: one is filled
/// while the other may still be read.
constexpr int kStagedBytes = 4096, kStagedBuffers = 2;
constexpr int staged_rows(int units) { return units > 8 ? 16 : 32; }

/// Where 16-byte unit `unit` of row `row` lies among rows of `units` units, 4, 8 or 16: swizzled, so that eight rows of
/// one unit, or eight units one behind another, are in different banks.
constexpr int staged_offset(int row, int unit, int units) {
  return (row * units + (unit ^ (units == 4 ? row >> 1 & 3 : row & 7))) * 16;
}

/// A lane gives the address of row lane % 8 of matrix lane / 8 of a stmatrix.x4. Without gates, matrix m is of rows
/// 8·(m / 2) and of columns 8·(m % 2) of the warp's 16 in 64-column block `block`; with gates (half as many columns),
/// of the warp's 8 columns in block m % 2, or, where a warpgroup has one block, all of rows 8·m.
constexpr int staged_row(int lane) { return (lane >> 4) * 8 + (lane & 7); }
constexpr int staged_unit(int lane, int warp, int block) { return block * 8 + warp * 2 + (lane >> 3 & 1); }
constexpr int staged_row_gated(int lane, int blocks) { return blocks == 1 ? lane : staged_row(lane); }
constexpr int staged_unit_gated(int lane, int warp, int blocks) {
  return blocks == 1 ? warp : (lane >> 3 & 1) * 4 + warp;
}

/// Of both warpgroups; 0 where results are not staged.
constexpr int staging_bytes(bool staged) { return staged ? 2 * kStagedBuffers * kStagedBytes : 0; }

}  // namespace nexus::cuda::hopper
