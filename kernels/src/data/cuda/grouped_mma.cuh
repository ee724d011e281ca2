// Grouped linear layer on tensor cores, bf16 or f16 in, float32 accumulation, by mma.sync (sm_80 and later).
//
//   out[r, :] = epilogue(scale[r] · x[in(r), :] · W[e]ᵀ + bias[e])   for the rows r of expert e
//   x [*, k], W [experts, n, k], out [rows, n or n/2]
//   2·rows·n·k flop; bytes: the touched experts' n·k·2 once, rows·k·2 in (gathered, mostly from L2), rows·n·2 out.
//
// One block owns one BM × BN tile and walks k upwards in steps of BK through STAGES shared-memory buffers filled by
// 16-byte cp.async. A row of a buffer is BK elements in 16-byte chunks; chunk c of row r lies at place c ^ (r % 8), so
// that both the copies (eight threads on one row) and ldmatrix (one chunk of eight rows) touch all 32 banks. Rows past
// the expert's end, weight rows past n and chunks past k are zero-filled without being read. The finished tile goes
// through shared memory as float32, so that the epilogue's code exists once and the (scattered) stores are whole words.
//
// GUARDED: for k not a multiple of 8 or unaligned pointers; the same tile and order, filled by guarded element loads.
#pragma once
#include "data/cuda/grouped_launch.cuh"
#include "data/cuda/grouped_mma_wide.cuh"
#include "data/cuda/grouped_tile.cuh"
#include "data/cuda/mma.cuh"

