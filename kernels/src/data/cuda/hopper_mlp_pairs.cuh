// Both layers of an MLP in one launch for many rows an expert: the pairs of hopper_grouped.cuh, with the same order of
// sums, their turns in one sequence, in which the second layer of an expert comes a round behind its first
// (mlp_second_from() in mlp_tiles.h). So the chip drains once instead of twice, and what lies between the layers is
// read while L2 may still have it.
//
// A pair claims its turns one by one: the finder of its first block by an atomic counter, and it passes the number on
// to the other block's. A turn of the second layer needs all of its expert's first layer: the finder waits for a count
// of it, a tile ahead, while the rest of the block works.
//
// No block ever waits for one that has not started. Whoever waits has a turn of the second layer, so all turns of that
// expert's first layer, which come earlier, are claimed, by pairs both of whose blocks run. Among the turns that are
// not done, the earliest waits for nobody: its finders claimed it when their producers had taken the tile before. So it
// does not matter how many pairs run at once, beside whom, or on how many SMs.
//
// Results of the first layer are written by ordinary stores, counted with release and looked for with acquire at the
// GPU's scope. The copy engine reads them, behind a fence between the proxies.
//
// The counters are those of hopper_mlp.cuh, by expert instead of by row tile, and as there they are left as zeros.
#pragma once
#include "data/cuda/hopper_mlp.cuh"

namespace nexus::cuda::hopper {

struct PairsParams : MlpParams {
  int delta;  // see mlp_second_from()
};

/// A pair's shape of hopper_grouped.cuh for both layers. Its ring and its next tile are larger than there, so it has
/// fewer slots: still more than STAGES.
template <class S>
struct PairsShape : S {
  static_assert(S::CLUSTER == 2 && S::FINDERS > 0 && S::PANELS == 1);
  static constexpr int RING = S::STAGES + 2;
  struct Next {
    uint64_t found, placed, taken, claimed, freed;
    MlpTile tile;
    int claim;               // what the first block passes on
    uint32_t rows[S::ROWS];  // see input_rows()
  };
  struct Control {
    uint64_t full[S::STAGES], empty[S::STAGES];
    Next next;
    MlpTile ring[RING];
    OutputRows<S::ROWS, !S::STAGED> rows[2];  // of each consumer warpgroup
  };
  static constexpr uint32_t CLAIMED = S::TAKEN + 8, FREED = CLAIMED + 8;
  static constexpr uint32_t CLAIM = FREED + 8 + static_cast<uint32_t>(sizeof(MlpTile));
  static constexpr uint32_t STAGING = (S::FULL + static_cast<uint32_t>(sizeof(Control)) + 15) & ~15u;
  static constexpr int SHARED_BYTES = (1024 - S::BASE_ALIGNMENT) + static_cast<int>(STAGING) + S::STAGING_BYTES;
  static_assert(SHARED_BYTES <= 227 * 1024);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// A word to the same address in block `rank`; completes on its barrier, which expects four bytes.
__device__ __forceinline__ void send_word(uint32_t address, int value, uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{ .reg .b32 to, at; mapa.shared::cluster.u32 to, %0, %3; mapa.shared::cluster.u32 at, %2, %3;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [to], %1, [at]; }" ::"r"(address),
      "r"(value), "r"(barrier), "r"(rank)
      : "memory");
}
__device__ __forceinline__ void fence_async_proxy_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

/// The pair's next number: by a warp of each of its blocks, which get the same. The first block's goes on at once; the
/// other's may be a tile behind, so a number is sent when the one before has been read.
template <class S>
__device__ __forceinline__ int claim_turn(const MlpParams& p, uint32_t buffers, typename S::Control& control,
                                          uint32_t turn) {
  int number = 0;
  if (cluster_rank() == 0) {
    if ((threadIdx.x & 31) == 0) {
      number = atomicAdd(p.counters + kMlpNext, 1);
      wait(buffers + S::FREED, turn ^ 1);
      send_word(buffers + S::CLAIM, number, buffers + S::CLAIMED, 1);
    }
    number = __shfl_sync(0xffffffffu, number, 0);
  } else {
    wait(buffers + S::CLAIMED, turn);
    number = *const_cast<volatile int*>(&control.next.claim);
    __syncwarp();
    if ((threadIdx.x & 31) == 0) {
      arrive_expect(buffers + S::CLAIMED, 4);  // of the next
      arrive_remote(buffers + S::FREED, 0);
    }
  }
  return number;
}

/// What a pair does at turn `number` of both layers', as one of its blocks sees it. All lanes of a warp call it and get
/// the same answer. `wanted`: the expert's count when its first layer is done. False: no more turns.
template <class S>
__device__ __forceinline__ bool find_turn(const PairsParams& p, int number, MlpTile& tile, int& wanted) {
  constexpr unsigned kAll = 0xffffffffu;
  const GroupedParams& one = p.layer[0];
  const int columns[2] = {one.n_tiles, p.layer[1].n_tiles};
  const int lane = threadIdx.x & 31, per_lane = (one.experts + 31) / 32;
  const int first = min(lane * per_lane, one.experts), last = min(first + per_lane, one.experts);
  const int lane_begin = offset_at(one, first);
  const auto shares_of = [](int rows) { return (max(0, rows) + S::ROWS - 1) / S::ROWS; };
  int sum[2] = {0, 0};  // turns of each layer, of this lane's experts
  for (int e = first, from = lane_begin; e < last; ++e) {
    const int to = offset_at(one, e + 1), shares = shares_of(to - from);
    sum[0] += pair_turns(shares, columns[0]), sum[1] += pair_turns(shares, columns[1]);
    from = to;
  }
  int through[2] = {sum[0], sum[1]};
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int left[2] = {__shfl_up_sync(kAll, through[0], d), __shfl_up_sync(kAll, through[1], d)};
    if (lane >= d) through[0] += left[0], through[1] += left[1];
  }
  const int all = __shfl_sync(kAll, through[0], 31);
  if (number >= all + __shfl_sync(kAll, through[1], 31)) return false;
  int expert = -1, begin = 0, rows = 0, index = 0;
  // It is a turn of the second layer, or else the first layer's with as many of those before it.
  int behind = 0;
  int before[2] = {through[0] - sum[0], through[1] - sum[1]};
  for (int e = first, from = lane_begin; e < last; ++e) {
    const int to = offset_at(one, e + 1), shares = shares_of(to - from);
    before[0] += pair_turns(shares, columns[0]);
    const int at = number - mlp_second_from(before[0], all, before[1], p.delta), turns = pair_turns(shares, columns[1]);
    before[1] += turns;
    behind += max(0, min(at, turns));
    if (at >= 0 && at < turns) expert = e, begin = from, rows = to - from, index = at;
    from = to;
  }
  unsigned owners = __ballot_sync(kAll, expert >= 0);
  const int layer = owners != 0;
  if (!layer) {
    number -= __reduce_add_sync(kAll, behind);
    int at = number - (through[0] - sum[0]);
    if (at >= 0 && at < sum[0])
      for (int e = first, from = lane_begin; e < last; ++e) {
        const int to = offset_at(one, e + 1), turns = pair_turns(shares_of(to - from), columns[0]);
        if (at < turns) {
          expert = e, begin = from, rows = to - from, index = at;
          break;
        }
        at -= turns;
        from = to;
      }
    owners = __ballot_sync(kAll, expert >= 0);
  }
  const int owner = __ffs(owners) - 1;
  expert = __shfl_sync(kAll, expert, owner), begin = __shfl_sync(kAll, begin, owner);
  rows = __shfl_sync(kAll, rows, owner), index = __shfl_sync(kAll, index, owner);
  const int shares = shares_of(rows), width = layer ? columns[1] : columns[0];
  place_pair_tile<S::COLUMNS>(expert, begin, rows, shares, width, index, tile);
  tile.layer = layer;
  tile.count = kMlpDone + expert;
  wanted = 2 * S::CLUSTER * pair_turns(shares, columns[0]);
  return true;
}

