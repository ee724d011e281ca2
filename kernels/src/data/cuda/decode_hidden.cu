// The experts' first linear layer of a decode step (decode.h), with its activation.
//
//   hidden[s, :] = act(W1[e(s)] · x[s / top_k] (· weight[s]) + b1[e(s)])        for every slot s
//   bytes: slots · n · k weights.
//
// An item is four weight rows of a slot; neighbouring warps have neighbouring ones. Where there are more than warps
// have room, the grid leaves some on each SM for a block of decode_output.
#include <algorithm>
#include <type_traits>

#include "data/cuda/decode_rank.cuh"
#include "data/cuda/decode_rows.cuh"

namespace nexus::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kDecodeThreads, kDecodeBlocks)
    decode_hidden_kernel(const __grid_constant__ DecodeParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  const bool beside_route = p.ranked && !p.scale_input;
  if (!beside_route) wait_for_previous();
  release_next();
  const DecodeStep step(p);
  const int k = p.first.k, n = p.first.n, top_k = p.route.desc.top_k;
  const T* inputs = static_cast<const T*>(step.x);
  if (p.input != 0) {
    stage_rows_async(step.x, step.tokens * k * static_cast<int>(sizeof(T)), shared + p.input);
    inputs = reinterpret_cast<const T*>(shared + p.input);
  }
  find_experts(p, step, shared);
  wait_async<0>();
  __syncthreads();

  const int groups = n / kDecodeRows;  // k of the second layer is whole 16 bytes, so n is whole items
  const int first = static_cast<int>(blockIdx.x) * kDecodeWarps + (static_cast<int>(threadIdx.x) >> 5);
#pragma unroll 1
  for (int item = first; item < step.tokens * top_k * groups; item += static_cast<int>(gridDim.x) * kDecodeWarps) {
    const int slot = item / groups, column = (item - slot * groups) * kDecodeRows;
    const int expert = reinterpret_cast<const int*>(shared)[slot];
    WeightRows<T, kDecodeRows, kDecodeAhead> rows(
        static_cast<const T*>(p.first.weight) + (static_cast<int64_t>(expert) * n + column) * k, kDecodeRows - 1, k);
    float bias[kDecodeRows] = {};
    if (p.first.bias) {
      const float* const from = p.first.bias + static_cast<int64_t>(expert) * n + column;
#pragma unroll
      for (int r = 0; r < kDecodeRows; ++r) bias[r] = __ldg(from + r);
    }
    const float scale = p.scale_input ? __ldcg(p.route.weights + slot) : 1.f;
    float v[kDecodeRows] = {};
    rows.sum(inputs + static_cast<int64_t>(slot / top_k) * k, v);
#pragma unroll
    for (int r = 0; r < kDecodeRows; ++r) v[r] = warp_sum(v[r]);
    if ((threadIdx.x & 31) == 0) {
      finish_sums(scale, p.first.bias != nullptr, bias, static_cast<Epilogue>(p.epilogue), p.limit, p.alpha, v);
      T* const to = static_cast<T*>(p.hidden) + static_cast<int64_t>(slot) * p.second.k;
      const auto store = [&](T* at, auto count) {
        Pack<T, decltype(count)::value> pack;
#pragma unroll
        for (int i = 0; i < decltype(count)::value; ++i) pack.v[i] = from_float<T>(v[i]);
        store_pack<decltype(count)::value>(at, pack);
      };
      if (p.gated)
        store(to + column / 2, std::integral_constant<int, kDecodeRows / 2>{});
      else
        store(to + column, std::integral_constant<int, kDecodeRows>{});
    }
  }
  // decode_output takes route for complete when this kernel is.
  if (beside_route) wait_for_previous();
#endif
}

}  // namespace

void launch_decode_hidden(DType dtype, const DecodeParams& params, const Target& target, bool queue) {
  const int64_t items = params.route.tokens * params.route.desc.top_k * (params.first.n / kDecodeRows);
  const int64_t input = params.route.tokens * params.first.k * static_cast<int64_t>(size_of(dtype));
  DecodeParams p = params;
  const int end = static_cast<int>(decode_ranking(p.route.tokens, p.route.desc.experts));
  p.input = end + input <= kDecodeSharedBytes ? end : 0;
  const size_t shared = static_cast<size_t>(end + (p.input == 0 ? 0 : input));
  with_type(dtype, [&](auto zero) {
    static KernelFacts facts;
    const auto kernel = &decode_hidden_kernel<decltype(zero)>;
    // An item for every warp if all of them have room at once; else equally many for each of fewer warps than have
    // room, so that a block of decode_output has some, too.
    const unsigned all = grid_for(items, kDecodeWarps), width = static_cast<unsigned>(std::max(1, target.width));
    const unsigned most = (kDecodeBlocks - 1) * width, rounds = (all + most - 1) / most;
    const unsigned grid = all <= kDecodeBlocks * width ? all : (all + rounds - 1) / rounds;
    if (queue)
      launch("decode_hidden", kernel, grid, kDecodeThreads, shared, target.device, target.stream, p);
    else
      facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, kDecodeThreads, shared);
  });
}

}  // namespace nexus::cuda
