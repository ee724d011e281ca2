// Grouped linear layer on tensor cores for many rows an expert: mma.sync and cp.async as in grouped_mma.cuh, the same
// sums in the same order and so the same bits, but by blocks that stay and walk tiles.
//
//   2·rows·n·k flop; bytes as in grouped_mma.cuh. At 4096 tokens it is power that limits a Hopper GPU, so what counts
//   is how little is done beside the products.
//
// A tile is up to BM rows of an expert by 256 columns. An expert's rows are divided evenly among its tiles in units of
// 16 and a tile's units evenly among the warps that share its columns, so there are no products for rows that do not
// exist but for what is left of a unit; where n leaves a last tile of 64 or 128 columns, more warps share its rows. How
// many units a warp has is a constant of its code (walk_k): warps of one block run different code between the same
// barriers.
//
// The walk over k goes on from tile to tile: while a tile's last steps and its epilogue run, the next one's first steps
// are on their way. Within it fragments of A are asked for up to three units ahead and those of B 16 of k ahead, across
// the steps' barrier, too, which stands where the reads of one buffer end and those of the next begin; and the copies
// are dealt out among the products instead of queueing up in front of the fragments.
#pragma once
#include "data/cuda/grouped_launch.cuh"
#include "data/cuda/grouped_mma_finish.cuh"

namespace nexus::cuda {

template <class T, int BM_, int STAGES_>
struct WideShape {
  using Element = T;
  static constexpr int BM = BM_, BN = 256, BK = 64, STAGES = STAGES_;
  static constexpr int THREADS = 256;
  static constexpr bool STAYS = true;  // as many blocks as fit at once walk the tiles
  static constexpr int WN = 64, NT = WN / 8;
  static constexpr int MOST_UNITS = (BM / 16 + 1) / 2;  // of 16 rows, a warp
  static constexpr int PASS_ROWS = THREADS / (BK / 8);
  static constexpr int A_PASSES = BM / PASS_ROWS, B_PASSES = BN / PASS_ROWS;
  static constexpr int A_BYTES = BM * BK * 2, STAGE_BYTES = A_BYTES + BN * BK * 2;
  static constexpr int BODY_BYTES = STAGES * STAGE_BYTES;
  static constexpr int SHARED_BYTES = BODY_BYTES + 2 * static_cast<int>(sizeof(RowMap<BM>) + sizeof(Tile) / 2);
  static constexpr int STAGING = 16 * WN * 4;  // bytes, a warp
  static_assert(BM % PASS_ROWS == 0 && BN == 4 * WN && MOST_UNITS <= 5 && STAGE_BYTES >= THREADS / 32 * STAGING);
};

namespace wide {

/// Tile `index` of lane `only` (see find_place); its `rows` all exist and are its own.
template <class S, bool LANES>
__device__ __forceinline__ bool find(const GroupedParams& p, int index, int only, Tile& tile) {
  TilePlace place;
  if (!find_place<S::BM, LANES>(p, index, place, only)) return false;
  const int units = (place.rows + 15) / 16;
  const int first = units * place.row_tile / place.tiles, last = units * (place.row_tile + 1) / place.tiles;
  tile = {place.expert, place.begin + first * 16, min(last * 16, place.rows) - first * 16, place.column_tile * S::BN};
  return true;
}

/// Where a tile's copies come from: a thread copies chunk `thread % 8` of a step's 64 k, of every 32nd row.
template <class S>
struct Source {
  uint32_t a[S::A_PASSES];  // rows of the input, in 16-byte words from its start
  const unsigned char* b;   // the first row of the weight
  unsigned rows;            // bit i: the row of copy i exists; the input's, then the weight's

