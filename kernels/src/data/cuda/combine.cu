// Combining the experts' rows, and the shared expert's gate.
//
// combine: y[t] = Σ_j w[t, j] · rows[t·k + j] (slot order, float32) + s[t] · shared[t]; or the k weighted rows side by
// side. Bound by memory: tokens·width·(k + 1 (+ 1)) elements. Rows come in slot order, so a token's k rows are
// contiguous: a thread owns a 16-byte column of a token and reads k words a row apart; no atomics, and the order of the
// sum is fixed.
//
// shared_gate: scale[t] = σ(x[t] · w); a warp per token, each lane every 32nd chunk, one butterfly.
//
// With a step both take the grid of the bound and read tokens and output (x) on the device. Neither address changes a
// bit: what is not aligned is moved one element at a time, in the same order.
#include <type_traits>

#include "data/backend.h"
#include "data/cuda/activation.cuh"
#include "data/cuda/check.h"
#include "data/cuda/convert.cuh"
#include "data/cuda/launch.h"
#include "data/cuda/step.cuh"

namespace nexus::cuda {
namespace {

constexpr int kThreads = 256;
/// Of the weighted sum: blocks of half as many threads, which find room beside those of the kernel before.
constexpr int kSumThreads = 128;
/// 16-byte columns of all tokens, from which on a thread has two of them where it has no more than two rows to ask for.
constexpr int64_t kManyColumns = int64_t{1} << 19;

/// out[at …]: as one word where the output, whose place a step tells only now, is aligned to it.
template <int VEC, class T>
__device__ __forceinline__ void store_out(T* out, int64_t at, const Pack<T, VEC>& pack) {
  if constexpr (VEC > 1) {
    if ((reinterpret_cast<uintptr_t>(out) & 15) != 0) {
#pragma unroll
      for (int c = 0; c < VEC; ++c) out[at + c] = pack.v[c];
      return;
    }
  }
  store_pack<VEC>(out + at, pack);
}
template <class T>
__device__ __forceinline__ T* out_of(const CombineArgs& a) {
  return static_cast<T*>(a.step ? a.step->out : a.out);
}

/// The step's slot of the ring, by a block of its own, the grid's last, which has nothing to sum. A kernel is complete
/// only when its writes over the bus are acknowledged, some 0.7 us later: behind route every step would wait for that,
/// here it is over before the sums are. Ahead of wait_for_previous(): route is complete (combine.h), as is every step
/// before.
__device__ __forceinline__ void fill_ring(const CombineArgs& a) {
  if (a.ring.slots == nullptr || blockIdx.x + 1 != gridDim.x) return;
  const RingSlot ring(a.ring);
  ring.fill(step_tokens(a.step, a.tokens), a.experts, [&](int e) { return __ldcg(a.counts + e); });
  __syncthreads();  // all threads have read the counter
  if (threadIdx.x == 0) ring.close(a.ring.counter);
}
unsigned with_ring(unsigned blocks, const CombineArgs& args) { return blocks + (args.ring.slots == nullptr ? 0 : 1); }

/// A pack on its way, as it was loaded: its elements by themselves would take a register each.
template <class T, int VEC>
struct Words {
  using Word = std::conditional_t<VEC * sizeof(T) == 16, uint4, T>;
  static_assert(sizeof(Word) == VEC * sizeof(T));
  Word word;
  __device__ __forceinline__ void load(const T* from) { word = *reinterpret_cast<const Word*>(from); }
  /// Only now taken apart: the compiler does it as early as it may.
  __device__ __forceinline__ Pack<T, VEC> pack() const {
    Word own = word;
    if constexpr (VEC * sizeof(T) == 16) asm volatile("" : "+r"(own.x), "+r"(own.y), "+r"(own.z), "+r"(own.w));
    return *reinterpret_cast<const Pack<T, VEC>*>(&own);
  }
};

/// A thread has ITEMS 16-byte columns, a grid apart, and asks for ROWS rows of each before it adds up the first: one
/// after the other, each would be waited for. (All eight rows of top_k = 8 at once take twice the registers, and as
/// long.) Places and weights are known before the kernel before has ended.
template <class T, int VEC, int ROWS, int ITEMS>
__global__ void __launch_bounds__(kSumThreads, 8) weighted_sum_kernel(const CombineArgs a) {
  if (a.private_inputs) release_next();
  fill_ring(a);
  const int64_t columns = a.width / VEC, apart = (a.tokens * columns + ITEMS - 1) / ITEMS;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  int64_t token[ITEMS], column[ITEMS];
  float w[ITEMS][ROWS];
  const auto load_weights = [&](int from) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
#pragma unroll
      for (int j = 0; j < ROWS; ++j)
        if (from + j < a.top_k && token[i] < a.tokens) w[i][j] = __ldg(a.weights + token[i] * a.top_k + from + j);
  };
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    const int64_t item = first < apart ? first + i * apart : a.tokens * columns;
    token[i] = divide(item, columns), column[i] = (item - token[i] * columns) * VEC;
#pragma unroll
    for (int j = 0; j < ROWS; ++j) w[i][j] = 1.f;
  }
  const bool early = a.private_inputs && a.weights != nullptr;  // route is complete (combine.h)
  if (early) load_weights(0);
  wait_for_previous();
  if (!a.private_inputs) release_next();
  const int64_t tokens = step_tokens(a.step, a.tokens);
  if (!early && a.weights != nullptr) load_weights(0);
  float acc[ITEMS][VEC] = {};
  const auto add = [&](int i, const Words<T, VEC>& words, float scale) {
    const Pack<T, VEC> v = words.pack();
#pragma unroll
    for (int c = 0; c < VEC; ++c) acc[i][c] = fmaf(scale, to_float(v.v[c]), acc[i][c]);
  };
  for (int from = 0; from < a.top_k; from += ROWS) {
    Words<T, VEC> v[ITEMS][ROWS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const T* const row = static_cast<const T*>(a.rows) + (token[i] * a.top_k + from) * a.width + column[i];
#pragma unroll
      for (int j = 0; j < ROWS; ++j)
        if (from + j < a.top_k && token[i] < tokens) v[i][j].load(row + j * a.width);
    }
    if (from > 0 && a.weights != nullptr) load_weights(from);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
#pragma unroll
      for (int j = 0; j < ROWS; ++j)
        if (from + j < a.top_k && token[i] < tokens) add(i, v[i][j], w[i][j]);
  }
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    if (token[i] >= tokens) continue;
    const int64_t at = token[i] * a.width + column[i];
    if (a.shared) {
      Words<T, VEC> v;
      v.load(static_cast<const T*>(a.shared) + at);
      add(i, v, a.shared_scale ? __ldg(a.shared_scale + token[i]) : 1.f);
    }
    Pack<T, VEC> out;
#pragma unroll
    for (int c = 0; c < VEC; ++c) out.v[c] = from_float<T>(acc[i][c]);
    store_out<VEC>(out_of<T>(a), at, out);
  }
}

