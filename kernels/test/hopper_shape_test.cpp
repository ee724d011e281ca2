// The arithmetic of indices of the Hopper kernel's shapes, on the host: the functions that the kernel calls, against
// plain definitions of what they are for. Needs no GPU.
#include "data/cuda/hopper_shape.h"

#include <algorithm>
#include <array>
#include <set>

#include "data/cuda/tile_mix.h"
#include "harness.h"

using namespace nexus;
using namespace nexus::test;
using namespace nexus::cuda;
using namespace nexus::cuda::hopper;

namespace {

template <int STAGES>
void check_skip() {
  for (int from = 0; from < 2 * STAGES; ++from)
    for (int steps = 0; steps < 5 * STAGES; ++steps) {
      Cursor<STAGES> slow, fast;
      for (int i = 0; i < from; ++i) slow.advance(), fast.advance();
      for (int i = 0; i < steps; ++i) slow.advance();
      fast.skip(steps);
      CHECK_EQ(fast.stage, slow.stage);
      CHECK_EQ(fast.phase, slow.phase);
    }
}

/// An mbarrier as waits see it: how many of its phases are complete.
struct Barrier {
  int expected = 1, arrived = 0, complete = 0;
  void arrive() {
    if (++arrived == expected) arrived = 0, ++complete;
  }
  bool passes(uint32_t parity) const { return (static_cast<uint32_t>(complete) & 1) != parity; }
};

/// The producer and two consumers of a block that takes `tiles` tiles of `steps` steps in turns, stepped in any order.
/// Each does one thing a step() and says whether it could; every buffer carries the number of its filling.
template <int STAGES>
struct Turns {
  int tiles, steps;
  std::array<Barrier, STAGES> full{}, empty{};
  std::array<int, STAGES> filling{};  // which one a buffer holds
  std::array<int, 2> turn{0, 1 - 1};  // arrivals at a consumer's named barrier
  bool done = false;
  // producer
  Cursor<STAGES> put{};
  int put_count = 0;
  // consumers
  struct Consumer {
    Cursor<STAGES> at{};
    int tile = 0, step = -1;  // -1: waits for its turn
    bool gone = false;
  };
  std::array<Consumer, 2> consumers{};
  std::vector<int> order;  // tiles as they were begun

  Turns(int tiles, int steps) : tiles(tiles), steps(steps) {
    consumers[1].at.skip(steps), consumers[1].tile = 1;
    turn[0] = 1;  // the second lets the first begin
  }
  bool produce() {
    if (put_count > tiles * steps) return false;
    if (!empty[static_cast<size_t>(put.stage)].passes(put.phase ^ 1)) return false;
    filling[static_cast<size_t>(put.stage)] = put_count++;  // the last one says that there are no more tiles
    full[static_cast<size_t>(put.stage)].arrive();
    put.advance();
    return true;
  }
  bool consume(int group) {
    Consumer& c = consumers[static_cast<size_t>(group)];
    if (c.gone) return false;
    if (c.step < 0) {
      if (turn[static_cast<size_t>(group)] == 0) return false;
      if (!done && !full[static_cast<size_t>(c.at.stage)].passes(c.at.phase)) return false;
      --turn[static_cast<size_t>(group)];
      if (done) return c.gone = true;
      CHECK_EQ(filling[static_cast<size_t>(c.at.stage)], std::min(c.tile, tiles) * steps);
      if (c.tile >= tiles) {
        done = true;
        give_turn(group);
        return c.gone = true;
      }
      order.push_back(c.tile);
      c.step = 0;
      return true;
    }
    if (!full[static_cast<size_t>(c.at.stage)].passes(c.at.phase)) return false;
    CHECK_EQ(filling[static_cast<size_t>(c.at.stage)], c.tile * steps + c.step);
    empty[static_cast<size_t>(c.at.stage)].arrive();
    c.at.advance();
    if (++c.step == steps) {
      give_turn(group);
      c.at.skip(steps), c.tile += 2, c.step = -1;
    }
    return true;
  }
  void give_turn(int group) {
    const auto other = static_cast<size_t>(group ^ 1);
    CHECK_EQ(turn[other], 0);  // a second arrival would complete the named barrier without its owner
    ++turn[other];
  }
};

}  // namespace

TEST("hopper: a cursor that skips stands where one that advances would") {
  check_skip<1>(), check_skip<3>(), check_skip<4>(), check_skip<6>(), check_skip<8>();
}