  __device__ __forceinline__ void set(const GroupedParams& p, const Tile& tile, const RowMap<S::BM>& map) {
    const int thread = thread_anew(), chunk = thread % 8, row = thread / 8;
    const int k = static_cast<int>(p.k), n = static_cast<int>(p.n);
    rows = 0;
#pragma unroll
    for (int i = 0; i < S::A_PASSES; ++i) {
      const int at = map.input[row + i * S::PASS_ROWS];
      if (at >= 0) rows |= 1u << i;
      a[i] = static_cast<uint32_t>(max(at, 0)) * static_cast<uint32_t>(k / 8) + chunk;
    }
    const int first = tile.column + row;
    b = static_cast<const unsigned char*>(p.weight) + static_cast<int64_t>(tile.expert) * n * k * 2 +
        (p.in_panels ? panel_element(first, chunk * 8, n, p.gated) : static_cast<int64_t>(first) * k + chunk * 8) * 2;
    if (tile.rows == 0) return;
#pragma unroll
    for (int i = 0; i < S::B_PASSES; ++i)
      if (tile.column + row + i * S::PASS_ROWS < n) rows |= 1u << (S::A_PASSES + i);
  }
};

/// The copies of a step. Rows that do not exist keep what lies there, which reaches no row or column that does; chunks
/// past k are zeros.
template <class S>
struct Copies {
  static constexpr int COUNT = S::A_PASSES + S::B_PASSES;
  const Source<S>& from;
  const unsigned char *a, *b;
  uint32_t target, pitch;  // this thread's place in the buffer; bytes from a weight row to the next
  bool inside;

  __device__ __forceinline__ Copies(const GroupedParams& p, const unsigned char* input, const Source<S>& source,
                                    int step, uint32_t to)
      : from(source), target(to), pitch(static_cast<uint32_t>(p.in_panels ? S::BK : p.k) * 2) {
    static_assert(S::BK == kPanelColumns);
    const uint32_t at = static_cast<uint32_t>(step) * (S::BK * 2);
    a = input + at, b = from.b + static_cast<uint64_t>(at) * static_cast<uint32_t>(p.in_panels ? p.n : 1);
    inside = step * S::BK + static_cast<int>(threadIdx.x % 8) * 8 < static_cast<int>(p.k);
    // So that addresses are one sum each, made where it is used, and none of their parts is kept.
    asm volatile("" : "+l"(a), "+l"(b), "+r"(target), "+r"(pitch));
  }
  template <int FIRST, int LAST>
  __device__ __forceinline__ void run() const {
    if constexpr (FIRST < LAST) {
      constexpr int kPassBytes = S::PASS_ROWS * S::BK * 2, i = FIRST - S::A_PASSES;
      const unsigned char* const source = i < 0 ? a + static_cast<uint64_t>(from.a[FIRST % S::A_PASSES]) * 16
                                                : b + static_cast<uint64_t>(pitch) * (i * S::PASS_ROWS);
      if (from.rows >> FIRST & 1) copy16_async(target + FIRST * kPassBytes, source, inside);
      run<FIRST + 1, LAST>();
    }
  }
};

template <int N>
struct Index {
  static constexpr int value = N;
};
template <int FIRST, int LAST, class F>
__device__ __forceinline__ void unrolled(F&& f) {
  if constexpr (FIRST < LAST) {
    f(Index<FIRST>{});
    unrolled<FIRST + 1, LAST>(f);
  }
}

/// Of a warp with UNITS units of rows. A step has QUARTERS · UNITS of them: unit q is rows q % UNITS, k from 16 (q /
/// UNITS) on. `at`: the lane's place in a step's buffer.
template <class S, int UNITS>
struct Fragments {
  static constexpr int QUARTERS = S::BK / 16, PAIRS = S::NT / 2;
  uint32_t a[QUARTERS][4];  // of unit q: a[q % QUARTERS]
  uint32_t b[2][S::NT][2];  // of quarter: b[quarter % 2]

