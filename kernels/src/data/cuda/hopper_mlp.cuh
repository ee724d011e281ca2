// Both layers of an MLP in one launch on Hopper's tensor cores: the tiles of hopper_grouped.cuh's shapes, with the same
// order of sums, so the same bits as the two launches they replace.
//
// Between two launches the memory idles: the last tiles of the first drain, the second fills its buffers anew. Here a
// block takes tiles off one sequence, first those of layer 0 and then those of layer 1, each for the asking (an atomic
// counter). A tile of layer 1 needs its rows' results of all columns of layer 0, nothing else: it waits for a count of
// them, by row tile, and its weights are on their way meanwhile.
//
// No block ever waits for one that has not started. A tile of layer 0 waits for nothing; whoever waits has a tile of
// layer 1, so all tiles of layer 0 are taken, and a block that has taken one works on it before any of layer 1. So it
// does not matter how many blocks run at once, beside whom, or on how many SMs.
//
// What the launches leave in memory to know one another by (MlpSync) is zero before and after each: the last of a row
// tile's readers clears its counts, the last block the others.
#pragma once
#include "data/cuda/hopper_grouped.cuh"

namespace nexus::cuda::hopper {

/// Counters in device memory.
struct MlpSync {
  int32_t* next;  // the next tile to take
  int32_t* left;  // blocks that have left
  int32_t*
      counts;  // of row tile i: [2i] consumers that are done with a tile of layer 0, [2i + 1] tiles of layer 1 begun
  int limit;   // row tiles that there is room for
};

struct MlpParams {
  GroupedParams layer[2];
  MlpSync sync;
};

struct MlpTile : Tile {
  int layer;
  int row_tile;  // among all experts'
};

constexpr int kMlpExperts = 512;

template <class S>
struct MlpControl {
  uint64_t full[S::STAGES], empty[S::STAGES];
  MlpTile ring[S::RING];
  OutputRows<S::ROWS> rows[2];
  int taken[2];
  int first_tile[kMlpExperts + 1];  // row tiles of the experts before
};

template <class S>
constexpr int kMlpShared = 1024 + S::STAGES * S::STAGE_BYTES + static_cast<int>(sizeof(MlpControl<S>));

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kProducersOnly = 5;  // the producers' named barrier

/// The experts' row tiles, summed up; by one warp.
template <class S>
__device__ __forceinline__ void sum_tiles(const GroupedParams& p, int limit, int* first_tile) {
  const int lane = threadIdx.x & 31, per_lane = (p.experts + 31) / 32;
  const int first = min(lane * per_lane, p.experts), last = min(first + per_lane, p.experts);
  const auto tiles_of = [&](int e) {
    return (max(0, offset_at<true>(p, e + 1) - offset_at<true>(p, e)) + S::ROWS - 1) / S::ROWS;
  };
  int tiles = 0;
  for (int e = first; e < last; ++e) tiles += tiles_of(e);
  int through = tiles;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int left = __shfl_up_sync(0xffffffffu, through, d);
    if (lane >= d) through += left;
  }
  int at = through - tiles;
  for (int e = first; e < last; ++e) {
    first_tile[e] = min(at, limit);
    at += tiles_of(e);
  }
  if (lane == 31) first_tile[p.experts] = min(through, limit);
}

/// Tile `index` of the sequence. False: there are no more.
template <class S>
__device__ __forceinline__ bool find_mlp_tile(const MlpParams& p, const int* first_tile, int index, MlpTile& tile) {
  constexpr int kGroup = 8;  // as in tile_order.cuh
  const int experts = p.layer[0].experts, row_tiles = first_tile[experts];
  const int of_first = row_tiles * p.layer[0].n_tiles;
  tile.layer = index >= of_first;
  if (tile.layer) index -= of_first;
  const int n_tiles = p.layer[tile.layer].n_tiles;
  if (index >= row_tiles * n_tiles) return false;
  // The last expert that begins no later: experts without tiles begin where the next one does.
  const int wanted = index / n_tiles;
  int expert = 0;
  for (int step = kMlpExperts / 2; step > 0; step >>= 1)
    if (expert + step < experts && first_tile[expert + step] <= wanted) expert += step;

  const int tiles = first_tile[expert + 1] - first_tile[expert];
  const int local = index - first_tile[expert] * n_tiles;
  const int group = local / (kGroup * n_tiles), in_group = min(kGroup, tiles - group * kGroup);
  const int within = local - group * kGroup * n_tiles;
  const int share = group * kGroup + within % in_group;
  const int begin = offset_at<true>(p.layer[0], expert);
  const int rows = max(0, offset_at<true>(p.layer[0], expert + 1) - begin);
  const int padded = ((rows + tiles - 1) / tiles + 7) & ~7;
  tile.expert = expert;
  tile.rows = max(0, min(padded, rows - share * padded));
  tile.row = tile.rows > 0 ? begin + share * padded : begin;
  tile.column = within / in_group * S::COLUMNS;
  tile.padded = min(padded, S::ROWS);
  tile.row_tile = first_tile[expert] + share;
  return true;
}

