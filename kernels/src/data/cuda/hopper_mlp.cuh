// Both layers of an MLP in one launch on Hopper's tensor cores, for up to some 128 rows an expert: the tiles of
// hopper_grouped.cuh in the same order of sums, so the same bits as the two launches that it replaces.
//
// Between two launches the memory idles: blocks of the first that have nothing left wait for the last one, and those of
// the second, for which an SM has no room beside one of the first, begin with barriers and a look at the offsets. Here
// blocks stay, and take tiles off one sequence, first those of layer 0 and then those of layer 1 (mlp_tiles.h), each
// for the asking (an atomic counter). A tile of layer 1 needs its rows' results of all columns of layer 0 and nothing
// else: it waits for a count of them, by row tile, when its weights are on their way. Its rows are those of the expert
// that the sequence took first, so that mostly nothing is left to wait for.
//
// No block ever waits for one that has not started. A tile of layer 0 waits for nothing; whoever waits has a tile of
// layer 1, so all tiles of layer 0 are claimed, and a block that has claimed one works on it before any of layer 1. So
// it does not matter how many blocks run at once, beside whom, or on how many SMs.
//
// A buffer is to be filled again as soon as it is free. So the producers divide the work: a thread asks for weights,
// whether their rows are there or not, two warps copy rows, and one claims and finds the next tile. One after another
// it took 1000 cycles a buffer and 5000 more a tile, where the memory, shared evenly, leaves 1800 for a buffer, and
// less where other SMs have products to do (docs/kernels/log.md, entry 40).
//
// Results of layer 0 are written by ordinary stores, counted with release and looked for with acquire at the GPU's
// scope, and copied by cp.async past L1: all of it in the generic proxy, so nothing has to be ordered between proxies
// but what hopper_grouped.cuh orders inside a block.
//
// Between the routing and the first weights a block runs as little code as it can: tiles are found as in
// hopper_grouped.cuh, by a warp's sums over the offsets. With tables of them in shared memory, and one warp to sum them
// up, that was 4.7 us instead of 1.9: code that runs for the first time in a launch comes from L2, or from memory.
// Ahead of wait_for_previous() it asks for tokens and for the first experts' weights, to L2, as the memory idles then.
//
// The counters are zero before and after each launch: the last block to leave clears them. By then each row tile's
// count was seen complete by one of its tiles of layer 1, so that nobody adds to it or looks at it any more. A launch
// that follows claims behind its wait, when all of this one is over, or has other counters (below).
//
// Where routing says by a word that its results are there (launch.h), the producers do not wait for the kernel before:
// they claim, look tiles up and fill the buffers of layer 0, which is reading only, while the step before is being
// summed up. The consumers wait, so nothing is written, and no row tile of layer 0 is counted, before all of it is
// over.
#pragma once
#include "data/cuda/hopper_grouped.cuh"
#include "data/cuda/mlp_tiles.h"
#include "data/cuda/step.cuh"

