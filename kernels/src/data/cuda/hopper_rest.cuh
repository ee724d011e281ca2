// The Hopper kernel (hopper_grouped.cuh) for odd widths: k of no whole panels of 64 elements, or n of no whole column
// tiles. The same tiles, buffers and order of sums as its shapes have, so the same bits; apart from it, since what
// follows costs whole widths about 1 % (docs/kernels/log.md, entry 16):
//
// - Columns left behind whole tiles are a tile of their own, which copies no other weights than theirs and multiplies
//   no other blocks of 64 than those that have any. turn_of() in hopper_shape.h deals such tiles out.
// - Of a last step of k, the sixteens that have any elements are multiplied. The others were zeros: no sum knows the
//   difference.
// - Stages of two panels take any k: the last step is copied panel by panel, if it is not whole.
//
// Without lanes and limits of bytes under way: plain_shape() stands in there.
#pragma once
#include "data/cuda/hopper_grouped.cuh"

namespace nexus::cuda::hopper {

/// Of weights. `whole`: boxes of BOX_COLUMNS rows; `rest`: of as many as n leaves behind whole tiles.
struct WeightMaps {
  CUtensorMap whole, rest;
};
/// The tensor maps of a launch. `steps`: boxes a stage deep. `panels`: a panel deep, by which stages of several panels
/// get a last step that is not whole. Such a map's rows end with the weights' own, so zeros come behind k.
template <bool DEEP>
struct RestMaps {
  CUtensorMap rows;
  WeightMaps steps;
};
template <>
struct RestMaps<true> {
  CUtensorMap rows;
  WeightMaps steps, panels;
};
template <class S>
using RestMapsOf = RestMaps<(S::PANELS > 1)>;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The tile of a turn, as block `rank` of the cluster sees it. `whole`: column tiles of all COLUMNS columns. All lanes
/// of a warp call it and get the same answer. False: there is no such tile.
template <class S>
__device__ __forceinline__ bool find_turn(const GroupedParams& p, Turn turn, int whole, int rank, Tile& tile) {
  GroupedParams kind = p;  // whose column tiles are those of the turn's kind
  kind.n_tiles = turn.rest ? 1 : whole;
  const bool found = find_tile<S::ROWS, S::CLUSTER, S::COLUMNS, false>(kind, turn.index, rank, tile, -1);
  if (turn.rest) tile.column = whole * S::COLUMNS;
  return found;
}

/// A tile's part of one step, as the producer sees it.
struct StepPart {
  int first;    // element of k
  int panels;   // of 64 elements, that there are
  bool whole;   // of BK elements
  int columns;  // of the tile: COLUMNS, or what n leaves
};

/// This block's share of a tile's weights of a step: by one thread. `first`: weights_row().
template <class S>
__device__ __forceinline__ void copy_rest_weights(const RestMapsOf<S>& maps, const GroupedParams& p, uint32_t buffer,
                                                  uint32_t ready, const StepPart& part, int first, int rank) {
  constexpr int PANEL_BYTES = S::COLUMNS * S::PANEL * 2, BOX_PANEL_BYTES = S::BOX_COLUMNS * S::PANEL * 2;
  const bool all = part.columns == S::COLUMNS;
  const auto box_of = [&](const CUtensorMap& map, uint32_t to, WeightsAt at) {
    if constexpr (S::CLUSTER > 1)
      copy_weights_box_multicast(to, &map, at, ready, 3);
    else
      copy_weights_box(to, &map, at, ready);
  };
  const int panel = part.first / S::PANEL;
  if constexpr (S::PANELS > 1) {
    if (!part.whole) {
#pragma unroll 1
      for (int h = 0; h < part.panels; ++h) {
        const uint32_t to = buffer + h * PANEL_BYTES;
        if (!all) {
          box_of(maps.panels.rest, to, weights_at<false>(p, first, panel + h));
          continue;
        }
#pragma unroll
        for (int i = 0; i < S::BOXES; ++i)
          box_of(maps.panels.whole, to + i * BOX_PANEL_BYTES,
                 weights_at<false>(p, first + i * S::BOX_COLUMNS, panel + h));
      }
      return;
    }
  }
  const auto at = [&](int rows) { return weights_at<(S::PANELS > 1)>(p, first + rows, panel); };
  if (!all) {
    if (rank == 0) box_of(maps.steps.rest, buffer, at(0));  // of a pair, one for both
  } else if constexpr (S::CLUSTER > 1) {
    box_of(maps.steps.whole, buffer + rank * S::BOX_BYTES, at(rank * S::BOX_COLUMNS));
  } else {
#pragma unroll
    for (int i = 0; i < S::BOXES; ++i) box_of(maps.steps.whole, buffer + i * S::BOX_BYTES, at(i * S::BOX_COLUMNS));
  }
}

/// Finds the tiles of this block, `block` of `blocks` where a pair counts as one, for produce_rest(). As find_tiles().
template <class S>
__device__ __forceinline__ void find_rest_tiles(const GroupedParams& p, uint32_t buffers, typename S::Control& control,
                                                int block, int blocks) {
  if (threadIdx.x >= S::PRODUCERS + S::CONSUMERS + 32) return;
  const int n = static_cast<int>(p.n), whole = n / S::COLUMNS;
  uint32_t phase = 0;
#pragma unroll 1
  for (int index = 0;; ++index) {
    Tile tile{};
    const Turn turn = turn_of(index, block, blocks, whole, n % S::COLUMNS != 0);
    const int rank = S::CLUSTER > 1 ? static_cast<int>(cluster_rank()) : 0;  // asked for anew: a register less to keep
    const bool found = find_turn<S>(p, turn, whole, rank, tile);
    if (!found && turn.rest && whole > 0) continue;
    const int lane = thread_anew() & 31;
    wait(buffers + S::TAKEN, phase ^ 1);
    phase ^= 1;
    __syncwarp();  // none of the lanes may miss a phase
    if (lane == 0) {
      control.next.tile = tile;
      arrive(buffers + S::FOUND);
    }
    if (!found) return;
    if (!p.copy_rows) continue;
    place_rows<S>(p, tile, lane, control.next.rows);
    arrive(buffers + S::PLACED);
  }
}

/// Fills the buffers for the tiles of this block. As produce(), but for what the first lines of this file say.
template <class S>
__device__ __forceinline__ void produce_rest(const GroupedParams& p, const RestMapsOf<S>& maps, uint32_t buffers,
                                             typename S::Control& control, int rank) {
  const int k = static_cast<int>(p.k), n = static_cast<int>(p.n);
  const int thread = threadIdx.x, chunk = thread % 8, copy_row = thread / 8;
  const uint32_t copy_at = S::WEIGHT_BYTES + copy_row * 128 + ((chunk ^ (copy_row & 7)) * 16);
  if (!p.copy_rows && thread >= 32) return;  // one thread issues all copies
  const char* input = static_cast<const char*>(input_of(p)) + chunk * 16;
  uint32_t phase = 0;  // as in find_rest_tiles()
  Cursor<S::STAGES> at;
  int slot = 0;
#pragma unroll 1
  for (;;) {
    uint32_t rows[S::PASSES];  // see input_rows()
    const char* from = input;
    wait(buffers + S::FOUND, phase);
    const Tile tile = control.next.tile;
    const bool found = tile.padded != 0;
    if (p.copy_rows && found) {
      wait(buffers + S::PLACED, phase);
#pragma unroll
      for (int i = 0; i < S::PASSES; ++i) rows[i] = control.next.rows[copy_row + i * 16];
    }
    phase ^= 1;
    arrive(buffers + S::TAKEN);
    // Warps have given back all steps but the last STAGES, so they are done with the tile of RING tiles ago.
    static_assert(S::RING > S::STAGES + 1);
    if (thread == 0) control.ring[slot] = tile;
    const int weights = weights_row(p, tile);
    const int columns = min(S::COLUMNS, n - tile.column);
    const int boxes = p.copy_rows ? 0 : (tile.padded + S::BOX_ROWS - 1) / S::BOX_ROWS;
#pragma unroll 1
    for (int first = 0; first < k; first += S::BK) {
      const uint32_t buffer = buffers + at.stage * S::STAGE_BYTES, ready = buffers + S::FULL + at.stage * 8;
      wait(buffers + S::EMPTY + at.stage * 8, at.phase ^ 1);
      __syncwarp();  // only one lane may go on to issue copies: none of the others may miss a phase of the barrier
      if (!found) {
        if (p.copy_rows) arrive(ready);
        if (thread == 0) arrive(ready);
        return;
      }
      const StepPart part{first, min(S::PANELS, (k - first + S::PANEL - 1) / S::PANEL), k - first >= S::BK, columns};
      if (thread == 0) {
        arrive_expect(ready, part.panels * (columns * (S::PANEL * 2) + boxes * S::ROW_BOX_BYTES));
        copy_rest_weights<S>(maps, p, buffer, ready, part, weights, rank);
      }
      if (!p.copy_rows) {
        // Rows of other experts may follow in the last box: their results are not stored.
        if (thread == 0)
          for (int i = 0; i * S::BOX_ROWS < tile.padded; ++i)
#pragma unroll
            for (int h = 0; h < S::PANELS; ++h)
              if (h < part.panels)
                copy_box(buffer + S::WEIGHT_BYTES + h * S::ROW_PANEL_BYTES + i * S::ROW_BOX_BYTES, &maps.rows,
                         first + h * S::PANEL, tile.row + i * S::BOX_ROWS, ready);
        at.advance();
        continue;
      }
      copy_row_chunks<S>(buffer, copy_at, from, rows, tile.padded, first + chunk * 8, k);
      from += S::BK * 2;
      arrive_after_copies(ready);
      at.advance();
    }
    slot = (slot + 1) % S::RING;
  }
}

/// Gives a buffer back: by all lanes of a warp that has no use for it any more.
template <class S>
__device__ __forceinline__ void give_back(uint32_t buffers, int stage) {
  const int lane = threadIdx.x & 31;
  if constexpr (S::CLUSTER > 1) {
    if (lane < S::CLUSTER) arrive_remote(buffers + S::EMPTY + stage * 8, lane);
  } else {
    if (lane == 0) arrive(buffers + S::EMPTY + stage * 8);
  }
}

/// Sums over k: `steps` whole stages, and of one more the first `last` sixteens, if any. BLOCKS: 64-column blocks that
/// this warpgroup has columns in.
template <class S, int N, int BLOCKS>
__device__ __forceinline__ void multiply_rest(float (&acc)[S::BLOCKS][S::ACC], Cursor<S::STAGES>& at, int steps,
                                              int last, uint32_t buffers, int group) {
  using Mma = Wgmma<typename S::Element, N>;
  int previous = -1;
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    wait(buffers + S::FULL + at.stage * 8, at.phase);
    fence_async_proxy();
    const uint32_t buffer = buffers + at.stage * S::STAGE_BYTES;
    // As in multiply().
    const uint64_t a = matrix_descriptor(buffer + group * S::GROUP_BYTES, S::PANELS * S::ATOM),
                   b = matrix_descriptor(buffer + S::WEIGHT_BYTES, S::ATOM);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < S::BK / 16; ++kk) {
      const int panel = kk / 4, inside = kk % 4 * 2;
      const uint64_t at_a = a + panel * (S::ATOM >> 4) + inside, at_b = b + panel * (S::ROW_PANEL_BYTES >> 4) + inside;
      Mma::multiply(acc[0], at_a, at_b);
      if constexpr (BLOCKS == 2) Mma::multiply(acc[1], at_a + (8 * S::PANELS * S::ATOM >> 4), at_b);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (previous >= 0) give_back<S>(buffers, previous);  // its products are done: only this step's are pending
    previous = at.stage;
    at.advance();
  }
  if (last > 0) {
    wait(buffers + S::FULL + at.stage * 8, at.phase);
    fence_async_proxy();
    const uint32_t buffer = buffers + at.stage * S::STAGE_BYTES;
    // All of a panel, then the next, of weights as of rows.
    const uint64_t a = matrix_descriptor(buffer + group * (S::GROUP_COLUMNS * S::PANEL * 2), S::ATOM),
                   b = matrix_descriptor(buffer + S::WEIGHT_BYTES, S::ATOM);
#pragma unroll 1
    for (int kk = 0; kk < last; ++kk) {
      wgmma_fence();
      const int panel = kk / 4, inside = kk % 4 * 2;
      const uint64_t at_a = a + panel * (S::COLUMNS * S::PANEL * 2 >> 4) + inside,
                     at_b = b + panel * (S::ROW_PANEL_BYTES >> 4) + inside;
      Mma::multiply(acc[0], at_a, at_b);
      if constexpr (BLOCKS == 2) Mma::multiply(acc[1], at_a + (8 * S::ATOM >> 4), at_b);
      wgmma_commit();
      wgmma_wait<1>();
    }
  }
  wgmma_wait<0>();
  if (previous >= 0) give_back<S>(buffers, previous);
  if (last > 0) {
    give_back<S>(buffers, at.stage);
    at.advance();
  }
}

