// Thin wrappers of Hopper's own PTX instructions (sm_90a): mbarrier, the bulk tensor copy (TMA), wgmma, setmaxnreg,
// movmatrix. Nothing here knows about tiles or experts. Only device code compiled for sm_90a may call them.
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace nexus::cuda::hopper {

// ---- mbarrier ------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine and to the other block of the cluster.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(barrier) : "memory");
}
/// Arrives and adds `bytes` to what the barrier's phase waits for.
__device__ __forceinline__ void arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1; }" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Adds `bytes` to what the barrier's phase waits for, which this thread's arrival is to follow.
__device__ __forceinline__ void expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// Arrives at the barrier of the same address in block `rank` of the cluster.
__device__ __forceinline__ void arrive_remote(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{ .reg .b32 r; mapa.shared::cluster.u32 r, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [r]; }" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
/// Arrives once this thread's cp.async copies so far have landed; counts as one of the barrier's expected arrivals.
__device__ __forceinline__ void arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (!done);
}

// ---- words by which blocks of a launch know one another ------------------------------------------------------------

/// What was written before an add_release() that it sees, by its thread or behind a barrier with it, is seen after it.
__device__ __forceinline__ int load_acquire(const int32_t* word) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
__device__ __forceinline__ void add_release(int32_t* word, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}
// ---- cluster, warpgroup --------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
template <int REGISTERS>
__device__ __forceinline__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
__device__ __forceinline__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
/// Barrier `id` (1–15; 0 is __syncthreads) among `threads` threads of the block.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- copies --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/// The box at (x, y) to `target`; completes on `barrier`.
__device__ __forceinline__ void copy_box(uint32_t target, const CUtensorMap* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          target),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
/// Where a box of a weights map begins: its coordinates, by what they mean for most maps (weights_at() in
/// hopper_tile.cuh).
struct WeightsAt {
  int x, row, panel, rows8, rows16;
};
__device__ __forceinline__ void copy_weights_box(uint32_t target, const CUtensorMap* map, WeightsAt at,
                                                 uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
      "[%7];" ::"r"(target),
      "l"(map), "r"(at.x), "r"(at.row), "r"(at.panel), "r"(at.rows8), "r"(at.rows16), "r"(barrier)
      : "memory");
}
/// The same of weights that are read once: the first lines that L2 gives up, so that it keeps what is read again: the
/// step's small data, its kernels' code, which would else come from memory each time (docs/kernels/log.md), and what a
/// neighbour reads.
__device__ __forceinline__ void copy_weights_box_once(uint32_t target, const CUtensorMap* map, WeightsAt at,
                                                      uint32_t barrier) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(target),
      "l"(map), "r"(at.x), "r"(at.row), "r"(at.panel), "r"(at.rows8), "r"(at.rows16), "r"(barrier), "l"(policy)
      : "memory");
}
/// The box to the same address in every block of `mask`; completes on the barrier of the same address in each.
__device__ __forceinline__ void copy_weights_box_multicast(uint32_t target, const CUtensorMap* map, WeightsAt at,
                                                           uint32_t barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3, %4, %5, %6}], [%7], %8;" ::"r"(target),
      "l"(map), "r"(at.x), "r"(at.row), "r"(at.panel), "r"(at.rows8), "r"(at.rows16), "r"(barrier), "h"(mask)
      : "memory");
}
/// The line of an address to L2.
__device__ __forceinline__ void prefetch_line(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address) : "memory");
}
/// `bytes` from an address on to L2; both multiples of 16.
__device__ __forceinline__ void prefetch_bulk(const void* address, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
}
/// Orders this thread's earlier generic-proxy view of shared memory (cp.async landed) before async-proxy reads (wgmma).
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// The transpose of an 8 × 8 matrix of 16-bit elements spread over the warp (row = lane / 4, columns 2·(lane % 4) + 0,
/// 1).
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t v) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
  return out;
}