namespace nexus::cuda::hopper {

struct MlpParams {
  GroupedParams layer[2];
  int32_t* counters;  // mlp_counter_bytes()
  int limit;          // row tiles that there are counters for
  bool lets_in;       // the next kernel's blocks may come at once
};

struct MlpTile : Tile {
  int layer;
  int count;  // the counter of its row tile
};

/// A shape of hopper_grouped.cuh for both layers.
template <class S>
struct MlpShape : S {
  static_assert(S::CLUSTER == 1 && S::FINDERS == 0);
  static constexpr bool DIVIDED = S::CONSUMER != S::REGISTERS;      // registers among the warpgroups
  static constexpr int RING = S::STAGES + 2;                        // tiles between producers and consumers
  static constexpr int COPIERS = 64, COPIED_AT_ONCE = COPIERS / 8;  // producers that copy rows, eight of them a row
  static constexpr int PASSES = S::ROWS / COPIED_AT_ONCE;           // rows that each of them copies
  // Steps ahead of a tile's end at which the next is claimed: to find it, and where its rows lie, takes some 5000
  // cycles, about as long as so many steps. No earlier, so that a block which is slower than others has fewer.
  static constexpr int CLAIM_AHEAD = 4;
  // Products of few rows take less time than the memory takes for a buffer, and a buffer that is kept until the next
  // has come is one less on its way.
  static constexpr bool gives_back_at_once(int rows) { return rows <= 96; }
  struct Next {
    uint64_t found, placed, taken, near;
    MlpTile tile;
    int row_tiles;           // of all experts
    uint32_t rows[S::ROWS];  // see input_rows()
  };
  struct Control {
    uint64_t full[S::STAGES], empty[S::STAGES];
    Next next;
    MlpTile ring[RING];
    OutputRows<S::ROWS, !S::STAGED> rows[2];  // of each consumer warpgroup
  };
  static constexpr uint32_t NEAR = S::TAKEN + 8;
  static constexpr uint32_t STAGING = (S::FULL + static_cast<uint32_t>(sizeof(Control)) + 15) & ~15u;
  static constexpr int SHARED_BYTES = (1024 - S::BASE_ALIGNMENT) + static_cast<int>(STAGING) + S::STAGING_BYTES;
  static_assert(SHARED_BYTES <= 227 * 1024);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kCopiersOnly = 5;  // the copiers' named barrier

/// The tile of a claim. All lanes of a warp call it and get the same answer. False: there are no more. `row_tiles`: of
/// all experts, or negative as long as they are unknown.
template <class S>
__device__ __forceinline__ bool find_mlp_tile(const MlpParams& p, int number, int& row_tiles, MlpTile& tile) {
  TilePlace place;
  MlpClaim claim{0, number};
  for (bool found = false; !found;) {  // once, or twice where a block's first tile is not one of the first layer
    const bool known = row_tiles >= 0;
    if (known) claim = mlp_claim(number, row_tiles, p.layer[0].n_tiles, p.layer[1].n_tiles);
    if (claim.layer > 1) return false;
    found = find_place<S::ROWS>(p.layer[claim.layer], claim.index, place);
    row_tiles = place.all_tiles;
    if (!found && known) return false;
  }
  const RowShare share = row_share(place.rows, place.tiles, place.row_tile);
  tile.expert = place.expert;
  tile.rows = max(0, min(share.padded, place.rows - share.from));
  tile.row = tile.rows > 0 ? place.begin + share.from : place.begin;
  tile.column = place.column_tile * S::COLUMNS;
  tile.padded = share.padded;
  tile.once = place.tiles == 1;
  tile.layer = claim.layer;
  // Routing made by hand may have more row tiles than there are counters.
  tile.count = kMlpDone + min(place.first_tile + place.row_tile, p.limit - 1);
  return true;
}

/// The tokens to L2, divided among the blocks: asked for behind weights, they would come behind those.
template <class S>
__device__ __forceinline__ void prefetch_input(const GroupedParams& p) {
  constexpr int64_t kLine = 128;
  const char* const input = static_cast<const char*>(input_of(p));
  const int64_t bytes = step_tokens(p.step, p.max_rows / p.rows_per_input) * p.k * 2;
  for (int64_t at = (int64_t{blockIdx.x} * S::PRODUCERS + threadIdx.x) * kLine; at < bytes;
       at += int64_t{gridDim.x} * S::PRODUCERS * kLine)
    prefetch_line(input + at);
}

/// The offsets to L1, while the first claim is on its way.
__device__ __forceinline__ void touch_offsets(const GroupedParams& p) {
  if (p.offsets == nullptr) return;
  const int per_lane = (p.experts + 31) / 32, lane = threadIdx.x & 31;
  const int touched = p.offsets[min(lane * per_lane, p.experts)];
  asm volatile("" ::"r"(touched));
}

/// Says that this block claims no more, and clears the counters where it is the last. By one warp.
__device__ __forceinline__ void leave_mlp(const MlpParams& p, int row_tiles) {
  bool last = false;
  if ((threadIdx.x & 31) == 0) {
    __threadfence();
    last = atomicAdd(p.counters + kMlpLeft, 1) == static_cast<int>(gridDim.x) - 1;
    __threadfence();
  }
  if (!__shfl_sync(0xffffffffu, last, 0)) return;
  const int all = kMlpDone + min(row_tiles, p.limit);
  for (int i = threadIdx.x & 31; i < all; i += 32) p.counters[i] = 0;
  __threadfence();
}

/// The boxes of a tile's weights, step by step. What steps and boxes have in common is found once a tile.
template <class S>
struct WeightBoxes {
  const CUtensorMap* map;
  WeightsAt at;                        // the first box of the next step
  int next_x, next_panel;              // to the next step
  int box_row, box_rows8, box_rows16;  // to the next box
  int boxes;
  bool once;

