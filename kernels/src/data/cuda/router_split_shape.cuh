// The tiles of router_split.cu's kernels.
#pragma once
#include <algorithm>

#include "data/cuda/cluster.cuh"

namespace nexus::cuda {

/// Of k, one for each block of a cluster.
constexpr int kSlices = kClusterBlocks;

/// Each warp has 32 × BN/4 of the tile. A stage is 64 of k: rows of 128 bytes, whose 16-byte chunks are swizzled by
/// row.
template <class T_, int BM_, int BN_>
struct SplitShape {
  using T = T_;
  static constexpr int BM = BM_, BN = BN_, BK = 64, STAGES = 4;
  static constexpr int WARPS = BM / 32 * 4, THREADS = WARPS * 32;
  static constexpr int WN = BN / 4, MT = 2, NT = WN / 8;
  static constexpr int CHUNKS = BK / 8, ROWS_PER_PASS = THREADS / CHUNKS;
  static constexpr int A_PASSES = BM / ROWS_PER_PASS, B_PASSES = BN / ROWS_PER_PASS;
  static constexpr int A_BYTES = BM * BK * 2, STAGE_BYTES = (BM + BN) * BK * 2;
  static constexpr int STRIDE = BN + 8;  // floats a row of the tile: 8-byte stores of a half-warp fall in 32 banks
  static constexpr int SHARED_BYTES = std::max(STAGES * STAGE_BYTES, BM* STRIDE * 4);
  static constexpr int VECTORS = BN / 4;  // of a row of the tile
  static_assert(BM % 32 == 0 && NT % 2 == 0 && ROWS_PER_PASS % 8 == 0 && BM % kSlices == 0);
};

}  // namespace nexus::cuda
