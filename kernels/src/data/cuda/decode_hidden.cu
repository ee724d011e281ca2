// The experts' first linear layer of a decode step (decode.h), with its activation.
//
//   hidden[s, :] = act(W1[e(s)] · x[s / top_k] (· weight[s]) + b1[e(s)])        for every slot s
//   bytes: slots · n · k weights.
//
// An item is four weight rows of a slot (two where there are few, or where they are long); neighbouring warps have
// neighbouring ones. Where there are more than warps have room, the grid leaves some on each SM for a block of
// decode_output; not so of long rows, which all warps of the chip together read in order. In panels a warp asks for its
// next item's first weights behind its last ones.
#include <algorithm>
#include <type_traits>

#include "data/cuda/decode_rank.cuh"
#include "data/cuda/decode_stream.cuh"

namespace nexus::cuda {
namespace {

template <class T, class Form>
__global__ void __launch_bounds__(kDecodeThreads, Form::BLOCKS)
    decode_hidden_kernel(const __grid_constant__ DecodeParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int ROWS = Form::ROWS;
  wait_for_previous();
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
  // Not before: blocks of decode_output that rank beside would hold these up.
  release_next();

  const int groups = n / ROWS;  // k of the second layer is whole 16 bytes, so n is whole items
  const int first = static_cast<int>(blockIdx.x) * kDecodeWarps + (static_cast<int>(threadIdx.x) >> 5);
  const int items = step.tokens * top_k * groups, stride = static_cast<int>(gridDim.x) * kDecodeWarps;
  if (first >= items) return;
  const typename Form::Rows::Places places{k, n, p.gated};
  const auto begin_of = [&](int item) {
    const int slot = item / groups, expert = reinterpret_cast<const int*>(shared)[slot];
    return places.first(p.first.weight, expert, (item - slot * groups) * ROWS);
  };
  const auto sum_item = [&](int item, auto& rows) {
    const int slot = item / groups, column = (item - slot * groups) * ROWS;
    const int expert = reinterpret_cast<const int*>(shared)[slot];
    float bias[ROWS] = {};
    if (p.first.bias) {
      const float* const from = p.first.bias + static_cast<int64_t>(expert) * n + column;
#pragma unroll
      for (int r = 0; r < ROWS; ++r) bias[r] = __ldg(from + r);
    }
    const float scale = p.scale_input ? __ldcg(p.route.weights + slot) : 1.f;
    float v[ROWS] = {};
    const T* const input = inputs + static_cast<int64_t>(slot / top_k) * k;
    if constexpr (Form::STREAMED || Form::RUNS_ON)
      rows.sum(input, v, [&] { return item + stride < items ? begin_of(item + stride) : nullptr; });
    else
      rows.sum(input, v);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) v[r] = warp_sum(v[r]);
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
        store(to + column / 2, std::integral_constant<int, ROWS / 2>{});
      else
        store(to + column, std::integral_constant<int, ROWS>{});
    }
  };
  if constexpr (Form::STREAMED || Form::RUNS_ON) {
    typename Form::Rows rows(begin_of(first), ROWS - 1, places);
#pragma unroll 1
    for (int item = first; item < items; item += stride) sum_item(item, rows);
  } else {
#pragma unroll 1
    for (int item = first; item < items; item += stride) {
      typename Form::Rows rows(begin_of(item), ROWS - 1, places);
      sum_item(item, rows);
    }
  }
#endif
}

template <class T, class Form>
void launch_items(const DecodeParams& p, const Target& target, size_t shared, bool queue) {
  static KernelFacts facts;
  const auto kernel = &decode_hidden_kernel<T, Form>;
  // An item for every warp if all of them have room at once; else equally many for each of fewer warps than have
  // room, so that a block of decode_output has some, too.
  const int64_t items = p.route.tokens * p.route.desc.top_k * (p.first.n / Form::ROWS);
  const unsigned all = grid_for(items, kDecodeWarps), width = static_cast<unsigned>(std::max(1, target.width));
  const unsigned most = (kDecodeBlocks - 1) * width, rounds = (all + most - 1) / most;
  const unsigned grid = Form::STREAMED                 ? std::min(all, Form::BLOCKS * width)
                        : all <= kDecodeBlocks * width ? all
                                                       : (all + rounds - 1) / rounds;
  if (queue)
    launch("decode_hidden", kernel, grid, kDecodeThreads, shared, target.device, target.stream, p);
  else
    facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, kDecodeThreads, shared);
}

}  // namespace

void launch_decode_hidden(DType dtype, const DecodeParams& params, const Target& target, bool queue) {
  const int64_t slots = params.route.tokens * params.route.desc.top_k;
  const int64_t input = params.route.tokens * params.first.k * static_cast<int64_t>(size_of(dtype));
  DecodeParams p = params;
  const int end = static_cast<int>(decode_ranking(p.route.tokens, p.route.desc.experts));
  p.input = end + input <= kDecodeSharedBytes ? end : 0;
  const size_t shared = static_cast<size_t>(end + (p.input == 0 ? 0 : input));
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    if (is_streamed(dtype, p.first, 16)) return launch_items<T, Streamed<T, 16, 2>>(p, target, shared, queue);
    const bool few = slots * p.first.n <= kFewHiddenRows;
    if constexpr (sizeof(T) == 2)  // float32 spills
      if (!few && is_streamed(dtype, p.first, 8, kLongHiddenBytes))
        return launch_items<T, Streamed<T, 8, kDecodeBlocks>>(p, target, shared, queue);
    with_panels<T>(p.first, [&](auto panels) {
      if (few)
        launch_items<T, SideBySide<T, 2, panels.value>>(p, target, shared, queue);
      else if constexpr (panels.value)
        launch_items<T, RunOn<T, kDecodeRows, true>>(p, target, shared, queue);
      else
        launch_items<T, SideBySide<T, kDecodeRows, false>>(p, target, shared, queue);
    });
  });
}

}  // namespace nexus::cuda