  __device__ __forceinline__ WeightBoxes(const CUtensorMap& of, const GroupedParams& p, const MlpTile& tile)
      : map(&of) {
    constexpr bool kDeep = S::PANELS > 1;
    const int row = weights_row(p, tile);
    at = weights_at<kDeep>(p, row, 0);
    const WeightsAt step = weights_at<kDeep>(p, row, S::PANELS), box = weights_at<kDeep>(p, row + S::BOX_COLUMNS, 0);
    next_x = step.x - at.x, next_panel = step.panel - at.panel;
    box_row = box.row - at.row, box_rows8 = box.rows8 - at.rows8, box_rows16 = box.rows16 - at.rows16;
    boxes = min(S::BOXES, (static_cast<int>(p.n) - tile.column + S::BOX_COLUMNS - 1) / S::BOX_COLUMNS);
    once = give_up_first<S>(p, tile);
  }
  __device__ __forceinline__ uint32_t bytes() const { return static_cast<uint32_t>(boxes) * S::BOX_BYTES; }
  /// Copies a step's boxes and goes on to the next.
  __device__ __forceinline__ void send(uint32_t buffer, uint32_t ready) {
#pragma unroll
    for (int i = 0; i < S::BOXES; ++i) {
      if (i >= boxes) break;
      const WeightsAt from{at.x, at.row + i * box_row, at.panel, at.rows8 + i * box_rows8, at.rows16 + i * box_rows16};
      if (once)
        copy_weights_box_once(buffer + i * S::BOX_BYTES, map, from, ready);
      else
        copy_weights_box(buffer + i * S::BOX_BYTES, map, from, ready);
    }
    at.x += next_x, at.panel += next_panel;
  }
};

/// Claims and finds this block's tiles, and leaves each for the other producers, who are busy with the one before: by a
/// warp. See find_tiles().
template <class S>
__device__ __forceinline__ void find_mlp_tiles(const MlpParams& p, uint32_t buffers, typename S::Control& control) {
  const int lane = threadIdx.x & 31;
  int claimed = 0;
  const auto claim = [&] {
    if (lane == 0) claimed = atomicAdd(p.counters + kMlpNext, 1);
  };
  claim();
  if (p.layer[0].ready != nullptr) await_ready(p.layer[0].ready);  // while the claim is on its way
  touch_offsets(p.layer[0]);
  int row_tiles = -1;
#pragma unroll 1
  for (uint32_t turn = 0;; turn ^= 1) {
    MlpTile tile{};
    const bool found = find_mlp_tile<S>(p, __shfl_sync(0xffffffffu, claimed, 0), row_tiles, tile);
    wait(buffers + S::TAKEN, turn ^ 1);
    __syncwarp();  // none of the lanes may miss a phase
    if (lane == 0) {
      control.next.tile = tile;
      control.next.row_tiles = row_tiles;
      arrive(buffers + S::FOUND);
    }
    if (!found) return;
    place_rows<S>(p.layer[tile.layer], tile, lane, control.next.rows);
    arrive(buffers + S::PLACED);
    wait(buffers + S::NEAR, turn);
    __syncwarp();
    claim();
  }
}

/// Asks for the weights of this block's tiles as buffers are free, whether their rows are there or not: by one thread.
template <class S>
__device__ __forceinline__ void send_mlp_weights(const MlpParams& p, const CUtensorMap& first_map,
                                                 const CUtensorMap& second_map, uint32_t buffers,
                                                 typename S::Control& control) {
  Cursor<S::STAGES> at;
  int slot = 0;
#pragma unroll 1
  for (uint32_t turn = 0;; turn ^= 1) {
    wait(buffers + S::FOUND, turn);
    const MlpTile tile = control.next.tile;
    arrive(buffers + S::TAKEN);
    wait(buffers + S::EMPTY + at.stage * 8, at.phase ^ 1);
    // All buffers filled before this one's last round are consumed, so the ring's slot of RING tiles ago is free.
    control.ring[slot] = tile;
    slot = (slot + 1) % S::RING;
    if (tile.padded == 0) return arrive(buffers + S::FULL + at.stage * 8);
    const GroupedParams& g = p.layer[tile.layer];
    WeightBoxes<S> weights(tile.layer ? second_map : first_map, g, tile);
    const int steps = (static_cast<int>(g.k) + S::BK - 1) / S::BK, near = max(0, steps - S::CLAIM_AHEAD);
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      if (s == near) arrive(buffers + S::NEAR);
      const uint32_t ready = buffers + S::FULL + at.stage * 8;
      wait(buffers + S::EMPTY + at.stage * 8, at.phase ^ 1);
      arrive_expect(ready, weights.bytes());
      weights.send(buffers + at.stage * S::STAGE_BYTES, ready);
      at.advance();
    }
  }
}

/// Copies the rows of this block's tiles, of the second layer when all of them are there: by two warps.
template <class S>
__device__ __forceinline__ void copy_mlp_rows(const MlpParams& p, uint32_t buffers, typename S::Control& control) {
  const int thread = static_cast<int>(threadIdx.x) - 32, chunk = thread % 8, copy_row = thread / 8;
  const uint32_t copy_at = S::WEIGHT_BYTES + copy_row * 128 + ((chunk ^ (copy_row & 7)) * 16);
  const char* const x = static_cast<const char*>(input_of(p.layer[0]));
  Cursor<S::STAGES> at;
  int row_tiles = 0;
#pragma unroll 1
  for (uint32_t turn = 0;; turn ^= 1) {
    wait(buffers + S::FOUND, turn);
    const int padded = control.next.tile.padded, layer = control.next.tile.layer, count = control.next.tile.count;
    row_tiles = control.next.row_tiles;
    uint32_t rows[S::PASSES];
    if (padded != 0) {
      wait(buffers + S::PLACED, turn);
#pragma unroll
      for (int i = 0; i < S::PASSES; ++i) rows[i] = control.next.rows[copy_row + i * S::COPIED_AT_ONCE];
    }
    arrive(buffers + S::TAKEN);
    if (padded == 0) break;
    if (layer) {
      const int wanted = 2 * p.layer[0].n_tiles;
      while (load_acquire(p.counters + count) < wanted) __nanosleep(32);
    }
    const GroupedParams& g = p.layer[layer];
    const int k = static_cast<int>(g.k), steps = (k + S::BK - 1) / S::BK;
    const char* from = (layer ? static_cast<const char*>(g.input) : x) + chunk * 16;
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      const uint32_t buffer = buffers + at.stage * S::STAGE_BYTES;
      wait(buffers + S::EMPTY + at.stage * 8, at.phase ^ 1);
      copy_row_chunks<S>(buffer, copy_at, from, rows, padded, s * S::BK + chunk * 8, k);
      from += S::BK * 2;
      arrive_after_copies(buffers + S::FULL + at.stage * 8);
      at.advance();
    }
  }
  // All copiers have seen their last tile's rows complete.
  named_barrier(kCopiersOnly, S::COPIERS);
  if (thread < 32) {
    leave_mlp(p, row_tiles);
    __syncwarp();
    if (!p.lets_in) release_next();  // never behind a word: this warp has not waited then
  }
  wait(buffers + S::EMPTY + at.stage * 8, at.phase ^ 1);
  arrive(buffers + S::FULL + at.stage * 8);
}

