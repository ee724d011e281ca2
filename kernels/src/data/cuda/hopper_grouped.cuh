// Grouped linear layer on Hopper's tensor cores (sm_90a), bf16 or f16 in, float32 accumulation, by wgmma.
//
//   out[r, :] = epilogue(scale[r] · x[in(r), :] · W[e]ᵀ + bias[e])   for the rows r of expert e
//   x [*, k], W [experts, n, k], out [rows, n or n/2]; k a multiple of 8, pointers 16-byte aligned
//   2·rows·n·k flop; bytes as in grouped_mma.cuh.
//
// The operands are swapped: weights fill wgmma's M (256 columns of the layer per block, or 128), token rows its N,
// which may be any multiple of 8 up to ROWS. So an expert with 272 rows costs 272 rows of products, where M = 64 or 128
// for tokens would cost 320 or 384, and one kernel serves few and many rows per expert.
//
// With CLUSTER = 2, two blocks share a tile of weights: each loads half of it by TMA and multicasts it to both, which
// halves what L2 must deliver of them; each multiplies it with its own half of the expert's rows. It pays where L2 is
// the limit; where HBM is, blocks on their own read faster. Inside a block, one producer warpgroup fills STAGES buffers
// (weights by TMA; token rows by TMA where they lie in order and where the host knows it, else by 16-byte cp.async into
// the same 128-byte swizzle; all complete on one mbarrier), two consumer warpgroups own half of the columns each. The
// grid is persistent: the producer runs ahead into the next tile while the consumers finish this one, and a warp of a
// fourth warpgroup has found that tile by then, and where the rows of its input lie.
//
// Both ways put the same bytes of a tile's rows into the same places, and a row's sum is made of that row and the
// weights only, in the same order of k: the results do not tell them apart. (They differ in the rows that pad a tile,
// whose results nobody stores.)
//
// With few weights a step is latencies one behind another, so copies begin ahead of the wait for the kernel before: a
// first layer's when routing says by a word that it is done (launch.h), the first weights of a second layer, whose
// offsets are older than the first, at once. Only the consumers write, and they wait.
#pragma once
#include "data/cuda/check.h"
#include "data/cuda/hopper_shape.h"
#include "data/cuda/hopper_staged.cuh"
#include "data/cuda/hopper_tile.cuh"
#include "data/cuda/launch.h"
#include "data/cuda/mma.cuh"

namespace nexus::cuda::hopper {

/// REGISTERS: of every thread at the launch. PRODUCER, CONSUMER, FINDER: of theirs, once the warpgroups have divided
/// them up. FINDER = 0: no warpgroup finds tiles ahead, the producer looks each up between two copies. O: see
/// hopper_shape.h.
template <class T, int ROWS_, int STAGES_, int CLUSTER_, int REGISTERS_, int PRODUCER_, int CONSUMER_, int FINDER_,
          class O>
struct Shape {
  using Element = T;
  static constexpr int ROWS = ROWS_, STAGES = STAGES_, CLUSTER = CLUSTER_;
  static constexpr int REGISTERS = REGISTERS_, PRODUCER = PRODUCER_, CONSUMER = CONSUMER_, FINDER = FINDER_;
  static constexpr int BLOCKS = O::BLOCKS, PANELS = O::PANELS;
  static constexpr bool STAGED = O::STAGED;
  static constexpr int GROUP_COLUMNS = 64 * BLOCKS;  // of a consumer warpgroup
  static constexpr int COLUMNS = 2 * GROUP_COLUMNS;
  static constexpr int PANEL = 64, BK = PANELS * PANEL;  // 64 elements: one 128-byte row of the swizzle
  static constexpr int ATOM = 8 * PANEL * 2;             // eight rows of a panel, in bytes
  static constexpr int PRODUCERS = 128, CONSUMERS = 256, CONSUMER_WARPS = CONSUMERS / 32;
  static constexpr int FINDERS = FINDER > 0 ? 128 : 0;  // of which a warp works: registers are dealt to warpgroups
  static constexpr int THREADS = PRODUCERS + CONSUMERS + FINDERS;
  static constexpr int BOX_COLUMNS = 128;
  static constexpr int BOX_BYTES = BOX_COLUMNS * BK * 2, BOXES = COLUMNS / CLUSTER / BOX_COLUMNS;  // of each block
  static constexpr int GROUP_BYTES = GROUP_COLUMNS * BK * 2;  // from one's weights to the other's
  static constexpr int WEIGHT_BYTES = COLUMNS * BK * 2, STAGE_BYTES = WEIGHT_BYTES + ROWS * BK * 2;
  static constexpr int PASSES = ROWS / 16;  // token rows that one producer thread copies
  static constexpr int BOX_ROWS = 32, ROW_BOX_BYTES = BOX_ROWS * PANEL * 2;
  static constexpr int ROW_PANEL_BYTES = ROWS * PANEL * 2;
  static constexpr int RING = STAGES < 8 ? 8 : 16;  // tiles between producer and consumers: more than STAGES
  // Bound by memory: heeds a limit of bytes under way, but for launches with lanes, and says which weights are read
  // once.
  static constexpr bool LIMITED = ROWS <= 64 && CLUSTER == 1;
  // For layers of few weights, whose steps are latencies one behind another.
  static constexpr bool FEW_WEIGHTS = BLOCKS == 1 && STAGED;
  static constexpr int ACC = ROWS / 2;  // accumulators per thread and 64 columns
  /// Whether a buffer is given back when the products of its so many rows are done, not when the next one's are under
  /// way.
  static constexpr bool gives_back_at_once(int) { return false; }
  // More than there are, and consumers would wait for them for ever.
  static_assert(PRODUCERS * PRODUCER + CONSUMERS * CONSUMER + FINDERS * FINDER <= THREADS * REGISTERS);
  static_assert(REGISTERS % 8 == 0 && PRODUCER % 8 == 0 && CONSUMER % 8 == 0 && FINDER % 8 == 0);
  static_assert(ROWS % BOX_ROWS == 0 && STAGE_BYTES % 1024 == 0 && RING > STAGES);
  static_assert(ROWS % (8 * Finish<T, BLOCKS>::template GROUPS<ACC>) == 0 && ROWS % 16 == 0);
  static_assert(BOXES * BOX_COLUMNS * CLUSTER == COLUMNS && (CLUSTER == 1 || BOXES == 1));

