// The sequence of tiles that a launch of both layers of an MLP walks (hopper_mlp.cuh), and the memory by which its
// blocks know one another. Pure: the kernel and the host's tests call the same functions.
#pragma once
#include <cstddef>
#include <cstdint>

namespace nexus::cuda {

/// Rows an expert on average, up to which two layers share a launch: what their shapes are for.
constexpr int kMlpMostRows = 32;
/// Tiles of the second layer, if every expert has one row tile, from which on they do. With fewer there is no work
/// there for most blocks, and those that have some wait for rows that have just been written: 512/1024/8/2, 32 tiles,
/// takes 25 us at 128 tokens instead of 23; 1024/2048/16/2, 64 tiles at 64, 62 instead of 63 (H200).
constexpr int64_t kMlpFewestTiles = 64;
/// Row tiles that there are counters for: with so few rows, in tiles of 32 or more, there are no more.
constexpr int mlp_row_tiles(int experts) { return 2 * experts + 8; }
/// Of the counters: the next tile to claim, blocks that have left, and of each row tile the warpgroups that are done
/// with one of its tiles in the first layer. Zero before the first launch, and after each.
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

}  // namespace nexus::cuda