/// Four 8 × 8 matrices of 16-bit elements, spread over the warp as in transpose_8x8, to shared memory as their
/// transposes: lane l gives the address of row l % 8 (16 bytes) of the transpose of matrix l / 8.
__device__ __forceinline__ void store_transposed(uint32_t address, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}

// ---- wgmma ---------------------------------------------------------------------------------------------------------

/// Descriptor of a K-major operand whose rows are 128 bytes apart in groups of eight, 128-byte swizzle. `pitch`: from
/// one group to the next, in bytes. Advancing k by 16 elements inside the row adds 2.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t pitch) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{1} << 16 | static_cast<uint64_t>(pitch >> 4) << 32 |
         uint64_t{1} << 62;
}
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/// d[64 × N] += a[64 × 16] · b[N × 16]ᵀ, float32 accumulators: thread t of the warpgroup holds, for each n8 block j,
/// d[4j..4j+3] = rows 16·(t/32) + (t%32)/4 (two elements) and 8 below it (two), columns 8j + 2·(t%4) + 0, 1.
template <class T, int N>
struct Wgmma;

// Operand lists: NEXUS_Rn names the first n registers, NEXUS_On passes them.
#define NEXUS_R4 "%0,%1,%2,%3"
#define NEXUS_O4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define NEXUS_R8 NEXUS_R4 ",%4,%5,%6,%7"
#define NEXUS_O8 NEXUS_O4, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define NEXUS_R12 NEXUS_R8 ",%8,%9,%10,%11"
#define NEXUS_O12 NEXUS_O8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define NEXUS_R16 NEXUS_R12 ",%12,%13,%14,%15"
#define NEXUS_O16 NEXUS_O12, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define NEXUS_R20 NEXUS_R16 ",%16,%17,%18,%19"
#define NEXUS_O20 NEXUS_O16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define NEXUS_R24 NEXUS_R20 ",%20,%21,%22,%23"
#define NEXUS_O24 NEXUS_O20, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define NEXUS_R28 NEXUS_R24 ",%24,%25,%26,%27"
#define NEXUS_O28 NEXUS_O24, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define NEXUS_R32 NEXUS_R28 ",%28,%29,%30,%31"
#define NEXUS_O32 NEXUS_O28, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define NEXUS_R36 NEXUS_R32 ",%32,%33,%34,%35"
#define NEXUS_O36 NEXUS_O32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define NEXUS_R40 NEXUS_R36 ",%36,%37,%38,%39"
#define NEXUS_O40 NEXUS_O36, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define NEXUS_R44 NEXUS_R40 ",%40,%41,%42,%43"
#define NEXUS_O44 NEXUS_O40, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define NEXUS_R48 NEXUS_R44 ",%44,%45,%46,%47"
#define NEXUS_O48 NEXUS_O44, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define NEXUS_R52 NEXUS_R48 ",%48,%49,%50,%51"
#define NEXUS_O52 NEXUS_O48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define NEXUS_R56 NEXUS_R52 ",%52,%53,%54,%55"
#define NEXUS_O56 NEXUS_O52, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define NEXUS_R60 NEXUS_R56 ",%56,%57,%58,%59"
#define NEXUS_O60 NEXUS_O56, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define NEXUS_R64 NEXUS_R60 ",%60,%61,%62,%63"
#define NEXUS_O64 NEXUS_O60, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define NEXUS_R68 NEXUS_R64 ",%64,%65,%66,%67"
#define NEXUS_O68 NEXUS_O64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define NEXUS_R72 NEXUS_R68 ",%68,%69,%70,%71"
#define NEXUS_O72 NEXUS_O68, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define NEXUS_R76 NEXUS_R72 ",%72,%73,%74,%75"
#define NEXUS_O76 NEXUS_O72, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define NEXUS_R80 NEXUS_R76 ",%76,%77,%78,%79"
#define NEXUS_O80 NEXUS_O76, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
// Registers R = N / 2; A and B are the operand numbers R and R + 1 of the descriptors.
#define NEXUS_WGMMA(TYPE, PTX, N, R, A, B)                                                                          \
  template <>                                                                                                       \
  struct Wgmma<TYPE, N> {                                                                                           \
    template <int SIZE>                                                                                             \
    static __device__ __forceinline__ void multiply(float (&d)[SIZE], uint64_t a, uint64_t b) {                     \
      static_assert(SIZE >= R);                                                                                     \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX "." PTX " {" NEXUS_R##R "}, %" #A ", %" #B \
                                                                                                 ", 1, 1, 1, 0, 0;" \
                   : NEXUS_O##R                                                                                     \
                   : "l"(a), "l"(b));                                                                               \
    }                                                                                                               \
  };