  struct Control {
    uint64_t full[STAGES], empty[STAGES];
    NextTile<FINDERS != 0 ? ROWS : 1> next;
    Tile ring[RING];
    OutputRows<ROWS, !STAGED> rows[2];  // of each consumer warpgroup
  };
  // Offsets from the first buffer, so that one register addresses all of it.
  static constexpr uint32_t FULL = STAGES * STAGE_BYTES, EMPTY = FULL + STAGES * 8;
  static constexpr uint32_t FOUND = EMPTY + STAGES * 8, PLACED = FOUND + 8, TAKEN = PLACED + 8;
  static constexpr uint32_t STAGING = (FULL + static_cast<uint32_t>(sizeof(Control)) + 15) & ~15u;
  static constexpr int STAGING_BYTES = staging_bytes(STAGED);
  static constexpr int BASE_ALIGNMENT = 256;  // of the shared memory that a block gets; its first buffer's is 1024
  static constexpr int SHARED_BYTES =
      (1024 - BASE_ALIGNMENT) +
      (STAGED ? static_cast<int>(STAGING) + STAGING_BYTES : STAGES * STAGE_BYTES + static_cast<int>(sizeof(Control)));
  static_assert(SHARED_BYTES <= 227 * 1024);
  static_assert(!STAGED || STAGING_BYTES / 2 >= ROWS * 4, "row scales lie there where nothing is staged");
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// This block's part of a tile's weights of step s: by one thread. `row`: weights_row().
template <class S>
__device__ __forceinline__ void copy_weights(const CUtensorMap& map, const GroupedParams& p, uint32_t buffer,
                                             uint32_t ready, int s, int row, bool once, bool alone) {
  const auto at = [&](int box) { return weights_at<(S::PANELS > 1)>(p, row + box * S::BOX_COLUMNS, s * S::PANELS); };
  if constexpr (S::CLUSTER > 1) {
    if (alone) {
#pragma unroll
      for (int i = 0; i < S::CLUSTER; ++i) copy_weights_box(buffer + i * S::BOX_BYTES, &map, at(i), ready);
    } else {
      const int rank = static_cast<int>(cluster_rank());  // asked for anew, rather than kept in a register
      copy_weights_box_multicast(buffer + rank * S::BOX_BYTES, &map, at(rank), ready, 3);
    }
  } else if (once) {
#pragma unroll
    for (int i = 0; i < S::BOXES; ++i) copy_weights_box_once(buffer + i * S::BOX_BYTES, &map, at(i), ready);
  } else {
#pragma unroll
    for (int i = 0; i < S::BOXES; ++i) copy_weights_box(buffer + i * S::BOX_BYTES, &map, at(i), ready);
  }
}

/// The first weights of all to L2, divided among the blocks: the memory has nothing else to do ahead of the wait, and
/// most of the experts get rows. By one thread. (Into the buffers themselves, of a tile that is guessed, it was no
/// better.)
__device__ __forceinline__ void prefetch_weights(const GroupedParams& p) {
  constexpr int64_t kPiece = 8192;
  const char* const from = static_cast<const char*>(p.weight);
  for (int64_t at = int64_t{blockIdx.x} * kPiece; at < p.ahead; at += int64_t{gridDim.x} * kPiece)
    prefetch_bulk(from + at, static_cast<uint32_t>(min(kPiece, p.ahead - at)));
}

/// Whether a tile's weights are asked for as the first that L2 gives up again: they must not push out what the next
/// kernels read, their code and parameters. Where several tiles read them it costs 5 to 10 %; and so does it, whoever
/// reads them, where 128 bytes at a time are read of rows of more than kOnceDepth elements.
template <class S>
__device__ __forceinline__ bool give_up_first(const GroupedParams& p, const Tile& tile) {
  return tile.once && p.beyond_cache && (S::PANELS > 1 || p.k <= kOnceDepth);
}

/// Bytes that a step brings besides rows that are copied one by one.
template <class S>
__device__ __forceinline__ uint32_t step_bytes(const GroupedParams& p, const Tile& tile) {
  const int boxes = p.copy_rows ? 0 : (tile.padded + S::BOX_ROWS - 1) / S::BOX_ROWS;
  return S::WEIGHT_BYTES + boxes * (S::PANELS * S::ROW_BOX_BYTES);
}

/// Where the input rows of rows `local`, `local` + APART, … of a tile begin, in units of 16 bytes. A row past the
/// tile's end is given a row that exists: its results are not stored.
template <int APART, int COUNT>
__device__ __forceinline__ void input_rows(const GroupedParams& p, const Tile& tile, int local,
                                           uint32_t (&begin)[COUNT]) {
  int row[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) row[i] = tile.row + max(0, min(local + i * APART, tile.rows - 1));
  if (p.gather) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) row[i] = slot_at(p, row[i]);  // all asked for before the first is divided
#pragma unroll
    for (int i = 0; i < COUNT; ++i) row[i] = max(0, row[i]) / p.rows_per_input;
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) begin[i] = static_cast<uint32_t>(row[i]) * (static_cast<uint32_t>(p.k) / 8);
}