namespace nexus::cuda {

template <class T, int BM_, int BN_, int BK_, int WARPS_M_, int WARPS_N_, int STAGES_, int MIN_BLOCKS_, bool GUARDED_>
struct MmaShape {
  using Element = T;
  static constexpr int BM = BM_, BN = BN_, BK = BK_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, STAGES = STAGES_;
  static constexpr int MIN_BLOCKS = MIN_BLOCKS_;
  static constexpr bool GUARDED = GUARDED_, STAYS = false;
  static constexpr int THREADS = WARPS_M * WARPS_N * 32;
  static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;  // a warp's tile
  static constexpr int MT = WM / 16, NT = WN / 8;             // in units of mma
  static constexpr int CHUNKS = BK / 8;                       // 16-byte chunks per row
  static constexpr int ROWS_PER_PASS = THREADS / CHUNKS;      // rows that one copy per thread covers
  static constexpr int A_PASSES = BM / ROWS_PER_PASS, B_PASSES = BN / ROWS_PER_PASS;
  static constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, STAGE_BYTES = A_BYTES + B_BYTES;
  static constexpr int TILE_BYTES = BM * (BN + 8) * 4;
  static constexpr int BODY_BYTES = STAGES * STAGE_BYTES > TILE_BYTES ? STAGES* STAGE_BYTES : TILE_BYTES;
  static constexpr int SHARED_BYTES = BODY_BYTES + static_cast<int>(sizeof(RowMap<BM>));
  static_assert(WM % 16 == 0 && (WN == 8 || WN % 16 == 0) && CHUNKS % 8 == 0);
  static_assert(BM % ROWS_PER_PASS == 0 && BN % ROWS_PER_PASS == 0);
};

/// 16 bytes of which only the first `valid` elements exist, by element loads.
template <class T>
__device__ __forceinline__ void copy16_guarded(uint32_t target, const T* source, int valid) {
  uint32_t word[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned short* bits = reinterpret_cast<const unsigned short*>(source) + 2 * i;
    const uint32_t low = 2 * i < valid ? bits[0] : 0u;
    const uint32_t high = 2 * i + 1 < valid ? bits[1] : 0u;
    word[i] = low | high << 16;
  }
  store16_shared(target, word);
}

/// One tile. `input_rows`: where the input lies. On return threads may still be reading shared memory.
template <class S>
__device__ __forceinline__ void mma_tile(const GroupedParams& p, const Tile& tile, const void* input_rows,
                                         unsigned char* shared) {
  using T = typename S::Element;
  RowMap<S::BM>& map = *reinterpret_cast<RowMap<S::BM>*>(shared + S::BODY_BYTES);
  const int k = static_cast<int>(p.k), n = static_cast<int>(p.n);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const uint32_t buffers = shared_address(shared);

  // This thread copies chunk `chunk` of rows copy_row + i * ROWS_PER_PASS. ROWS_PER_PASS is a multiple of 8, or CHUNKS
  // is 16 and it is 8: either way the row's place in its group of eight, and so the swizzle, does not change with i.
  static_assert(S::ROWS_PER_PASS % 8 == 0);
  const int chunk = threadIdx.x % S::CHUNKS, copy_row = threadIdx.x / S::CHUNKS;
  const uint32_t copy_at = copy_row * (S::BK * 2) + ((chunk ^ (copy_row & 7)) * 16);
  unsigned b_valid = 0;
  // Weights in panels: 64 elements of k further on are n · 64 away, and a row is 64 long.
  const int64_t along = p.in_panels ? n : 1, pitch = p.in_panels ? kPanelColumns : k;
  const int64_t b_first = p.in_panels ? panel_element(tile.column + copy_row, chunk * 8, n, p.gated)
                                      : static_cast<int64_t>(tile.column + copy_row) * k + chunk * 8;
  const T* b_row = static_cast<const T*>(p.weight) + static_cast<int64_t>(tile.expert) * n * k + b_first;
  // From a thread's first row to that of pass i. Passes of eight rows take a sixteen's first and second half in turns.
  const auto b_pass = [&](int i) {
    const bool halves = S::ROWS_PER_PASS == 8 && p.in_panels && p.gated;
    return (halves ? i / 2 * 16 + i % 2 * 4 : i * S::ROWS_PER_PASS) * pitch;
  };
#pragma unroll
  for (int i = 0; i < S::B_PASSES; ++i)
    if (tile.column + copy_row + i * S::ROWS_PER_PASS < n) b_valid |= 1u << i;

  constexpr int kPassBytes = S::ROWS_PER_PASS * S::BK * 2;
  const auto load_b = [&](int step) {
    const int at = step * S::BK;
    const int left = k - at - chunk * 8;  // elements of the row from this chunk on
    const uint32_t target = buffers + step % S::STAGES * S::STAGE_BYTES + S::A_BYTES + copy_at;
#pragma unroll
    for (int i = 0; i < S::B_PASSES; ++i) {
      const bool row = b_valid >> i & 1;
      const T* source = b_row + b_pass(i) + at * along;
      if constexpr (S::GUARDED)
        copy16_guarded(target + i * kPassBytes, source, row ? left : 0);
      else
        copy16_async(target + i * kPassBytes, row && left > 0 ? static_cast<const void*>(source) : p.weight,
                     row && left > 0);
    }
  };

  // The weights of the first steps are on their way before this block knows its rows: at decode that latency is a
  // visible part.
  const int steps = (k + S::BK - 1) / S::BK;
#pragma unroll 1
  for (int s = 0; s < S::STAGES - 1 && s < steps; ++s) load_b(s);
  fill_rows<S::BM, S::THREADS>(p, tile, map);
  __syncthreads();

  const T* a_row[S::A_PASSES];
  unsigned a_valid = 0;
#pragma unroll
  for (int i = 0; i < S::A_PASSES; ++i) {
    const int input = map.input[copy_row + i * S::ROWS_PER_PASS];
    a_row[i] = static_cast<const T*>(input_rows) + static_cast<int64_t>(input < 0 ? 0 : input) * k + chunk * 8;
    if (input >= 0) a_valid |= 1u << i;
  }
  const auto load_a = [&](int step) {
    const int at = step * S::BK, left = k - at - chunk * 8;
    const uint32_t target = buffers + step % S::STAGES * S::STAGE_BYTES + copy_at;
#pragma unroll
    for (int i = 0; i < S::A_PASSES; ++i) {
      const bool row = a_valid >> i & 1;
      if constexpr (S::GUARDED)
        copy16_guarded(target + i * kPassBytes, a_row[i] + at, row ? left : 0);
      else
        copy16_async(target + i * kPassBytes, row && left > 0 ? static_cast<const void*>(a_row[i] + at) : p.weight,
                     row && left > 0);
    }
  };

  // ldmatrix addresses of this lane. A: rows 0–15 of a 16 × 16 block, lanes 16–31 its second chunk. B: two n8 blocks of
  // k16 (lanes 0–7, 8–15: the two chunks of the first; 16–31: of the second), or one where the warp's tile is 8 wide.
  const int warp_m = warp / S::WARPS_N * S::WM, warp_n = warp % S::WARPS_N * S::WN;
  const int a_lane_row = warp_m + (lane & 15), a_lane_chunk = lane >> 4;
  const int b_lane_row = warp_n + (lane & 7) + (S::WN == 8 ? 0 : (lane >> 4) * 8), b_lane_chunk = lane >> 3 & 1;
  const uint32_t a_lane = a_lane_row * (S::BK * 2), b_lane = S::A_BYTES + b_lane_row * (S::BK * 2);

  uint32_t a[2][S::MT][4], b[2][S::NT][2];
  const auto load_fragments = [&](uint32_t stage, int kk, int set) {
    const uint32_t a_at = stage + a_lane + (((kk * 2 + a_lane_chunk) ^ (lane & 7)) * 16);
    const uint32_t b_at = stage + b_lane + (((kk * 2 + b_lane_chunk) ^ (lane & 7)) * 16);
#pragma unroll
    for (int i = 0; i < S::MT; ++i) load_matrix_x4(a[set][i], a_at + i * 16 * S::BK * 2);
    if constexpr (S::NT == 1) {
      load_matrix_x2(b[set][0], b_at);
    } else {
#pragma unroll
      for (int i = 0; i < S::NT; i += 2) {
        uint32_t four[4];
        load_matrix_x4(four, b_at + i * 8 * S::BK * 2);
        b[set][i][0] = four[0], b[set][i][1] = four[1];
        b[set][i + 1][0] = four[2], b[set][i + 1][1] = four[3];
      }
    }
  };

  float acc[S::MT][S::NT][4];
#pragma unroll
  for (int i = 0; i < S::MT; ++i)
#pragma unroll
    for (int j = 0; j < S::NT; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) acc[i][j][c] = 0.f;

  // Before step s, STAGES - 1 + s groups are committed (some empty); group s holds step s (group 0 also the first
  // weights): at most STAGES - 2 may be pending. One barrier a step: it shows all threads' copies of step s, and it
  // says that all have read step s - 1, whose buffer is filled next.
#pragma unroll 1
  for (int s = 0; s < S::STAGES - 1; ++s) {
    if (s < steps) load_a(s);
    commit_async();
  }
#pragma unroll 1
  for (int s = 0; s < steps; ++s) {
    wait_async<S::STAGES - 2>();
    __syncthreads();
    if (s + S::STAGES - 1 < steps) {
      load_a(s + S::STAGES - 1);
      load_b(s + S::STAGES - 1);
    }
    commit_async();
    const uint32_t stage = buffers + s % S::STAGES * S::STAGE_BYTES;
    load_fragments(stage, 0, 0);
#pragma unroll
    for (int kk = 0; kk < S::BK / 16; ++kk) {
      if (kk + 1 < S::BK / 16) load_fragments(stage, kk + 1, (kk + 1) & 1);
#pragma unroll
      for (int i = 0; i < S::MT; ++i)
#pragma unroll
        for (int j = 0; j < S::NT; ++j) mma_16816<T>(acc[i][j], a[kk & 1][i], b[kk & 1][j]);
    }
  }
  wait_async<0>();
  __syncthreads();  // all reads of the buffers are over: their bytes become the float32 tile

  // Row stride BN + 8 floats: the four rows × four columns pairs of a half-warp's 8-byte stores fall in 32 different
  // banks.
  float* out = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < S::MT; ++i)
#pragma unroll
    for (int j = 0; j < S::NT; ++j) {
      float* at = out + (warp_m + i * 16 + (lane >> 2)) * (S::BN + 8) + warp_n + j * 8 + (lane & 3) * 2;
      *reinterpret_cast<float2*>(at) = make_float2(acc[i][j][0], acc[i][j][1]);
      *reinterpret_cast<float2*>(at + 8 * (S::BN + 8)) = make_float2(acc[i][j][2], acc[i][j][3]);
    }
  __syncthreads();
  store_tile<T, S::BM, S::BN, S::THREADS>(p, tile, map, out);
}

