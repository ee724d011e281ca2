// The sequence of tiles of a launch for both layers of an MLP, and the protocol by which its blocks wait for one
// another: the functions that the kernel calls, and a model of its blocks that are run in random order, some of them
// late or one behind the other. Needs no GPU.
#include "data/cuda/mlp_tiles.h"

#include <set>
#include <tuple>
#include <vector>

#include "data_plane.h"

using namespace nexus;
using namespace nexus::test;
using namespace nexus::cuda;

namespace {

/// One launch: rows by expert, cut into tiles of `span` rows and two layers of n_tiles column tiles.
struct Sequence {
  std::vector<int> first_tile{0};
  int n_tiles[2];

  Sequence(Random& random, const std::vector<int>& rows, int span, int most_columns) {
    for (const int r : rows) first_tile.push_back(first_tile.back() + (r + span - 1) / span);
    for (int& n : n_tiles) n = static_cast<int>(random.integer(1, most_columns));
  }
  int row_tiles() const { return first_tile.back(); }
  int tiles() const { return row_tiles() * (n_tiles[0] + n_tiles[1]); }
  struct Found {
    int layer, row_tile, column_tile;
    auto operator<=>(const Found&) const = default;
  };
  /// False: there are no more.
  bool find(int number, Found& found) const {
    const MlpClaim claim = mlp_claim(number, row_tiles(), n_tiles[0], n_tiles[1]);
    if (claim.layer > 1) return false;
    const int columns = n_tiles[claim.layer], wanted = claim.index / columns;
    size_t expert = 0;
    while (first_tile[expert + 1] <= wanted) ++expert;
    const int before = first_tile[expert];
    // In groups of up to 8 row tiles, all of a group before the next column tile (tile_order.cuh).
    const int tiles = first_tile[expert + 1] - before, local = claim.index - before * columns;
    const int group = local / (8 * columns), within = local - group * 8 * columns;
    const int in_group = std::min(8, tiles - group * 8);
    found = {claim.layer, before + group * 8 + within % in_group, within / in_group};
    return true;
  }
};

std::vector<int> random_rows(Random& random) {
  std::vector<int> rows(static_cast<size_t>(random.integer(1, 40)));
  for (int& r : rows) r = random.integer(0, 2) == 0 ? 0 : static_cast<int>(random.integer(0, 40));
  if (random.integer(0, 2) == 0) rows[0] = 700;
  if (random.integer(0, 9) == 0) rows.assign(rows.size(), 0);
  return rows;
}

/// A block of the kernel: a producer that claims tiles and fills `stages` buffers, and a consumer behind it.
struct Block {
  enum State { kClaim, kWait, kFill, kLeft } state = kClaim;
  int late = 0;
  Sequence::Found tile{};
  int filled = 0, weights = 0;                           // steps of the tile
  std::vector<std::pair<Sequence::Found, int>> buffers;  // under way, the step of the tile
};

}  // namespace

TEST("mlp tiles: every tile of the first layer, then every one of the second, once") {
  Random random(1401);
  for (int repeat = 0; repeat < 400; ++repeat) {
    const Sequence sequence(random, random_rows(random), random.integer(0, 1) ? 32 : 64, 20);
    std::set<Sequence::Found> seen;
    Sequence::Found found{};
    int number = 0, layer = 0;
    for (; sequence.find(number, found); ++number) {
      CHECK(found.layer >= layer && found.row_tile < sequence.row_tiles());
      CHECK(found.column_tile >= 0 && found.column_tile < sequence.n_tiles[found.layer]);
      layer = found.layer;
      CHECK(seen.insert(found).second);
    }
    CHECK_EQ(static_cast<int>(seen.size()), sequence.tiles());
    CHECK_EQ(number, sequence.tiles());
    CHECK(!sequence.find(number + static_cast<int>(random.integer(0, 1000)), found));
  }
}