/// multiply_rest() over `rows` rows, a multiple of 8: wgmma's N is part of the instruction. With one block of two (a
/// tile of the rest) over a multiple of 32, so that there are few such kinds: such a tile waits for its rows' copies,
/// not for products, and the results of rows that are not there go nowhere.
template <class S>
__device__ __forceinline__ void multiply_rest_rows(int rows, int blocks, float (&acc)[S::BLOCKS][S::ACC],
                                                   Cursor<S::STAGES>& at, int steps, int last, uint32_t buffers,
                                                   int group) {
  if (S::BLOCKS == 2 && blocks == 1) {
    switch ((rows + 31) / 32) {
#define NEXUS_CASE(N)                                                                                           \
  case N / 32:                                                                                                  \
    if constexpr (S::BLOCKS == 2 && N <= S::ROWS) multiply_rest<S, N, 1>(acc, at, steps, last, buffers, group); \
    break;
      NEXUS_CASE(32)
      NEXUS_CASE(64)
      NEXUS_CASE(96)
      NEXUS_CASE(128)
      NEXUS_CASE(160)
#undef NEXUS_CASE
    }
    return;
  }
  switch (rows) {
#define NEXUS_CASE(N)                                                                                 \
  case N:                                                                                             \
    if constexpr (N <= S::ROWS) multiply_rest<S, N, S::BLOCKS>(acc, at, steps, last, buffers, group); \
    break;
    NEXUS_CASE(8)
    NEXUS_CASE(16)
    NEXUS_CASE(24)
    NEXUS_CASE(32)
    NEXUS_CASE(40)
    NEXUS_CASE(48)
    NEXUS_CASE(56)
    NEXUS_CASE(64)
    NEXUS_CASE(72)
    NEXUS_CASE(80)
    NEXUS_CASE(88)
    NEXUS_CASE(96)
    NEXUS_CASE(104)
    NEXUS_CASE(112)
    NEXUS_CASE(120)
    NEXUS_CASE(128)
    NEXUS_CASE(136)
    NEXUS_CASE(144)
    NEXUS_CASE(152)
    NEXUS_CASE(160)
#undef NEXUS_CASE
  }
}