  template <int Q>
  __device__ __forceinline__ void load_a(uint32_t at) {
    load_matrix_x4(a[Q % QUARTERS], (at ^ (Q / UNITS * 32)) + Q % UNITS * 16 * S::BK * 2);
  }
  /// The pairs of n8 blocks whose turn it is in unit UNIT, when those of a quarter are dealt out among SHARING units
  /// from FIRST on.
  template <int QUARTER, int UNIT, int FIRST, int SHARING>
  __device__ __forceinline__ void load_b(uint32_t at) {
    unrolled<0, PAIRS>([&](auto index) {
      constexpr int pair = decltype(index)::value;
      if constexpr (FIRST + pair * SHARING / PAIRS == UNIT) {
        uint32_t four[4];
        load_matrix_x4(four, (at ^ (QUARTER * 32)) + pair * 16 * S::BK * 2);
        b[QUARTER % 2][pair * 2][0] = four[0], b[QUARTER % 2][pair * 2][1] = four[1];
        b[QUARTER % 2][pair * 2 + 1][0] = four[2], b[QUARTER % 2][pair * 2 + 1][1] = four[3];
      }
    });
  }
};

}  // namespace wide

template <class S, bool LANES>
__global__ void __launch_bounds__(S::THREADS, 1) grouped_mma_wide_kernel(const GroupedParams p) {
  using T = typename S::Element;
  extern __shared__ __align__(1024) unsigned char shared[];
  wait_for_previous();
  release_next();
  RowMap<S::BM>* const maps = reinterpret_cast<RowMap<S::BM>*>(shared + S::BODY_BYTES);  // this tile's and the next's
  Tile& next = *reinterpret_cast<Tile*>(maps + 2);                                       // no rows: there is none
  const int k = static_cast<int>(p.k), n = static_cast<int>(p.n);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const unsigned char* const input = static_cast<const unsigned char*>(input_of(p));
  const Walk walk = LANES ? lanes_walk(p, blockIdx.x, gridDim.x)
                          : Walk{static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), -1};
  // At least five, of which those past k are zeros: what a tile does for the next one takes four.
  const int steps = max(5, (k + S::BK - 1) / S::BK);

  int index = walk.first;
  Tile tile;
  if (!wide::find<S, LANES>(p, index, walk.lane, tile)) return;

  // The next tile's rows: asked for in one step, put down in another.
  int slot = -1;
  const auto ask_slot = [&](const Tile& of) {
    const int thread = thread_anew();
    slot = thread < of.rows ? slot_at(p, of.row + thread) : -1;
  };
  const auto put_row = [&](const Tile& of, RowMap<S::BM>& map) {
    const int thread = thread_anew();
    if (thread >= S::BM) return;
    map.input[thread] = slot < 0 ? -1 : p.gather ? slot / p.rows_per_input : of.row + thread;
    map.output[thread] = slot < 0 ? -1 : p.scatter ? slot : of.row + thread;
    map.scale[thread] = slot >= 0 && p.row_scale ? p.row_scale[slot] : 1.f;
  };
  wide::Source<S> source;
  ask_slot(tile);
  put_row(tile, maps[0]);
  __syncthreads();
  source.set(p, tile, maps[0]);

  // Chunk c of a buffer's row r lies at place c ^ (r % 8), as in grouped_mma.cuh.
  const uint32_t buffers = shared_address(shared), end = buffers + S::BODY_BYTES;
  const uint32_t copy_at = threadIdx.x / 8 * 128 + (((threadIdx.x ^ threadIdx.x / 8) & 7) * 16);
  const uint32_t a_lane = (lane & 15) * 128 + (((lane >> 4) ^ (lane & 7)) * 16);
  const uint32_t b_lane = S::A_BYTES + ((lane & 7) + (lane >> 4) * 8) * 128 + (((lane >> 3 & 1) ^ (lane & 7)) * 16);
#pragma unroll 1
  for (int s = 0; s < S::STAGES - 1; ++s) {
    wide::Copies<S>(p, input, source, s, buffers + s * S::STAGE_BYTES + copy_at)
        .template run<0, wide::Copies<S>::COUNT>();
    commit_async();
  }
  wait_async<S::STAGES - 2>();
  __syncthreads();