/// The producers, by warp: weights, rows, rows, tiles.
template <class S>
__device__ __forceinline__ void produce_mlp(const MlpParams& p, const CUtensorMap& first_map,
                                            const CUtensorMap& second_map, uint32_t buffers,
                                            typename S::Control& control) {
  prefetch_input<S>(p.layer[0]);
  if (p.layer[0].ready == nullptr) wait_for_previous();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp == 3)
    find_mlp_tiles<S>(p, buffers, control);
  else if (warp > 0)
    copy_mlp_rows<S>(p, buffers, control);
  else if (threadIdx.x == 0)
    send_mlp_weights<S>(p, first_map, second_map, buffers, control);
}

template <class S>
__device__ __forceinline__ void consume_mlp(const MlpParams& p, uint32_t buffers, typename S::Control& control) {
  using T = typename S::Element;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1, thread = threadIdx.x & 127;
  auto& map = control.rows[group];
  // As in consume().
  const auto scales = [&]() -> float* {
    if constexpr (S::STAGED)
      return reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(&control) + (S::STAGING - S::FULL) +
                                      group * (S::STAGING_BYTES / 2));
    else
      return map.scale;
  };
  Cursor<S::STAGES> at;
  int slot = 0;
#pragma unroll 1
  for (;;) {
    wait(buffers + S::FULL + at.stage * 8, at.phase);  // the first buffer of a tile also publishes the tile
    MlpTile tile = read_slot<S>(control.ring[slot]);
    if (tile.padded == 0) return;
    [[maybe_unused]] const int mine = slot;
    slot = (slot + 1) % S::RING;
    const GroupedParams& g = p.layer[tile.layer];
    const int steps = (static_cast<int>(g.k) + S::BK - 1) / S::BK;
    // Asked for now, needed after the products.
    int slots[(S::ROWS + 127) / 128];
#pragma unroll
    for (int i = 0; i < (S::ROWS + 127) / 128; ++i) {
      const int local = thread + i * 128;
      slots[i] = local < tile.rows ? slot_at(g, tile.row + local) : -1;
    }
    float acc[S::BLOCKS][S::ACC];
#pragma unroll
    for (int i = 0; i < S::ACC; ++i)
#pragma unroll
      for (int h = 0; h < S::BLOCKS; ++h) acc[h][i] = 0.f;
    multiply_rows<S>(tile.padded, acc, at, steps, buffers, group);
    // Read again, rather than kept in registers: it is still there.
    if constexpr (S::STAGED) tile = read_slot<S>(control.ring[mine]);
    const GroupedParams& done = p.layer[tile.layer];
    named_barrier(1 + group, 128);  // the map's last readers are done
#pragma unroll
    for (int i = 0; i < (S::ROWS + 127) / 128; ++i) {
      const int local = thread + i * 128;
      if (local < S::ROWS) {
        map.output[local] = slots[i] < 0 || done.scatter ? slots[i] : tile.row + local;
        if (done.row_scale) scales()[local] = slots[i] < 0 ? 0.f : done.row_scale[slots[i]];
      }
    }
    named_barrier(1 + group, 128);
    const Finish<T, S::BLOCKS> finish{done, map.output, scales()};
    const int column = tile.column + group * S::GROUP_COLUMNS;
    if constexpr (S::STAGED) {
      if (stages(done))
        finish_staged(finish, buffers + S::STAGING + group * (S::STAGING_BYTES / 2), 1 + group, tile, column, acc);
      else
        finish(tile, column + thread / 32 * 16, acc);
    } else {
      finish(tile, column + thread / 32 * 16, acc);
    }
    if (tile.layer == 0) {
      named_barrier(1 + group, 128);  // all of the warpgroup's results are written
      if (thread == 0) add_release(p.counters + tile.count, 1);
    }
  }
}
#endif