/// Gives `steps` buffers back as they come.
template <class S>
__device__ __forceinline__ void pass_on(Cursor<S::STAGES>& at, int steps, uint32_t buffers) {
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    wait(buffers + S::FULL + at.stage * 8, at.phase);
    __syncwarp();  // no lane may miss a phase
    give_back<S>(buffers, at.stage);
    at.advance();
  }
}

template <class S>
__device__ __forceinline__ void consume_rest(const GroupedParams& p, uint32_t buffers, typename S::Control& control) {
  using T = typename S::Element;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1, thread = threadIdx.x & 127;
  const int k = static_cast<int>(p.k), steps = k / S::BK, last = (k % S::BK + 15) / 16;
  auto& map = control.rows[group];
  // STAGED: the rows' scales lie where otherwise finished rows are staged, since no launch needs both.
  const auto scales = [&]() -> float* {
    if constexpr (S::STAGED)
      return reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(&control) + (S::STAGING - S::FULL) +
                                      group * (S::STAGING_BYTES / 2));
    else
      return map.scale;
  };
  const Finish<T, S::BLOCKS, S::STAGED> finish{p, map.output, scales()};
  Cursor<S::STAGES> at;
  int slot = 0;
#pragma unroll 1
  for (;;) {
    wait(buffers + S::FULL + at.stage * 8, at.phase);  // the first buffer of a tile also publishes the tile
    Tile tile = read_slot<S>(control.ring[slot]);
    if (tile.padded == 0) return;
    [[maybe_unused]] const int mine = slot;
    slot = (slot + 1) % S::RING;
    const int left = static_cast<int>(p.n) - tile.column - group * S::GROUP_COLUMNS;
    const int blocks = column_blocks(left, S::BLOCKS);
    if (blocks == 0) {
      // A tile of the rest that is the other warpgroup's alone. Left here, since further down it costs spills.
      pass_on<S>(at, steps + (last > 0), buffers);
      continue;
    }
    // Asked for now, needed after the products.
    int slots[(S::ROWS + 127) / 128];
#pragma unroll
    for (int i = 0; i < (S::ROWS + 127) / 128; ++i) {
      const int local = thread + i * 128;
      slots[i] = local < tile.rows ? slot_at(p, tile.row + local) : -1;
    }
    float acc[S::BLOCKS][S::ACC];
#pragma unroll
    for (int i = 0; i < S::ACC; ++i)
#pragma unroll
      for (int h = 0; h < S::BLOCKS; ++h) acc[h][i] = 0.f;
    multiply_rest_rows<S>(tile.padded, blocks, acc, at, steps, last, buffers, group);
    // Read again, rather than kept in registers: it is still there.
    if constexpr (S::STAGED) tile = read_slot<S>(control.ring[mine]);
    named_barrier(1 + group, 128);  // the map's last readers are done
#pragma unroll
    for (int i = 0; i < (S::ROWS + 127) / 128; ++i) {
      const int local = thread + i * 128;
      if (local < S::ROWS) {
        map.output[local] = slots[i] < 0 || p.scatter ? slots[i] : tile.row + local;
        if (p.row_scale) scales()[local] = slots[i] < 0 ? 0.f : p.row_scale[slots[i]];
      }
    }
    named_barrier(1 + group, 128);
    const int column = tile.column + group * S::GROUP_COLUMNS;
    if constexpr (S::BLOCKS == 2) {
      if (blocks == 1) {
        // A tile of the rest takes longer for its results than for its products, so only warps that have any.
        const int first = column + thread / 32 * 16;
        const Finish<T, 1, true> block{p, map.output, scales()};
        if (first < p.n) block(tile, first, reinterpret_cast<float(&)[1][S::ACC]>(acc[0]));
        continue;
      }
    }
    if constexpr (S::STAGED) {
      if (stages(p))
        finish_staged(finish, buffers + S::STAGING + group * (S::STAGING_BYTES / 2), 1 + group, tile, column, acc);
      else
        finish(tile, column + thread / 32 * 16, acc);
    } else {
      finish(tile, column + thread / 32 * 16, acc);
    }
  }
}
#endif