TEST("hopper: two consumers in turns see every tile once and in order, whoever is fast, and both end") {
  Random random(80);
  for (const int tiles : {0, 1, 2, 3, 7})
    for (const int steps : {1, 2, 3, 6, 7, 13})
      for (int round = 0; round < 40; ++round) {
        Turns<6> block(tiles, steps);
        const double speed[3] = {random.uniform(), random.uniform(), random.uniform()};
        int idle = 0;
        while (!(block.consumers[0].gone && block.consumers[1].gone)) {
          bool moved = false;
          for (int who = 0; who < 3; ++who)
            if (random.uniform() < 0.1 + speed[who]) moved |= who == 2 ? block.produce() : block.consume(who);
          idle = moved ? 0 : idle + 1;
          if (idle > 500) throw Failure("stuck with " + show(tiles) + " tiles of " + show(steps) + " steps");
        }
        CHECK_EQ(static_cast<int>(block.order.size()), tiles);
        CHECK(std::is_sorted(block.order.begin(), block.order.end()));
      }
}

TEST("hopper: staged rows come out in rows and columns, by stmatrix's rule, without bank conflicts") {
  for (const bool gated : {false, true}) {
    const int units = gated ? 8 : 16, columns = units * 8;
    std::vector<int> memory(static_cast<size_t>(kStagedRows * columns),
                            -1);  // by element; a value is row * columns + column
    for (int warp = 0; warp < 4; ++warp)
      for (int block = 0; block < (gated ? 1 : 2); ++block) {
        const auto address = [&](int lane) {
          const int unit = gated ? staged_unit_gated(lane, warp) : staged_unit(lane, warp, block);
          return staged_offset(staged_row(lane), unit, units);
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
              // As Finish has them: without gates 8·(m % 2) of the warp's 16 columns of `block`; with gates the warp's
              // 8 of block m % 2, where even lane groups have the first four columns and odd ones the others.
              const int column =
                  gated ? (m % 2) * 32 + warp * 8 + (i % 2) * 4 + i / 2 : block * 64 + warp * 16 + (m % 2) * 8 + i;
              const int row = (m / 2) * 8 + j;
              int& to = memory[static_cast<size_t>(address(8 * m + j) / 2 + i)];
              CHECK_EQ(to, -1);
              to = row * columns + column;
            }
      }
    for (int thread = 0; thread < 128; ++thread)
      for (int pass = 0; pass < kStagedRows * units / 128; ++pass) {
        const int row = thread / units + pass * (128 / units), unit = thread % units;
        const int from = staged_offset(row, unit, units) / 2;
        std::array<int, 8> v;
        std::copy_n(memory.begin() + from, 8, v.begin());
        if (gated) v = {v[0], v[2], v[4], v[6], v[1], v[3], v[5], v[7]};  // what read()'s __byte_perm does
        for (int i = 0; i < 8; ++i) CHECK_EQ(v[static_cast<size_t>(i)], row * columns + unit * 8 + i);
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

TEST("hopper: hot and cold tiles mixed are all there, in their own order, evenly spread") {
  for (const auto& [hot, cold] :
       {std::pair{0, 5}, {5, 0}, {1, 1}, {3, 100}, {100, 3}, {64, 64}, {37, 91}, {1000000, 2000003}}) {
    const int all = hot + cold, step = all > 1000 ? 997 : 1;
    int hots = 0, colds = 0;
    for (int i = 0; i < all; i += step) {
      const MixedIndex m = mixed(i, hot, cold);
      if (step == 1) CHECK_EQ(m.index, m.hot ? hots : colds);
      CHECK(m.index < (m.hot ? hot : cold));
      (m.hot ? hots : colds)++;
      if (step == 1) CHECK_EQ(hots, static_cast<int>((i + int64_t{1}) * hot / all));
    }
    if (step == 1) CHECK_EQ(hots, hot);
  }
}

TEST("hopper: the guessed tile is the order's where experts have equally many row tiles") {
  for (const int row_tiles : {1, 2, 7, 8, 9, 16, 21})
    for (const int columns : {1, 3, 8}) {
      int index = 0;
      for (int expert = 0; expert < 3; ++expert)
        for (int group = 0; group < row_tiles; group += 8)  // as tile_order.cuh says
          for (int column = 0; column < columns; ++column)
            for (int row = group; row < std::min(group + 8, row_tiles); ++row, ++index) {
              const GuessedTile guess = guess_tile(index, columns, row_tiles);
              CHECK_EQ(guess.expert, expert);
              CHECK_EQ(guess.column_tile, column);
            }
    }
}