template <class S>
__global__ void __maxnreg__(S::REGISTERS)
    mlp_wgmma_kernel(const __grid_constant__ MlpParams p, const __grid_constant__ CUtensorMap first_map,
                     const __grid_constant__ CUtensorMap second_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(256) unsigned char unaligned[];
  const uint32_t raw = shared_address(unaligned), buffers = (raw + 1023) & ~1023u;
  auto& control = *reinterpret_cast<typename S::Control*>(unaligned + (buffers - raw) + S::STAGES * S::STAGE_BYTES);
  if (threadIdx.x == 0) {
    prefetch_map(&first_map);
    prefetch_map(&second_map);
    for (int i = 0; i < S::STAGES; ++i) {
      barrier_init(buffers + S::FULL + i * 8, S::COPIERS + 1);
      barrier_init(buffers + S::EMPTY + i * 8, S::CONSUMER_WARPS);
    }
    barrier_init(buffers + S::FOUND, 1);
    barrier_init(buffers + S::PLACED, 32);
    barrier_init(buffers + S::TAKEN, S::COPIERS + 1);
    barrier_init(buffers + S::NEAR, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < S::PRODUCERS) {
    if constexpr (S::DIVIDED) fewer_registers<S::PRODUCER>();
    produce_mlp<S>(p, first_map, second_map, buffers, control);
  } else {
    if constexpr (S::DIVIDED) more_registers<S::CONSUMER>();
    if (threadIdx.x == S::PRODUCERS) prefetch_weights(p.layer[0]);
    wait_for_previous();
    if (p.lets_in) release_next();
    consume_mlp<S>(p, buffers, control);
  }
#else
  __trap();  // the host launches it only where code for compute 9.0a is loaded
#endif
}

}  // namespace nexus::cuda::hopper