/// Claims and finds this block's tiles, and leaves each for produce_pairs() when its rows are there: by one warp. See
/// find_tiles().
template <class S>
__device__ __forceinline__ void find_pairs(const PairsParams& p, uint32_t buffers, typename S::Control& control) {
  if (threadIdx.x >= S::PRODUCERS + S::CONSUMERS + 32) return;
#pragma unroll 1
  for (uint32_t turn = 0;; turn ^= 1) {
    // Claimed when the tile before is taken, not earlier: a pair that is slower than others gets fewer.
    wait(buffers + S::TAKEN, turn ^ 1);
    __syncwarp();  // none of the lanes may miss a phase
    const int number = claim_turn<S>(p, buffers, control, turn);
    MlpTile tile{};
    int wanted = 0;
    const bool found = find_turn<S>(p, number, tile, wanted);
    if (tile.layer) {
      const int32_t* const done = p.counters + tile.count;
      while (load_acquire(done) < wanted) __nanosleep(64);
      __syncwarp();
    }
    const int lane = thread_anew() & 31;
    if (lane == 0) {
      control.next.tile = tile;
      arrive(buffers + S::FOUND);
    }
    if (!found) break;
    if (tile.layer == 0) place_rows<S>(p.layer[0], tile, lane, control.next.rows);
    arrive(buffers + S::PLACED);
  }
  // This block has seen all counts complete that its tiles needed.
  leave_mlp(p, p.layer[0].experts);
}

