// The first launch of a decode step (decode.h): routing, and the experts' first linear layer with its activation.
//
//   hidden[s, :] = act(W1[e(s)] · x[s / top_k] (· weight[s]) + b1[e(s)])        for every slot s
//   bytes: slots · n · k weights.
//
// Items of four weight rows go round the warps of all blocks but the first, so neighbouring warps read neighbouring
// rows. Block 0 leaves what the router leaves, the weights among it, which takes it longer than the others take to find
// the experts: none of them waits for it.
#include <algorithm>

#include "data/cuda/decode_ring.cuh"
#include "data/cuda/decode_route.cuh"

namespace nexus::cuda {
/// Item i: rows 4·(i mod groups) of slot i / groups. `k` is the shared width of rows, so every group is whole.
struct HiddenItems {
  int first, stride, count;
  int groups;
  const int* ids;
  const char* weight;
  int64_t expert_bytes, group_bytes;

  __device__ __forceinline__ void locate(int item, const char*& row, int& rows) const {
    const int slot = item / groups;
    row = weight + ids[slot] * expert_bytes + (item - slot * groups) * group_bytes;
    rows = kDecodeRows;
  }
};

namespace {

template <class T, int PER>
__global__ void __launch_bounds__(kDecodeThreads, 2) decode_hidden_kernel(const __grid_constant__ DecodeParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  if (blockIdx.x == 0) {
    wait_for_previous();
    release_next();
    const DecodeStep step(p);
    const RingSlot counts_ring(p.route.ring);
    route_tokens<PER>(p, step, shared);
    __syncthreads();
    keep_routing(p.route, step.tokens, shared, counts_ring);
    return;
  }
  init_rings(shared);
  wait_for_previous();
  release_next();
  const DecodeStep step(p);
  const int k = p.first.k, n = p.first.n, top_k = p.route.desc.top_k, row_bytes = k * static_cast<int>(sizeof(T));
  // Before the weights: behind them they would wait as long as those.
  const T* inputs = static_cast<const T*>(step.x);
  if (p.shared.input != 0) {
    stage_rows_async(step.x, step.tokens * row_bytes, shared + p.shared.input);
    inputs = reinterpret_cast<const T*>(shared + p.shared.input);
  }
  p.ranked ? rank_experts(p, step, shared) : route_tokens<PER>(p, step, shared);
  wait_async<0>();
  __syncthreads();

  const auto* const ids = reinterpret_cast<const int*>(shared + DecodeShared::kIds);
  const auto* const weights = reinterpret_cast<const float*>(shared + DecodeShared::kWeights);
  const int groups = n / kDecodeRows, warp = threadIdx.x >> 5, blocks = static_cast<int>(gridDim.x) - 1;
  const HiddenItems items{warp * blocks + static_cast<int>(blockIdx.x) - 1,
                          kDecodeWarps * blocks,
                          step.tokens * top_k * groups,
                          groups,
                          ids,
                          static_cast<const char*>(p.first.weight),
                          static_cast<int64_t>(n) * row_bytes,
                          static_cast<int64_t>(kDecodeRows) * row_bytes};
  WeightRing<HiddenItems> ring(items, shared, row_bytes);

  if (p.ranked && p.scale_input) {  // meanwhile the first weights come
    route_tokens<PER>(p, step, shared);
    __syncthreads();
  }

#pragma unroll 1
  for (int item = items.first; item < items.count; item += items.stride) {
    const int slot = item / groups, column = (item - slot * groups) * kDecodeRows;
    float bias[kDecodeRows] = {};
    if (p.first.bias) {
      const float* const from = p.first.bias + static_cast<int64_t>(ids[slot]) * n + column;
#pragma unroll
      for (int r = 0; r < kDecodeRows; ++r) bias[r] = __ldg(from + r);
    }
    float v[kDecodeRows] = {};
    ring.sum(inputs + static_cast<int64_t>(slot / top_k) * k, v);
#pragma unroll
    for (int r = 0; r < kDecodeRows; ++r) v[r] = warp_sum(v[r]);
    if ((threadIdx.x & 31) != 0) continue;
    finish_sums(p.scale_input ? weights[slot] : 1.f, p.first.bias != nullptr, bias, static_cast<Epilogue>(p.epilogue),
                p.limit, p.alpha, v);
    T* const to = static_cast<T*>(p.hidden) + static_cast<int64_t>(slot) * p.second.k;
    const auto store = [&](auto* at, auto count) {
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
#endif
}

}  // namespace

void launch_decode_hidden(DType dtype, const DecodeParams& params, const Target& target, bool queue) {
  const int64_t slots = params.route.tokens * params.route.desc.top_k;
  const int64_t blocks = (slots * decode_items(params.first.n) + kDecodeWarps - 1) / kDecodeWarps;
  with_type(dtype, [&](auto zero) {
    with_decode_experts(params.route.desc.experts, [&](auto per) {
      const auto kernel = &decode_hidden_kernel<decltype(zero), decltype(per)::value>;
      static KernelFacts facts;
      // Room for decode_output's block beside it.
      facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, kDecodeThreads,
                                      kHiddenSharedBytes, true);
      if (!queue) return;
      const auto grid = static_cast<unsigned>(std::min<int64_t>(blocks, std::max(1, target.width)));
      launch("decode_hidden", kernel, grid + 1, kDecodeThreads, static_cast<size_t>(params.shared.bytes), target.device,
             target.stream, params);
    });
  });
}

}  // namespace nexus::cuda
