// The arithmetic of indices by which the Hopper kernel stages finished rows and deals out its tiles, on the host: the
// functions that the kernel calls, against a plain definition of what they are for. Needs no GPU.
#include "data/cuda/hopper_shape.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>
#include <vector>

#include "harness.h"

using namespace nexus;
using namespace nexus::test;
using namespace nexus::cuda::hopper;

TEST("hopper: staged rows come out in rows and columns, by stmatrix's rule, without bank conflicts") {
  for (const auto [gated, blocks] : {std::pair{false, 2}, {true, 2}, {false, 1}, {true, 1}}) {
    const int units = (gated ? 4 : 8) * blocks, columns = units * 8, rows = staged_rows(units);
    std::vector<int> memory(static_cast<size_t>(rows * columns), -1);  // by element; a value is row * columns + column
    const auto write = [&](int to, int warp, int block) {
      const auto address = [&](int lane) {
        const int unit = gated ? staged_unit_gated(lane, warp, blocks) : staged_unit(lane, warp, block);
        return staged_offset(to + (gated ? staged_row_gated(lane, blocks) : staged_row(lane)), unit, units);
      };
      for (int m = 0; m < 4; ++m) {
        std::set<int> banks;
        for (int i = 0; i < 8; ++i) banks.insert(address(8 * m + i) / 16 % 8);
        CHECK_EQ(banks.size(), size_t{8});
      }
      // Of matrix m, lane l holds row l / 4 and columns 2·(l % 4) + 0, 1; its transpose is stored, row j where lane
      // 8m + j says. The matrix's rows are columns of the layer, its columns token rows.
      for (int m = 0; m < 4; ++m)
        for (int lane = 0; lane < 32; ++lane)
          for (int h = 0; h < 2; ++h) {
            const int i = lane / 4, j = 2 * (lane % 4) + h;
            // As Finish has them: without gates 8·(m % 2) of the warp's 16 columns of `block`; with gates the warp's 8
            // of block m % 2, where there are two, and else eight rows more.
            const bool rows_only = gated && blocks == 1;
            const int half = rows_only ? 0 : m % 2;
            const int column = gated ? half * 32 + warp * 8 + i : block * 64 + warp * 16 + half * 8 + i;
            const int row = to + (rows_only ? m : m / 2) * 8 + j;
            int& at = memory[static_cast<size_t>(address(8 * m + j) / 2 + i)];
            CHECK_EQ(at, -1);
            at = row * columns + column;
          }
    };
    for (int warp = 0; warp < 4; ++warp)
      for (int block = 0; block < (gated ? 1 : blocks); ++block)
        for (int to = 0; to < rows; to += gated && blocks == 1 ? 32 : 16) write(to, warp, block);
    for (int thread = 0; thread < 128; ++thread)
      for (int pass = 0; pass < rows * units / 128; ++pass) {
        const int row = thread / units + pass * (128 / units), unit = thread % units;
        const int from = staged_offset(row, unit, units) / 2;
        for (int i = 0; i < 8; ++i) CHECK_EQ(memory[static_cast<size_t>(from + i)], row * columns + unit * 8 + i);
        if (thread % 8 == 0) {
          std::set<int> banks;
          for (int t = thread; t < thread + 8; ++t)
            banks.insert(staged_offset(t / units + pass * (128 / units), t % units, units) / 16 % 8);
          CHECK_EQ(banks.size(), size_t{8});
        }
      }
    for (const int v : memory) CHECK(v >= 0);
  }
}