template <class S>
__global__ void __maxnreg__(S::REGISTERS)
    grouped_wgmma_rest_kernel(const GroupedParams p, const __grid_constant__ RestMapsOf<S> maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(256) unsigned char unaligned[];
  const uint32_t raw = shared_address(unaligned), buffers = (raw + 1023) & ~1023u;
  typename S::Control& control =
      *reinterpret_cast<typename S::Control*>(unaligned + (buffers - raw) + S::STAGES * S::STAGE_BYTES);
  const int rank = S::CLUSTER > 1 ? static_cast<int>(cluster_rank()) : 0;
  if (threadIdx.x == 0) {
    prefetch_map(&maps.steps.whole);
    prefetch_map(&maps.steps.rest);
    if (!p.copy_rows) prefetch_map(&maps.rows);
    for (int i = 0; i < S::STAGES; ++i) {
      barrier_init(buffers + S::FULL + i * 8, p.copy_rows ? S::PRODUCERS + 1 : 1);
      barrier_init(buffers + S::EMPTY + i * 8, S::CONSUMER_WARPS * S::CLUSTER);
    }
    barrier_init(buffers + S::FOUND, 1);
    barrier_init(buffers + S::PLACED, 32);
    barrier_init(buffers + S::TAKEN, p.copy_rows ? S::PRODUCERS : 32);
    barrier_init_fence();
  }
  if constexpr (S::CLUSTER > 1)
    cluster_sync();
  else
    __syncthreads();
  // Launched as a programmatic dependent: what is above overlapped with the kernel before.
  wait_for_previous();
  if (p.lets_in) release_next();
  if (threadIdx.x < S::PRODUCERS) {
    fewer_registers<S::PRODUCER>();
    produce_rest<S>(p, maps, buffers, control, rank);
  } else if (threadIdx.x < S::PRODUCERS + S::CONSUMERS) {
    more_registers<S::CONSUMER>();
    consume_rest<S>(p, buffers, control);
  } else {
    static_assert(S::FINDERS > 0);
    fewer_registers<S::FINDER>();
    find_rest_tiles<S>(p, buffers, control, blockIdx.x / S::CLUSTER, gridDim.x / S::CLUSTER);
  }
  // No block may leave while the other still multicasts to it or arrives at its barriers.
  if constexpr (S::CLUSTER > 1) cluster_sync();
#else
  // The host launches it only where code for compute 9.0a is loaded.
  __trap();
#endif
}

}  // namespace nexus::cuda::hopper