template <class S, bool LANES>
__global__ void __launch_bounds__(S::THREADS, S::MIN_BLOCKS) grouped_mma_kernel(const GroupedParams p) {
  extern __shared__ __align__(128) unsigned char shared[];
  wait_for_previous();
  release_next();
  const void* const input_rows = input_of(p);
  for_each_tile<S::BM, S::BN, LANES>(p, [&](const Tile& tile) { mma_tile<S>(p, tile, input_rows, shared); });
}

template <class S>
void launch_mma_shape(const Variant& variant, const GroupedParams& params, const Target& target) {
  launch_tiles<S>(variant, params, target, &grouped_mma_kernel<S, false>, &grouped_mma_kernel<S, true>);
}

template <class T>
void launch_mma(const Variant& variant, const GroupedParams& params, const Target& target) {
  //                                 BM   BN   BK  warps  stages min blocks
  if (variant.kernel == Kernel::kMmaGuarded)
    launch_mma_shape<MmaShape<T, 64, 128, 64, 2, 2, 2, 2, true>>(variant, params, target);
  else if (variant.bm == 16 && variant.share_sm)
    launch_mma_shape<MmaShape<T, 16, 32, 128, 1, 4, 3, 7, false>>(variant, params, target);
  else if (variant.bm == 16)
    launch_mma_shape<MmaShape<T, 16, 32, 128, 1, 4, 6, 3, false>>(variant, params, target);
  else if (variant.bm == 64)
    launch_mma_shape<MmaShape<T, 64, 128, 64, 2, 2, 4, 2, false>>(variant, params, target);
  else if (variant.bn == 128)
    launch_mma_shape<MmaShape<T, 128, 128, 64, 2, 2, 3, 2, false>>(variant, params, target);
  else
    launch_mma_wide<WideShape<T, 160, 3>>(variant, params, target);
}

}  // namespace nexus::cuda