/// input_rows() of a whole tile, left in `next` for those who copy: by a warp.
template <class S>
__device__ __forceinline__ void place_rows(const GroupedParams& p, const Tile& tile, int lane,
                                           uint32_t (&next)[S::ROWS]) {
  uint32_t rows[S::ROWS / 32];
  input_rows<32>(p, tile, lane, rows);
#pragma unroll
  for (int i = 0; i < S::ROWS / 32; ++i) next[lane + i * 32] = rows[i];
}

/// Copies this thread's share of a step's rows: of COUNT rows of a tile a chunk of 16 bytes in each of the step's
/// panels. `at`: of the first of them in its buffer; `from`: where input rows begin, at that chunk; `rows`: see
/// input_rows(); `column`: the chunk's first.
template <class S, int COUNT>
__device__ __forceinline__ void copy_row_chunks(uint32_t buffer, uint32_t at, const char* from,
                                                const uint32_t (&rows)[COUNT], int padded, int column, int k) {
  constexpr int kApart = S::ROWS / COUNT;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
#pragma unroll
    for (int h = 0; h < S::PANELS; ++h) {
      // Chunks past k become zeros; nothing is read for them.
      const bool inside = column + h * S::PANEL < k;
      if (i * kApart < padded)
        copy16_async(buffer + at + h * S::ROW_PANEL_BYTES + i * kApart * 128, from + h * (S::PANEL * 2), rows[i],
                     inside);
    }
  }
}

/// The tile of a block's turn: of its own, or as one of a pair.
template <class S, bool LANES>
__device__ __forceinline__ bool find_turn_tile(const GroupedParams& p, int index, Tile& tile, int only) {
  if constexpr (S::CLUSTER > 1)
    return find_pair_tile<S::ROWS, S::COLUMNS, LANES>(p, index, tile, only);
  else
    return find_tile<S::ROWS, S::CLUSTER, S::COLUMNS, LANES>(p, index, 0, tile, only);
}