TEST("mlp tiles: blocks in any order, late or alone, end, find their rows complete and leave zeros") {
  Random random(1402);
  for (int repeat = 0; repeat < 400; ++repeat) {
    const Sequence sequence(random, random_rows(random), 32, 6);
    const int steps[2] = {static_cast<int>(random.integer(1, 7)), static_cast<int>(random.integer(1, 7))};
    const int stages = static_cast<int>(random.integer(3, 5)), wanted = sequence.n_tiles[0];
    std::vector<int> counters(static_cast<size_t>(kMlpDone + sequence.row_tiles()));
    std::vector<Block> blocks(static_cast<size_t>(random.integer(1, 9)));
    const bool one_by_one = random.integer(0, 3) == 0;
    for (Block& b : blocks) b.late = random.integer(0, 1) ? static_cast<int>(random.integer(0, 2000)) : 0;
    std::set<Sequence::Found> done;
    int left = 0;
    const auto count_of = [&](int row_tile) -> int& { return counters[static_cast<size_t>(kMlpDone + row_tile)]; };
    const auto produce = [&](Block& b) {  // false: nothing to do but wait
      switch (b.state) {
        case Block::kClaim:
          if (!sequence.find(counters[kMlpNext]++, b.tile)) {
            if (++counters[kMlpLeft] == static_cast<int>(blocks.size())) std::fill(counters.begin(), counters.end(), 0);
            b.state = Block::kLeft;
            ++left;
            return true;
          }
          b.filled = b.weights = 0;
          b.state = b.tile.layer == 1 ? Block::kWait : Block::kFill;
          return true;
        case Block::kWait: {  // weights go ahead, as far as there are buffers
          const bool ready = count_of(b.tile.row_tile) >= wanted;
          const int room = stages - static_cast<int>(b.buffers.size());
          if (!ready) {
            const bool more = b.weights < std::min({steps[1], stages, room});
            b.weights += more;
            return more;
          }
          b.state = Block::kFill;
          return true;
        }
        case Block::kFill:
          if (static_cast<int>(b.buffers.size()) == stages) return false;
          if (b.tile.layer == 1) CHECK_EQ(count_of(b.tile.row_tile), wanted);
          b.buffers.emplace_back(b.tile, b.filled);
          if (++b.filled == steps[b.tile.layer]) b.state = Block::kClaim;
          return true;
        case Block::kLeft:
          return false;
      }
      return false;
    };
    const auto consume = [&](Block& b) {
      if (b.buffers.empty()) return false;
      const auto [tile, step] = b.buffers.front();
      b.buffers.erase(b.buffers.begin());
      if (step + 1 < steps[tile.layer]) return true;
      CHECK(done.insert(tile).second);
      if (tile.layer == 0) ++count_of(tile.row_tile);
      return true;
    };
    const auto finished = [&](const Block& b) { return b.state == Block::kLeft && b.buffers.empty(); };
    for (int turn = 0, idle = 0; !std::all_of(blocks.begin(), blocks.end(), finished); ++turn) {
      size_t at = static_cast<size_t>(random.integer(0, static_cast<int64_t>(blocks.size()) - 1));
      if (one_by_one)  // a block has no place on the chip until the one before it has left
        for (at = 0; finished(blocks[at]);) ++at;
      Block& b = blocks[at];
      if (!one_by_one && turn < b.late) continue;
      const bool moved = random.integer(0, 1) ? produce(b) : consume(b);
      idle = moved ? 0 : idle + 1;
      if (idle > 10'000) throw Failure("the blocks wait for one another");
    }
    CHECK_EQ(left, static_cast<int>(blocks.size()));
    CHECK_EQ(static_cast<int>(done.size()), sequence.tiles());
    for (const int c : counters) CHECK_EQ(c, 0);
  }
}

TEST("mlp tiles: turns of pairs, of both layers, each once, and no second layer before its expert's first") {
  Random random(1403);
  for (int repeat = 0; repeat < 1000; ++repeat) {
    std::vector<int> turns[2];  // of each layer, by expert
    const size_t experts = static_cast<size_t>(random.integer(1, 40));
    int all[2] = {0, 0};
    for (size_t e = 0; e < experts; ++e) {
      const bool none = random.integer(0, 3) == 0;
      for (int layer : {0, 1}) {
        turns[layer].push_back(none ? 0 : static_cast<int>(random.integer(1, 30)));
        all[layer] += turns[layer].back();
      }
    }
    const int delta = static_cast<int>(random.integer(0, 9) == 0 ? 1 << 30 : random.integer(0, 150));
    std::vector<int> owner(static_cast<size_t>(all[0] + all[1]), -1);  // the expert whose second layer it is
    int through = 0, before = 0;
    for (size_t e = 0; e < experts; ++e) {
      through += turns[0][e];
      const int from = mlp_second_from(through, all[0], before, delta);
      for (int i = from; i < from + turns[1][e]; ++i) {
        CHECK(i >= 0 && i < all[0] + all[1] && owner[static_cast<size_t>(i)] < 0);
        owner[static_cast<size_t>(i)] = static_cast<int>(e);
      }
      before += turns[1][e];
    }
    // The rest is the first layer's, in order.
    int first = 0, second = 0;
    through = 0;
    for (size_t e = 0, i = 0; e < experts; ++e) {
      through += turns[0][e];
      for (int k = 0; k < turns[1][e]; ++k, ++i) {
        for (; owner[i] < 0; ++i) ++first;
        CHECK_EQ(owner[i], static_cast<int>(e));
        CHECK(first >= std::min<int64_t>(all[0], int64_t{through} + delta));
        ++second;
      }
    }
    CHECK_EQ(first, all[0]);
    CHECK_EQ(second, all[1]);
  }
}

TEST("mlp tiles: counters for as many row tiles as there may be of up to a tile's rows an expert") {
  for (int experts = 1; experts <= 1024; ++experts)
    for (const int span : {32, 64, 160}) {
      const int64_t rows = int64_t{span} * experts;
      CHECK((rows + int64_t{span - 1} * experts) / span <= mlp_row_tiles(experts));
    }
}