/// produce() for both layers: rows of the first one by one, as the routing has them, those of the second, which lie in
/// order, by the copy engine.
template <class S>
__device__ __forceinline__ void produce_pairs(const PairsParams& p, const CUtensorMap& first_map,
                                              const CUtensorMap& second_map, const CUtensorMap& row_map,
                                              uint32_t buffers, typename S::Control& control) {
  const int thread = threadIdx.x, chunk = thread % 8, copy_row = thread / 8;
  const uint32_t copy_at = S::WEIGHT_BYTES + copy_row * 128 + ((chunk ^ (copy_row & 7)) * 16);
  const char* const x = static_cast<const char*>(input_of(p.layer[0]));
  uint32_t turn = 0;  // of tiles, odd or even: the phase of the barriers
  Cursor<S::STAGES> at;
  int slot = 0;
#pragma unroll 1
  for (;;) {
    wait(buffers + S::FOUND, turn);
    const MlpTile tile = control.next.tile;
    const bool found = tile.padded != 0, boxes = tile.layer != 0;
    if (found) wait(buffers + S::PLACED, turn);
    uint32_t rows[S::PASSES];  // see input_rows(); of no use with boxes
#pragma unroll
    for (int i = 0; i < S::PASSES; ++i) rows[i] = control.next.rows[copy_row + i * 16];
    turn ^= 1;
    arrive(buffers + S::TAKEN);
    const GroupedParams& g = p.layer[tile.layer];
    const int k = static_cast<int>(g.k), steps = (k + S::BK - 1) / S::BK;
    const int weights = weights_row(g, tile);
    const char* from = x + chunk * 16;
    if (boxes && thread == 0) fence_async_proxy_global();  // what the finder saw counted, the copy engine sees
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      const uint32_t buffer = buffers + at.stage * S::STAGE_BYTES, ready = buffers + S::FULL + at.stage * 8;
      wait(buffers + S::EMPTY + at.stage * 8, at.phase ^ 1);
      __syncwarp();  // only one lane may go on to issue copies: none of the others may miss a phase of the barrier
      // All buffers filled before this one's last round are consumed, so the ring's slot of RING tiles ago is free.
      if (s == 0 && thread == 0) control.ring[slot] = tile;
      if (!found) {
        arrive(ready);
        if (thread == 0) arrive(ready);
        return;
      }
      if (thread == 0) {
        const int bytes = boxes ? (tile.padded + S::BOX_ROWS - 1) / S::BOX_ROWS * S::ROW_BOX_BYTES : 0;
        arrive_expect(ready, S::WEIGHT_BYTES + bytes);
        copy_weights<S>(boxes ? second_map : first_map, g, buffer, ready, s, weights, false, tile.alone);
      }
      if (boxes) {
        // Rows of other experts may follow in the last box: their results are not stored.
        if (thread == 0)
          for (int i = 0; i * S::BOX_ROWS < tile.padded; ++i)
            copy_box(buffer + S::WEIGHT_BYTES + i * S::ROW_BOX_BYTES, &row_map, s * S::BK, tile.row + i * S::BOX_ROWS,
                     ready);
        arrive(ready);
        at.advance();
        continue;
      }
      copy_row_chunks<S>(buffer, copy_at, from, rows, tile.padded, s * S::BK + chunk * 8, k);
      from += S::BK * 2;
      arrive_after_copies(ready);
      at.advance();
    }
    slot = (slot + 1) % S::RING;
  }
}
#endif

template <class S>
__global__ void __maxnreg__(S::REGISTERS)
    mlp_pairs_kernel(const __grid_constant__ PairsParams p, const __grid_constant__ CUtensorMap first_map,
                     const __grid_constant__ CUtensorMap second_map, const __grid_constant__ CUtensorMap row_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(256) unsigned char unaligned[];
  const uint32_t raw = shared_address(unaligned), buffers = (raw + 1023) & ~1023u;
  auto& control = *reinterpret_cast<typename S::Control*>(unaligned + (buffers - raw) + S::STAGES * S::STAGE_BYTES);
  if (threadIdx.x == 0) {
    prefetch_map(&first_map);
    prefetch_map(&second_map);
    prefetch_map(&row_map);
    for (int i = 0; i < S::STAGES; ++i) {
      barrier_init(buffers + S::FULL + i * 8, S::PRODUCERS + 1);
      barrier_init(buffers + S::EMPTY + i * 8, S::CONSUMER_WARPS * S::CLUSTER);
    }
    barrier_init(buffers + S::FOUND, 1);
    barrier_init(buffers + S::PLACED, 32);
    barrier_init(buffers + S::TAKEN, S::PRODUCERS);
    barrier_init(buffers + S::CLAIMED, 1);
    barrier_init(buffers + S::FREED, 1);
    barrier_init_fence();
    arrive_expect(buffers + S::CLAIMED, 4);
  }
  cluster_sync();
  wait_for_previous();
  if (p.lets_in) release_next();
  if (threadIdx.x < S::PRODUCERS) {
    fewer_registers<S::PRODUCER>();
    produce_pairs<S>(p, first_map, second_map, row_map, buffers, control);
  } else if (threadIdx.x < S::PRODUCERS + S::CONSUMERS) {
    more_registers<S::CONSUMER>();
    consume_mlp<S>(p, buffers, control);
  } else {
    fewer_registers<S::FINDER>();
    find_pairs<S>(p, buffers, control);
  }
  // No block may leave while the other still multicasts to it or arrives at its barriers.
  cluster_sync();
#else
  __trap();  // the host launches it only where code for compute 9.0a is loaded
#endif
}

}  // namespace nexus::cuda::hopper