/// Weights of the first tile of layer 0 to L2, as if all experts had equally many rows: before the routing is known.
template <class S>
__device__ __forceinline__ void guess_weights(const GroupedParams& p, const CUtensorMap& map) {
  const int steps = (static_cast<int>(p.k) + S::BK - 1) / S::BK;
  const int rows = static_cast<int>(p.max_rows) / p.experts;
  const GuessedTile guess = guess_tile(blockIdx.x, p.n_tiles, (rows + S::ROWS - 1) / S::ROWS);
  if (guess.expert >= p.experts) return;
  const int y = guess.expert * static_cast<int>(p.n) + guess.column_tile * S::COLUMNS;
  for (int s = 0; s < min(steps, S::STAGES); ++s)
#pragma unroll
    for (int i = 0; i < S::BOXES; ++i)
      if (y + i * S::BOX_COLUMNS < p.experts * static_cast<int>(p.n))
        prefetch_box(&map, s * S::BK, y + i * S::BOX_COLUMNS);
}

template <class S>
__device__ __forceinline__ void produce_mlp(const MlpParams& p, const CUtensorMap& map0, const CUtensorMap& map1,
                                            uint32_t buffers, MlpControl<S>& control) {
  const int thread = threadIdx.x, chunk = thread % 8, copy_row = thread / 8;
  const uint32_t copy_at = S::WEIGHT_BYTES + copy_row * 128 + ((chunk ^ (copy_row & 7)) * 16);
  if (thread == 0) guess_weights<S>(p.layer[0], map0);
  wait_for_previous();
  release_next();
  const void* const x = input_of(p.layer[0]);
  int taken = 0;  // thread 0's: asked for one tile ahead
  if (thread == 0) taken = atomicAdd(p.sync.next, 1);
  if (thread < 32) sum_tiles<S>(p.layer[0], p.sync.limit, control.first_tile);
  int begun = -1;  // thread 0's: the row tile of the layer-1 tile that all producers have seen ready
  Cursor<S::STAGES> at;
  int slot = 0;
#pragma unroll 1
  for (int turn = 0;; turn ^= 1) {
    if (thread == 0) control.taken[turn] = taken;
    named_barrier(kProducersOnly, S::PRODUCERS);
    MlpTile tile{};
    const bool found = find_mlp_tile<S>(p, control.first_tile, control.taken[turn], tile);
    const GroupedParams& g = p.layer[tile.layer];
    const CUtensorMap& map = tile.layer ? map1 : map0;
    const int k = static_cast<int>(g.k), steps = (k + S::BK - 1) / S::BK;
    if (thread == 0) {
      if (found) taken = atomicAdd(p.sync.next, 1);
      if (begun >= 0 && atomicAdd(p.sync.counts + 2 * begun + 1, 1) == p.layer[1].n_tiles - 1) {
        p.sync.counts[2 * begun] = 0;
        p.sync.counts[2 * begun + 1] = 0;
      }
      begun = tile.layer ? tile.row_tile : -1;
    }
    const int y = tile.expert * static_cast<int>(g.n) + tile.column;
    const auto send_weights = [&](const Cursor<S::STAGES>& to, int s) {
      const uint32_t ready = buffers + S::FULL + to.stage * 8;
      arrive_expect(ready, S::WEIGHT_BYTES);
      copy_weights<S>(map, buffers + to.stage * S::STAGE_BYTES, ready, s, y, 0);
    };
    int ahead = 0;  // steps whose weights thread 0 has sent for already
    if (found && tile.layer) {
      const int32_t* const done = p.sync.counts + 2 * tile.row_tile;
      const int wanted = 2 * p.layer[0].n_tiles;
      if (thread == 0 && load_acquire(done) < wanted) {
        Cursor<S::STAGES> to = at;
        for (ahead = 0; ahead < min(steps, S::STAGES); ++ahead, to.advance()) {
          wait(buffers + S::EMPTY + to.stage * 8, to.phase ^ 1);
          if (ahead == 0) control.ring[slot] = tile;
          send_weights(to, ahead);
        }
      }
      while (load_acquire(done) < wanted) __nanosleep(32);
      __syncwarp();
    }
    // A row past the tile's end is given a row that exists: its results are not stored. Places count in 16 bytes: half
    // the registers of addresses.
    const uint4* const input = static_cast<const uint4*>(tile.layer ? g.input : x);
    int rows[S::PASSES];
    if (found) {
#pragma unroll
      for (int i = 0; i < S::PASSES; ++i) {
        const int row = tile.row + max(0, min(copy_row + i * 16, tile.rows - 1));
        rows[i] = (g.gather ? max(0, slot_at(g, row)) / g.rows_per_input : row) * (k / 8) + chunk;
      }
    }
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      const uint32_t buffer = buffers + at.stage * S::STAGE_BYTES, ready = buffers + S::FULL + at.stage * 8;
      wait(buffers + S::EMPTY + at.stage * 8, at.phase ^ 1);
      __syncwarp();  // see hopper_grouped.cuh
      if (s == 0 && thread == 0 && ahead == 0) control.ring[slot] = tile;
      if (!found) {
        arrive(ready);
        if (thread == 0) {
          arrive(ready);
          if (atomicAdd(p.sync.left, 1) == static_cast<int>(gridDim.x) - 1) *p.sync.next = 0, *p.sync.left = 0;
        }
        return;
      }
      if (thread == 0 && s >= ahead) send_weights(at, s);
      const bool inside = s * S::BK + chunk * 8 < k;  // chunks past k become zeros; nothing is read for them
#pragma unroll
      for (int i = 0; i < S::PASSES; ++i) {
        if (i * 16 < tile.padded) copy16_async(buffer + copy_at + i * 16 * 128, input + rows[i], inside);
        rows[i] += S::BK / 8;
      }
      arrive_after_copies(ready);
      at.advance();
    }
    slot = (slot + 1) % S::RING;
  }
}