  uint32_t stage = buffers;  // the buffer of the step at hand
  const auto after = [&](uint32_t at) { return at + S::STAGE_BYTES == end ? buffers : at + S::STAGE_BYTES; };
  const auto before = [&](uint32_t at) { return at == buffers ? end - S::STAGE_BYTES : at - S::STAGE_BYTES; };
  int turn = 0;
#pragma unroll 1
  for (;;) {
    if constexpr (LANES)
      if (threadIdx.x == 0) trace_tile(p, tile.expert);
    // 64 columns a warp: four warps side by side, or as many as what is left of n needs.
    const int left = n - tile.column, across = left > 128 ? 2 : left > 64 ? 1 : 0;  // log2
    const int units = (tile.rows + 15) / 16, down = warp >> across;
    const int first = units * down >> (3 - across), last = units * (down + 1) >> (3 - across);
    const int warp_row = first * 16, warp_column = (warp & ((1 << across) - 1)) * S::WN;
    index += walk.stride;
    if (warp == 0) {
      Tile found{};
      wide::find<S, LANES>(p, index, walk.lane, found);
      if (lane == 0) next = found;
    }

    // Before step s, groups of copies through step s + STAGES - 2 are committed, and those of step s have landed.
    const auto walk_k = [&](auto own_units) {
      constexpr int UNITS = decltype(own_units)::value, AHEAD = UNITS < 3 ? UNITS : 3;
      using Fragments = wide::Fragments<S, UNITS>;
      constexpr int kAll = Fragments::QUARTERS * UNITS, kOpen = kAll - AHEAD;
      constexpr int kCopies = wide::Copies<S>::COUNT;
      const uint32_t a_at = a_lane + warp_row * 128, b_at = b_lane + warp_column * 128;
      float acc[UNITS > 0 ? UNITS : 1][S::NT * 4];
      Fragments f;
      if constexpr (UNITS > 0) {
#pragma unroll
        for (int i = 0; i < UNITS; ++i)
#pragma unroll
          for (int j = 0; j < S::NT * 4; ++j) acc[i][j] = 0.f;
        wide::unrolled<0, AHEAD>([&](auto q) { f.template load_a<decltype(q)::value>(stage + a_at); });
        f.template load_b<0, 0, 0, 1>(stage + b_at);
      }
#pragma unroll 1
      for (int s = 0; s < steps; ++s) {
        if (s == 1) ask_slot(next);
        if (s == 2) put_row(next, maps[turn ^ 1]);
        if (s + S::STAGES - 1 == steps) source.set(p, next, maps[turn ^ 1]);
        const int ahead = s + S::STAGES - 1, step = ahead < steps ? ahead : ahead - steps;
        const uint32_t following = after(stage);
        const wide::Copies<S> copies(p, input, source, step, before(stage) + copy_at);
        // All threads' copies of the next step have landed, and all have read this one's buffer.
        const auto meet = [&] {
          commit_async();
          wait_async<S::STAGES - 2>();
          __syncthreads();
        };
        if constexpr (UNITS == 0) {
          copies.template run<0, kCopies>();
          meet();
        } else {
          wide::unrolled<0, kAll>([&](auto unit) {
            constexpr int q = decltype(unit)::value, quarter = q / UNITS, i = q % UNITS;
            if constexpr (q == kOpen) meet();
            if constexpr (q < kOpen)
              f.template load_a<q + AHEAD>(stage + a_at);
            else
              f.template load_a<q - kOpen>(following + a_at);
            if constexpr (quarter + 1 < Fragments::QUARTERS)
              f.template load_b<quarter + 1, i, 0, UNITS>(stage + b_at);
            else
              f.template load_b<0, i, UNITS - AHEAD, AHEAD>(following + b_at);
            if constexpr (q < kOpen)
              copies.template run<(q * kCopies + kOpen - 1) / kOpen, ((q + 1) * kCopies + kOpen - 1) / kOpen>();
#pragma unroll
            for (int j = 0; j < S::NT; ++j) {
              const int to = q & 1 ? S::NT - 1 - j : j;  // there and back: the last operand is the next one's, too
              mma_16816<T>(reinterpret_cast<float(&)[4]>(acc[i][to * 4]), f.a[q % Fragments::QUARTERS],
                           f.b[quarter % 2][to]);
            }
          });
        }
        stage = following;
      }
      // The last step's buffer is free until the next tile's first step: its reads stand before that step's barrier.
      if constexpr (UNITS > 0)
        wide::Finish<S, UNITS>{p,
                               maps[turn],
                               warp_row,
                               tile.column + warp_column,
                               p.gated ? n / 2 : n,
                               thread_anew() & 31,
                               before(stage) + warp * S::STAGING}(
            p.bias ? p.bias + static_cast<int64_t>(tile.expert) * n : nullptr, acc);
    };
    wide::unrolled<0, S::MOST_UNITS + 1>([&](auto own) {
      if (decltype(own)::value == (warp_column < left ? last - first : 0)) walk_k(own);
    });
    if (next.rows == 0) return;
    tile = next;
    turn ^= 1;
    __syncthreads();
  }
}

template <class S>
void launch_mma_wide(const Variant& variant, const GroupedParams& params, const Target& target) {
  launch_tiles<S>(variant, params, target, &grouped_mma_wide_kernel<S, false>, &grouped_mma_wide_kernel<S, true>);
}

}  // namespace nexus::cuda