/// Finds the tiles of this block, `block` of `blocks` where a pair counts as one, and leaves each for produce(), which
/// is busy with the one before: by one warp. It takes 3000 to 9000 cycles a tile, more than a ring of buffers holds.
template <class S, bool LANES>
__device__ __forceinline__ void find_tiles(const GroupedParams& p, uint32_t buffers, typename S::Control& control,
                                           int block, int blocks) {
  if (threadIdx.x >= S::PRODUCERS + S::CONSUMERS + 32) return;
  if constexpr (S::FEW_WEIGHTS)
    if (p.ready != nullptr) await_ready(p.ready);  // all other producers wait for a tile
  Walk walk{block, blocks, -1};
  if constexpr (LANES) walk = lanes_walk(p, block, blocks);
  uint32_t turn = 0;  // of tiles, odd or even: the phase of the barriers
#pragma unroll 1
  for (int index = walk.first;; index += walk.stride) {
    Tile tile{};
    const bool found = find_turn_tile<S, LANES>(p, index, tile, walk.lane);
    const int lane = thread_anew() & 31;
    if (LANES && found && lane == 0) trace_tile(p, tile.expert);
    wait(buffers + S::TAKEN, turn ^ 1);
    turn ^= 1;
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

/// Whether the first tile's weights are sent before the wait for the kernel before, which writes its rows: a second
/// layer's, whose offsets are older. Nothing else is to be found out then.
template <class S>
__device__ __forceinline__ bool rows_come_late(const GroupedParams& p) {
  return S::FEW_WEIGHTS && p.settled && p.ready == nullptr && !p.copy_rows;
}

/// Fills the buffers for the tiles of this block, `block` of `blocks` where a pair counts as one.
template <class S, bool LANES>
__device__ __forceinline__ void produce(const GroupedParams& p, const CUtensorMap& map, const CUtensorMap& row_map,
                                        uint32_t buffers, typename S::Control& control, int block, int blocks) {
  const int k = static_cast<int>(p.k), steps = (k + S::BK - 1) / S::BK;
  const int thread = threadIdx.x, chunk = thread % 8, copy_row = thread / 8;
  const uint32_t copy_at = S::WEIGHT_BYTES + copy_row * 128 + ((chunk ^ (copy_row & 7)) * 16);
  if (!p.copy_rows && thread >= 32) return;  // one thread issues all copies
  const char* input = static_cast<const char*>(input_of(p)) + chunk * 16;
  [[maybe_unused]] Walk walk{block, blocks, -1};  // without finders
  if constexpr (LANES && S::FINDERS == 0) walk = lanes_walk(p, block, blocks);
  [[maybe_unused]] uint32_t turn = 0;  // as in find_tiles()
  Cursor<S::STAGES> at;
  [[maybe_unused]] Cursor<S::STAGES> freed;  // of the next buffer to be waited for
  int slot = 0;
  [[maybe_unused]] int under_way = 0;
  // With a limit of bytes under way there is a neighbour on the chip, whose lines are not to be pushed out either.
  const bool limited = S::LIMITED && p.ring < 4 * S::STAGES;
  [[maybe_unused]] bool late = rows_come_late<S>(p);
#pragma unroll 1
  for (;;) {
    uint32_t rows[S::PASSES];  // see input_rows()
    const char* from = input;
    Tile tile{};
    if constexpr (S::FINDERS > 0) {
      wait(buffers + S::FOUND, turn);
      tile = control.next.tile;
      if (p.copy_rows && tile.padded != 0) {
        wait(buffers + S::PLACED, turn);
#pragma unroll
        for (int i = 0; i < S::PASSES; ++i) rows[i] = control.next.rows[copy_row + i * 16];
      }
      turn ^= 1;
      arrive(buffers + S::TAKEN);
    } else {
      const bool found = find_turn_tile<S, LANES>(p, walk.first, tile, walk.lane);
      if (LANES && found && thread == 0) trace_tile(p, tile.expert);
      if (found && p.copy_rows) input_rows<16>(p, tile, copy_row, rows);
      walk.first += walk.stride;
    }
    const bool found = tile.padded != 0;
    const int weights = weights_row(p, tile);
    [[maybe_unused]] int sent = 0;  // steps whose weights are on their way: thread 0's
    if constexpr (S::FEW_WEIGHTS) {
      if (late) {
        if (found && thread == 0 && !limited)
          for (; sent < min(steps, S::STAGES); ++sent) {
            const uint32_t ready = buffers + S::FULL + sent * 8;
            expect(ready, S::WEIGHT_BYTES);
            copy_weights<S>(map, p, buffers + sent * S::STAGE_BYTES, ready, sent, weights, give_up_first<S>(p, tile),
                            tile.alone);
          }
        __syncwarp();
        wait_for_previous();
        late = false;
      }
    }
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      const uint32_t buffer = buffers + at.stage * S::STAGE_BYTES, ready = buffers + S::FULL + at.stage * 8;
      if constexpr (S::LIMITED && !LANES) {
        // As many as the ring has, or fewer: buffers are waited for earlier than they are needed again.
        for (const int most = ring_limit(p.ring, s); under_way >= most; --under_way) {
          wait(buffers + S::EMPTY + freed.stage * 8, freed.phase);
          freed.advance();
        }
        ++under_way;
      } else {
        wait(buffers + S::EMPTY + at.stage * 8, at.phase ^ 1);
      }
      __syncwarp();  // only one lane may go on to issue copies: none of the others may miss a phase of the barrier
      // All buffers filled before this one's last round are consumed, so the ring's slot of RING tiles ago is free.
      if (s == 0 && thread == 0) control.ring[slot] = tile;
      if (!found) {
        if (p.copy_rows) arrive(ready);
        if (thread == 0) arrive(ready);
        return;
      }
      if (S::FEW_WEIGHTS && thread == 0 && s < sent) {
        arrive_expect(ready, step_bytes<S>(p, tile) - S::WEIGHT_BYTES);
      } else if (thread == 0) {
        arrive_expect(ready, step_bytes<S>(p, tile));
        copy_weights<S>(map, p, buffer, ready, s, weights, limited || (S::LIMITED && give_up_first<S>(p, tile)),
                        tile.alone);
      }
      if (!p.copy_rows) {
        // Rows of other experts may follow in the last box: their results are not stored.
        if (thread == 0)
          for (int i = 0; i * S::BOX_ROWS < tile.padded; ++i)
#pragma unroll
            for (int h = 0; h < S::PANELS; ++h)
              copy_box(buffer + S::WEIGHT_BYTES + h * S::ROW_PANEL_BYTES + i * S::ROW_BOX_BYTES, &row_map,
                       s * S::BK + h * S::PANEL, tile.row + i * S::BOX_ROWS, ready);
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

template <class S, int N>
__device__ __forceinline__ void multiply(float (&acc)[S::BLOCKS][S::ACC], Cursor<S::STAGES>& at, int steps,
                                         uint32_t buffers, int group) {
  using Mma = Wgmma<typename S::Element, N>;
  const int lane = threadIdx.x & 31;
  const auto release = [&](int stage) {
    if constexpr (S::CLUSTER > 1) {
      if (lane < S::CLUSTER) arrive_remote(buffers + S::EMPTY + stage * 8, lane);
    } else {
      if (lane == 0) arrive(buffers + S::EMPTY + stage * 8);
    }
  };
  constexpr bool kAtOnce = S::gives_back_at_once(N);
  [[maybe_unused]] int previous = -1;
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    wait(buffers + S::FULL + at.stage * 8, at.phase);
    fence_async_proxy();
    const uint32_t buffer = buffers + at.stage * S::STAGE_BYTES;
    // Weights: eight rows of one panel, the same eight of the next, the next eight. Rows: all of a panel, then the
    // next.
    const uint64_t a = matrix_descriptor(buffer + group * S::GROUP_BYTES, S::PANELS * S::ATOM),
                   b = matrix_descriptor(buffer + S::WEIGHT_BYTES, S::ATOM);
    wgmma_fence();
#pragma unroll
    for (int kk = 0; kk < S::BK / 16; ++kk) {
      const int panel = kk / 4, inside = kk % 4 * 2;
      const uint64_t at_a = a + panel * (S::ATOM >> 4) + inside, at_b = b + panel * (S::ROW_PANEL_BYTES >> 4) + inside;
      Mma::multiply(acc[0], at_a, at_b);
      if constexpr (S::BLOCKS == 2) Mma::multiply(acc[1], at_a + (8 * S::PANELS * S::ATOM >> 4), at_b);
    }
    wgmma_commit();
    if constexpr (kAtOnce) {
      wgmma_wait<0>();
      release(at.stage);
    } else {
      wgmma_wait<1>();
      if (previous >= 0) release(previous);  // its products are done: only this step's are pending
      previous = at.stage;
    }
    at.advance();
  }
  if constexpr (!kAtOnce) {
    wgmma_wait<0>();
    release(previous);
  }
}

/// multiply() over `rows` rows, a multiple of 8: wgmma's N is part of the instruction.
template <class S>
__device__ __forceinline__ void multiply_rows(int rows, float (&acc)[S::BLOCKS][S::ACC], Cursor<S::STAGES>& at,
                                              int steps, uint32_t buffers, int group) {
  switch (rows) {
#define NEXUS_CASE(N)                                                           \
  case N:                                                                       \
    if constexpr (N <= S::ROWS) multiply<S, N>(acc, at, steps, buffers, group); \
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

template <class S>
__device__ __forceinline__ void consume(const GroupedParams& p, uint32_t buffers, typename S::Control& control) {
  using T = typename S::Element;
  const int group = static_cast<int>(threadIdx.x) / 128 - 1, thread = threadIdx.x & 127;
  const int steps = (static_cast<int>(p.k) + S::BK - 1) / S::BK;
  auto& map = control.rows[group];
  // STAGED: the rows' scales lie where otherwise finished rows are staged, since no launch needs both.
  const auto scales = [&]() -> float* {
    if constexpr (S::STAGED)
      return reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(&control) + (S::STAGING - S::FULL) +
                                      group * (S::STAGING_BYTES / 2));
    else
      return map.scale;
  };
  const Finish<T, S::BLOCKS> finish{p, map.output, scales()};
  Cursor<S::STAGES> at;
  int slot = 0;
#pragma unroll 1
  for (;;) {
    wait(buffers + S::FULL + at.stage * 8, at.phase);  // the first buffer of a tile also publishes the tile
    Tile tile = read_slot<S>(control.ring[slot]);
    if (tile.padded == 0) return;
    [[maybe_unused]] const int mine = slot;
    slot = (slot + 1) % S::RING;
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
    multiply_rows<S>(tile.padded, acc, at, steps, buffers, group);
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

template <class S, bool LANES>
__global__ void __maxnreg__(S::REGISTERS)
    grouped_wgmma_kernel(const GroupedParams p, const __grid_constant__ CUtensorMap map,
                         const __grid_constant__ CUtensorMap row_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(256) unsigned char unaligned[];
  const uint32_t raw = shared_address(unaligned), buffers = (raw + 1023) & ~1023u;
  typename S::Control& control =
      *reinterpret_cast<typename S::Control*>(unaligned + (buffers - raw) + S::STAGES * S::STAGE_BYTES);
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    if (!p.copy_rows) prefetch_map(&row_map);
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
  if constexpr (S::FEW_WEIGHTS)
    if (threadIdx.x == S::PRODUCERS) prefetch_weights(p);
  // Launched as a programmatic dependent: what is above overlapped with the kernel before. With few weights so do a
  // first layer's copies, where routing says by a word that it is done, and a second layer's of its first weights; the
  // consumers, which write, wait.
  bool waits = true;
  if constexpr (S::FEW_WEIGHTS && S::FINDERS > 0)
    waits = (p.ready == nullptr && !rows_come_late<S>(p)) ||
            (threadIdx.x >= S::PRODUCERS && threadIdx.x < S::PRODUCERS + S::CONSUMERS);
  if (waits) {
    wait_for_previous();
    if (p.lets_in) release_next();
  }

  // Each consumer thread holds ROWS accumulators, the others hardly anything.
  if (threadIdx.x < S::PRODUCERS) {
    fewer_registers<S::PRODUCER>();
    produce<S, LANES>(p, map, row_map, buffers, control, blockIdx.x / S::CLUSTER, gridDim.x / S::CLUSTER);
  } else if (threadIdx.x < S::PRODUCERS + S::CONSUMERS) {
    more_registers<S::CONSUMER>();
    consume<S>(p, buffers, control);
  } else if constexpr (S::FINDERS > 0) {
    fewer_registers<S::FINDER>();
    find_tiles<S, LANES>(p, buffers, control, blockIdx.x / S::CLUSTER, gridDim.x / S::CLUSTER);
  }
  // No block may leave while the other still multicasts to it or arrives at its barriers.
  if constexpr (S::CLUSTER > 1) cluster_sync();
#else
  // The host launches it only where code for compute 9.0a is loaded.
  __trap();
#endif
}

}  // namespace nexus::cuda::hopper