TEST("hopper: every tile is some block's turn once, and tiles of the rest are dealt out evenly, beside their rows") {
  for (const int whole : {0, 1, 2, 3, 6, 8, 11})
    for (const bool with_rest : {false, true})
      for (const int blocks : {1, 2, 3, 5, 7, 48, 66, 132})
        for (const int row_tiles : {0, 1, 2, 7, 64, 131, 132, 133, 256, 700}) {
          if (whole == 0 && !with_rest) continue;
          std::vector<int> wholes(static_cast<size_t>(row_tiles * whole)), rests(static_cast<size_t>(row_tiles));
          int least = row_tiles, most = 0;
          for (int block = 0; block < blocks; ++block) {
            int own = 0;
            // As the kernel's producer walks.
            for (int turn = 0;; ++turn) {
              const Turn t = turn_of(turn, block, blocks, whole, with_rest);
              std::vector<int>& tiles = t.rest ? rests : wholes;
              CHECK(t.index >= 0);
              if (t.index >= static_cast<int>(tiles.size())) {
                if (t.rest && whole > 0) continue;
                break;
              }
              ++tiles[static_cast<size_t>(t.index)];
              own += t.rest;
              // Its row tile is that of the whole tiles of the same turn, give or take what blocks are short of a
              // round.
              const int row = t.rest ? t.index : t.index / whole, dealt = turn * blocks / (whole + with_rest);
              CHECK(std::abs(row - dealt) <= blocks / (whole + with_rest) + 1);
            }
            least = std::min(least, own), most = std::max(most, own);
          }
          CHECK(std::all_of(wholes.begin(), wholes.end(), [](int times) { return times == 1; }));
          if (with_rest) {
            CHECK(std::all_of(rests.begin(), rests.end(), [](int times) { return times == 1; }));
            CHECK(most - least <= 1);
          }
        }
}

TEST("hopper: blocks of 64 columns that a warpgroup has") {
  for (const int blocks : {1, 2})
    for (int left = -200; left < 300; ++left) {
      int expected = 0;
      for (int b = 0; b < blocks; ++b) expected += b * 64 < left;
      CHECK_EQ(column_blocks(left, blocks), expected);
    }
}

TEST("hopper: a pair's turns: every row of every column tile once, in both blocks the same weights or either its own") {
  for (const int most : {96, 160})
    for (const int columns : {1, 2, 3, 6, 11, 16, 112})
      for (int rows = 1; rows < 5000; rows += rows < 700 ? 1 : 101) {
        const int shares = (rows + most - 1) / most;
        std::vector<int> seen(static_cast<size_t>(columns * rows));
        for (int turn = 0; turn < pair_turns(shares, columns); ++turn) {
          const PairTurn own[2] = {pair_turn(turn, rows, shares, columns, 0),
                                   pair_turn(turn, rows, shares, columns, 1)};
          CHECK_EQ(own[0].alone, own[1].alone);
          CHECK_EQ(own[0].alone, own[0].column != own[1].column);
          for (const PairTurn& t : own) {
            CHECK(t.column >= 0 && t.column < columns);
            CHECK(t.rows.padded >= 8 && t.rows.padded % 8 == 0 && t.rows.padded <= most);
            for (int r = t.rows.from; r < std::min(rows, t.rows.from + t.rows.padded); ++r)
              ++seen[static_cast<size_t>(t.column * rows + r)];
          }
        }
        CHECK(std::all_of(seen.begin(), seen.end(), [](int times) { return times == 1; }));
      }
}

TEST("hopper: a pair's turns: up to a group's shares, all turns that read a column tile's weights lie together") {
  for (int shares = 1; shares <= 2 * kPairGroup + 1; ++shares)
    for (const int columns : {1, 2, 3, 6, 11, 16, 112}) {
      std::vector<int> first(static_cast<size_t>(columns), -1), last(first);
      for (int turn = 0; turn < pair_turns(shares, columns); ++turn)
        for (const int rank : {0, 1}) {
          const auto column = static_cast<size_t>(pair_turn(turn, shares * 160, shares, columns, rank).column);
          if (first[column] < 0) first[column] = turn;
          last[column] = turn;
        }
      // Of two column tiles and the share that is left: as many turns as shares.
      for (size_t c = 0; c < first.size(); ++c) CHECK(last[c] - first[c] < shares);
    }
}

TEST("hopper: an expert's rows among its tiles: all of them once, in whole eights, within a tile's rows") {
  for (const int most : {32, 64, 96, 160})
    for (const int cluster : {1, 2})
      for (int rows = 1; rows < 1400; ++rows) {
        const int parts = (rows + most * cluster - 1) / (most * cluster) * cluster;
        int next = 0, products = 0;
        for (int part = 0; part < parts; ++part) {
          const RowShare share = row_share(rows, parts, part);
          CHECK(share.padded > 0 && share.padded % 8 == 0 && share.padded <= most);
          CHECK_EQ(std::min(share.from, rows), next);
          next = std::min(rows, share.from + share.padded);
          products += share.padded;
        }
        CHECK_EQ(next, rows);
        // Only where a pair has less than two eights does one of its blocks run over rows that are not there.
        CHECK(products <= std::max((rows + 7) / 8, parts) * 8);
      }
}