template <class S>
__device__ __forceinline__ void consume_mlp(const MlpParams& p, uint32_t buffers, MlpControl<S>& control) {
  using T = typename S::Element;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1, thread = threadIdx.x & 127;
  auto& map = control.rows[group];
  Cursor<S::STAGES> at;
  int slot = 0;
#pragma unroll 1
  for (;;) {
    wait(buffers + S::FULL + at.stage * 8, at.phase);  // the first buffer of a tile also publishes the tile
    // Read where it lies, again and again: registers are for the sums. The producers are never RING tiles ahead.
    const MlpTile& tile = control.ring[slot];
    if (tile.padded == 0) return;
    slot = (slot + 1) % S::RING;
    const int steps = (static_cast<int>(p.layer[tile.layer].k) + S::BK - 1) / S::BK;
    // Asked for now, needed after the products.
    int slots[(S::ROWS + 127) / 128];
#pragma unroll
    for (int i = 0; i < (S::ROWS + 127) / 128; ++i) {
      const int local = thread + i * 128;
      slots[i] = local < tile.rows ? slot_at(p.layer[0], tile.row + local) : -1;
    }
    float acc[S::BLOCKS][S::ACC];
#pragma unroll
    for (int i = 0; i < S::ACC; ++i)
#pragma unroll
      for (int h = 0; h < S::BLOCKS; ++h) acc[h][i] = 0.f;
    multiply_rows<S>(tile.padded, acc, at, steps, buffers, group, [] {});
    named_barrier(1 + group, 128);  // the map's last readers are done
    const GroupedParams& g = p.layer[tile.layer];
#pragma unroll
    for (int i = 0; i < (S::ROWS + 127) / 128; ++i) {
      const int local = thread + i * 128;
      if (local < S::ROWS) {
        map.output[local] = slots[i] < 0 || g.scatter ? slots[i] : tile.row + local;
        if (g.row_scale) map.scale[local] = slots[i] < 0 ? 0.f : g.row_scale[slots[i]];
      }
    }
    named_barrier(1 + group, 128);
    const Finish<T, S::BLOCKS> finish{g, map.output, map.scale};
    finish(tile, tile.column + group * S::GROUP_COLUMNS + thread / 32 * 16, acc);
    if (tile.layer == 0) {
      named_barrier(1 + group, 128);  // all of the warpgroup's results are written
      if (thread == 0) {
        __threadfence();
        atomicAdd(p.sync.counts + 2 * tile.row_tile, 1);
      }
    }
  }
}
#endif

template <class S>
__global__ void __maxnreg__(S::REGISTERS)
    mlp_wgmma_kernel(const __grid_constant__ MlpParams p, const __grid_constant__ CUtensorMap map0,
                     const __grid_constant__ CUtensorMap map1) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  static_assert(S::CLUSTER == 1 && !S::TURNS && !S::STAGED);
  extern __shared__ unsigned char unaligned[];
  const uint32_t raw = shared_address(unaligned), buffers = (raw + 1023) & ~1023u;
  auto& control = *reinterpret_cast<MlpControl<S>*>(unaligned + (buffers - raw) + S::STAGES * S::STAGE_BYTES);
  if (threadIdx.x == 0) {
    prefetch_map(&map0);
    prefetch_map(&map1);
    for (int i = 0; i < S::STAGES; ++i) {
      barrier_init(buffers + S::FULL + i * 8, S::PRODUCERS + 1);
      barrier_init(buffers + S::EMPTY + i * 8, S::CONSUMER_WARPS);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < S::PRODUCERS) {
    fewer_registers<S::PRODUCER>();
    produce_mlp<S>(p, map0, map1, buffers, control);
  } else {
    more_registers<S::CONSUMER>();
    wait_for_previous();
    consume_mlp<S>(p, buffers, control);
  }
#else
  __trap();  // the host launches it only where code for compute 9.0a is loaded
#endif
}

}  // namespace nexus::cuda::hopper