#define NEXUS_WGMMA_BOTH(N, R, A, B)             \
  NEXUS_WGMMA(__nv_bfloat16, "bf16", N, R, A, B) \
  NEXUS_WGMMA(__half, "f16", N, R, A, B)
NEXUS_WGMMA_BOTH(8, 4, 4, 5)
NEXUS_WGMMA_BOTH(16, 8, 8, 9)
NEXUS_WGMMA_BOTH(24, 12, 12, 13)
NEXUS_WGMMA_BOTH(32, 16, 16, 17)
NEXUS_WGMMA_BOTH(40, 20, 20, 21)
NEXUS_WGMMA_BOTH(48, 24, 24, 25)
NEXUS_WGMMA_BOTH(56, 28, 28, 29)
NEXUS_WGMMA_BOTH(64, 32, 32, 33)
NEXUS_WGMMA_BOTH(72, 36, 36, 37)
NEXUS_WGMMA_BOTH(80, 40, 40, 41)
NEXUS_WGMMA_BOTH(88, 44, 44, 45)
NEXUS_WGMMA_BOTH(96, 48, 48, 49)
NEXUS_WGMMA_BOTH(104, 52, 52, 53)
NEXUS_WGMMA_BOTH(112, 56, 56, 57)
NEXUS_WGMMA_BOTH(120, 60, 60, 61)
NEXUS_WGMMA_BOTH(128, 64, 64, 65)
NEXUS_WGMMA_BOTH(136, 68, 68, 69)
NEXUS_WGMMA_BOTH(144, 72, 72, 73)
NEXUS_WGMMA_BOTH(152, 76, 76, 77)
NEXUS_WGMMA_BOTH(160, 80, 80, 81)
#undef NEXUS_WGMMA_BOTH
#undef NEXUS_WGMMA
#undef NEXUS_R4
#undef NEXUS_O4
#undef NEXUS_R8
#undef NEXUS_O8
#undef NEXUS_R12
#undef NEXUS_O12
#undef NEXUS_R16
#undef NEXUS_O16
#undef NEXUS_R20
#undef NEXUS_O20
#undef NEXUS_R24
#undef NEXUS_O24
#undef NEXUS_R28
#undef NEXUS_O28
#undef NEXUS_R32
#undef NEXUS_O32
#undef NEXUS_R36
#undef NEXUS_O36
#undef NEXUS_R40
#undef NEXUS_O40
#undef NEXUS_R44
#undef NEXUS_O44
#undef NEXUS_R48
#undef NEXUS_O48
#undef NEXUS_R52
#undef NEXUS_O52
#undef NEXUS_R56
#undef NEXUS_O56
#undef NEXUS_R60
#undef NEXUS_O60
#undef NEXUS_R64
#undef NEXUS_O64
#undef NEXUS_R68
#undef NEXUS_O68
#undef NEXUS_R72
#undef NEXUS_O72
#undef NEXUS_R76
#undef NEXUS_O76
#undef NEXUS_R80
#undef NEXUS_O80

}  // namespace nexus::cuda::hopper
