// The sequence of tiles that a launch of both layers of an MLP walks (hopper_mlp.cuh; hopper_mlp_pairs.cuh), and the
// memory by which its blocks know one another. Pure: the kernels and the host's tests call the same functions.
#pragma once
#include <cstddef>
#include <cstdint>

namespace nexus::cuda {

/// Rows an expert on average, up to which two layers share a launch: at 128 it saves 0 to 4 % of a step, 11 % of
/// 1024/2048/16/2, and 3 to 7 % with skewed loads; at 192 and 256 nothing (H200). Pairs share one at any number.
constexpr int kMlpMostRows = 128;
/// Tiles of the second layer, if every expert has one row tile, from which on they do. With fewer there is no work
/// there for most blocks, and those that have some wait for rows that have just been written: 512/1024/8/2, 32 tiles,
/// takes 25 us at 128 tokens instead of 23; 1024/2048/16/2, 64 tiles at 64, 62 instead of 63 (H200).
constexpr int64_t kMlpFewestTiles = 64;
/// Whether blocks of the next kernel, combine, may come as soon as this one has begun, in tiles of `rows` rows: where
/// there are fewer of them than SMs. Then they have set up when the last rows are there, and the next step's routing
/// begins earlier: 0.4 to 1.3 % of a step of 8 tokens. With more blocks, and beside tiles of 64 rows, which leave them
/// less room, steps take 1 to 2 % longer.
constexpr bool mlp_lets_in(int rows, int64_t tokens, int64_t width, int multiprocessors) {
  return rows <= 32 && tokens * width / 2048 <= 3 * multiprocessors / 4;
}
/// Bytes of a layer's weights that a launch asks L2 for ahead of its wait, of `all`: of the first layer in the one
/// launch of both (measured 4 to 24 MB: 1 % of a step of 8 tokens and 2 % of 64 from 12 on), of the second in launches
/// of their own of few weights (1 to 2 % of a step).
constexpr int64_t kWeightsAhead = 12 << 20;
constexpr int64_t weights_ahead(int64_t all) { return (all < kWeightsAhead ? all : kWeightsAhead) & ~int64_t{15}; }
/// Row tiles that there are counters for: there are no more where experts have up to a tile's rows on average.
constexpr int mlp_row_tiles(int experts) { return 2 * experts + 8; }
/// Of the counters: the next tile to claim, blocks that have left, and of each row tile, or of each expert where pairs
/// work, the warpgroups that are done with one of its tiles in the first layer. Zero before the first launch, and after
/// each.
constexpr int kMlpNext = 0, kMlpLeft = 1, kMlpDone = 2;
constexpr size_t mlp_counter_bytes(int experts) {
  return (kMlpDone + static_cast<size_t>(mlp_row_tiles(experts))) * sizeof(int32_t);
}

/// The tile of a claim, by its number: all of the first layer, then all of the second, in each by row tile as if there
/// were no experts. `layer` 2: there are no more.
struct MlpClaim {
  int layer;
  int index;  // among the layer's tiles
};
constexpr MlpClaim mlp_claim(int claim, int row_tiles, int first_n_tiles, int second_n_tiles) {
  const int of_first = row_tiles * first_n_tiles;
  if (claim < of_first) return {0, claim};
  claim -= of_first;
  return {claim < row_tiles * second_n_tiles ? 1 : 2, claim};
}

// ---- many rows: turns of pairs, the second layer's among the first's ------------------------------------------------

/// Number of an expert's first turn of the second layer, in the one sequence of both layers' turns: `delta` turns of
/// the first layer behind its own last one, or all that are left, and behind the second layer of the experts before.
/// `first_through`: turns of the first layer up to and with this expert, of `first_all`; `second_before`: of the second
/// layer, of the experts before.
constexpr int mlp_second_from(int first_through, int first_all, int second_before, int delta) {
  const int behind = first_all - first_through < delta ? first_all : first_through + delta;
  return behind + second_before;
}

/// Turns of the second layer, from which on pairs do both layers in one launch: with fewer, what is left at the end is
/// too much of it (Mixtral at 1024 tokens, 128 turns, 2 to 6 % slower; at 2048, 256 turns, 3 % faster).
constexpr int64_t kMlpFewestTurns = 192;
/// That `delta` for `pairs` at work, where an expert has `first` and `second` turns on average: two rounds of the
/// pairs, since one is found while the one before is at work, or so many that those left at the end, all of the second
/// layer, are a round. (Mixtral at 1024 tokens, 16 of them an expert, each a tenth of the step: with two rounds 11 %
/// slower than two launches.) More, and what lies between the layers does not stay in L2.
constexpr int mlp_delta(int pairs, int first, int second) {
  const int64_t round = second > 0 && second < pairs ? int64_t{pairs - second} * first / second : 0;
  return static_cast<int>(round > 2 * pairs ? round : 2 * pairs);
}

}  // namespace nexus::cuda