/// Slot s's row goes to the same place of the output: [tokens, k·width] is [tokens·k, width].
template <class T, int VEC>
__global__ void __launch_bounds__(kThreads) concat_kernel(const CombineArgs a) {
  fill_ring(a);
  const int64_t columns = a.width / VEC;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= step_tokens(a.step, a.tokens) * a.top_k * columns) return;
  const float w = a.weights ? __ldg(a.weights + divide(i, columns)) : 1.f;
  Pack<T, VEC> v = load_pack<VEC>(static_cast<const T*>(a.rows) + i * VEC);
#pragma unroll
  for (int c = 0; c < VEC; ++c) v.v[c] = from_float<T>(w * to_float(v.v[c]));
  store_out<VEC>(out_of<T>(a), i * VEC, v);
}

template <class T, int VEC>
void launch_combine(const CombineArgs& args, int device, cudaStream_t stream) {
  const int64_t columns = args.width / VEC;
  if (args.mode == CombineMode::kConcat) {
    const unsigned blocks = with_ring(grid_for(args.tokens * args.top_k * columns, kThreads), args);
    concat_kernel<T, VEC><<<blocks, kThreads, 0, stream>>>(args);
    check_launch("combine_concat");
  } else {
    const auto sum = [&](auto rows, auto items) {
      constexpr int kRows = decltype(rows)::value, kItems = decltype(items)::value;
      const unsigned blocks = with_ring(grid_for((args.tokens * columns + kItems - 1) / kItems, kSumThreads), args);
      launch("combine_weighted_sum", &weighted_sum_kernel<T, VEC, kRows, kItems>, blocks, kSumThreads, 0, device,
             stream, args);
    };
    constexpr std::integral_constant<int, 1> one;
    constexpr std::integral_constant<int, 2> two;
    if (args.top_k > 2)
      sum(std::integral_constant<int, 4>(), one);
    else if (args.tokens * columns >= kManyColumns)
      sum(two, two);
    else
      sum(two, one);
  }
}

constexpr int kGateWarps = 4;

/// The order of the sum follows from VEC alone, which follows from hidden: where addresses are not aligned (a step
/// tells x only now), packs are read one element at a time.
template <class T, int VEC>
__global__ void __launch_bounds__(kGateWarps * 32) shared_gate_kernel(const SharedGateArgs a) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kGateWarps + (threadIdx.x >> 5);
  if (token >= step_tokens(a.step, a.tokens)) return;
  const int lane = threadIdx.x & 31;
  const T* const x = static_cast<const T*>(a.step ? a.step->x : a.x);
  const T* const row = x + token * a.hidden;
  const T* const weight = static_cast<const T*>(a.weight);
  float acc = 0.f;
  const auto add = [&](const Pack<T, VEC>& p, const Pack<T, VEC>& q) {
#pragma unroll
    for (int c = 0; c < VEC; ++c) acc = fmaf(to_float(p.v[c]), to_float(q.v[c]), acc);
  };
  if (((reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(weight)) & (sizeof(Pack<T, VEC>) - 1)) == 0) {
#pragma unroll 4
    for (int64_t h = lane * VEC; h < a.hidden; h += 32 * VEC) add(load_pack<VEC>(row + h), load_pack<VEC>(weight + h));
  } else if constexpr (VEC > 1) {
    for (int64_t h = lane * VEC; h < a.hidden; h += 32 * VEC) {
      Pack<T, VEC> p, q;
#pragma unroll
      for (int c = 0; c < VEC; ++c) p.v[c] = row[h + c], q.v[c] = weight[h + c];
      add(p, q);
    }
  }
  acc = warp_sum(acc);
  if (lane == 0) a.scale[token] = sigmoid(acc);
}

}  // namespace

void combine(Stream& stream, const CombineArgs& args) {
  if (args.tokens == 0 || args.width == 0) return;
  const cudaStream_t s = handle(stream);
  with_type(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / sizeof(T);
    const bool whole = args.width % kVec == 0 && aligned16(args.rows) && aligned16(args.shared);
    const int device = stream.device().index;
    whole ? launch_combine<T, kVec>(args, device, s) : launch_combine<T, 1>(args, device, s);
    if (args.private_inputs && args.step == nullptr && args.mode == CombineMode::kWeightedSum)
      stream.settle_but(args.out, static_cast<size_t>(args.tokens * args.width) * sizeof(T));
  });
}

void shared_gate(Stream& stream, const SharedGateArgs& args) {
  if (args.tokens == 0) return;
  const cudaStream_t s = handle(stream);
  with_type(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kVec = 16 / sizeof(T);
    const unsigned blocks = grid_for(args.tokens, kGateWarps);
    if (args.hidden % kVec == 0)
      shared_gate_kernel<T, kVec><<<blocks, kGateWarps * 32, 0, s>>>(args);
    else
      shared_gate_kernel<T, 1><<<blocks, kGateWarps * 32, 0, s>>>(args);
    check_launch("shared_gate");
  });
}

}  // namespace nexus::cuda
