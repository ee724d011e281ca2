// The second launch of a decode step (decode.h): the experts' second linear layer and the weighted sum over a token's
// experts.
//
//   y[t, c] = Σ_j weight[t, j] · round(W2[e(t, j)][c, :] · hidden[t, j] + b2[e(t, j)][c])        slot by slot
//   bytes: slots · n · k weights.
//
// A unit is four columns of a token; each block has a contiguous run of units, and its warps take the experts' items of
// them in turn. Sums of up to eight units meet in shared memory, rounded to the layer's dtype as the chain stores its
// rows.
#include <algorithm>

#include "data/cuda/decode_ring.cuh"
#include "data/cuda/decode_route.cuh"

namespace nexus::cuda {
/// Item i of the block: unit i / top_k of its run, the token's expert i mod top_k.
struct OutputItems {
  int first, stride, count;
  int begin;  // the block's first unit
  int groups, top_k, n;
  const int* ids;
  const char* weight;
  int row_bytes;

  struct Place {
    int slot, column;
  };
  __device__ __forceinline__ Place place(int item) const {
    const int local = item / top_k, unit = begin + local, token = unit / groups;
    return {token * top_k + item - local * top_k, (unit - token * groups) * kDecodeRows};
  }
  __device__ __forceinline__ void locate(int item, const char*& row, int& rows) const {
    const Place at = place(item);
    row = weight + (static_cast<int64_t>(ids[at.slot]) * n + at.column) * row_bytes;
    rows = min(kDecodeRows, n - at.column);
  }
};

namespace {

template <class T, int PER>
__global__ void __launch_bounds__(kDecodeThreads, 2) decode_output_kernel(const __grid_constant__ DecodeParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char shared[];
  const int k = p.second.k, n = p.second.n, top_k = p.route.desc.top_k, row_bytes = k * static_cast<int>(sizeof(T));
  // All blocks of decode_hidden have passed their wait, so the step and its logits are settled: the route, and with it
  // the first weights, need not wait for the end of that kernel.
  init_rings(shared);
  const DecodeStep step(p);
  p.ranked ? rank_experts(p, step, shared) : route_tokens<PER>(p, step, shared);
  __syncthreads();

  const auto* const ids = reinterpret_cast<const int*>(shared + DecodeShared::kIds);
  auto* const weights = reinterpret_cast<float*>(shared + DecodeShared::kWeights);
  const int groups = decode_items(n), warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t units = static_cast<int64_t>(step.tokens) * groups;
  const int begin = static_cast<int>(units * blockIdx.x / gridDim.x);
  const int end = static_cast<int>(units * (blockIdx.x + 1) / gridDim.x);
  const OutputItems items{warp,     kDecodeWarps, (end - begin) * top_k,
                          begin,    groups,       top_k,
                          n,        ids,          static_cast<const char*>(p.second.weight),
                          row_bytes};
  WeightRing<OutputItems> ring(items, shared, row_bytes);

  wait_for_previous();
  release_next();
  if (static_cast<int>(threadIdx.x) < step.tokens * top_k)  // read behind the barriers below
    weights[threadIdx.x] = __ldcg(p.route.weights + threadIdx.x);
  const T* inputs = static_cast<const T*>(p.hidden);
  if (p.shared.input != 0) {
    stage_rows(p.hidden, step.tokens * top_k * row_bytes, shared + p.shared.input);
    inputs = reinterpret_cast<const T*>(shared + p.shared.input);
    __syncthreads();
  }

  auto* const results = reinterpret_cast<float*>(shared + p.shared.results);  // [units][top_k][columns]
  int item = items.first;
#pragma unroll 1
  for (int from = begin; from < end; from += kDecodeUnits) {
    const int to = min(from + kDecodeUnits, end), base = (from - begin) * top_k;
#pragma unroll 1
    for (; item < (to - begin) * top_k; item += items.stride) {
      const OutputItems::Place at = items.place(item);
      const int column = at.column + lane;  // lane r ends the sum of row r
      const bool ends = lane < kDecodeRows && column < n;
      float bias[1] = {0.f};
      if (p.second.bias && ends) bias[0] = __ldg(p.second.bias + static_cast<int64_t>(ids[at.slot]) * n + column);
      float v[kDecodeRows] = {};
      ring.sum(inputs + static_cast<int64_t>(at.slot) * k, v);
      float own[1] = {0.f};
#pragma unroll
      for (int r = 0; r < kDecodeRows; ++r) {
        v[r] = warp_sum(v[r]);
        if (lane == r) own[0] = v[r];
      }
      finish_sums(1.f, p.second.bias != nullptr, bias, Epilogue::kIdentity, 0.f, 0.f, own);
      if (ends) results[(item - base) * kDecodeRows + lane] = to_float(from_float<T>(own[0]));
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < (to - from) * kDecodeRows) {
      const int unit = from + static_cast<int>(threadIdx.x) / kDecodeRows, token = unit / groups;
      const int local = static_cast<int>(threadIdx.x) % kDecodeRows;
      const int column = (unit - token * groups) * kDecodeRows + local;
      if (column < n) {
        const float* const sums = results + (unit - from) * top_k * kDecodeRows + local;
        float acc = 0.f;
#pragma unroll 4
        for (int j = 0; j < top_k; ++j)
          acc = fmaf(p.scale_input ? 1.f : weights[token * top_k + j], sums[j * kDecodeRows], acc);
        static_cast<T*>(step.out)[static_cast<int64_t>(token) * n + column] = from_float<T>(acc);
      }
    }
    if (to < end) __syncthreads();  // the next units' sums overwrite these
  }
#endif
}

}  // namespace

void launch_decode_output(DType dtype, const DecodeParams& params, const Target& target, bool queue) {
  const int64_t units = params.route.tokens * decode_items(params.second.n);
  with_type(dtype, [&](auto zero) {
    with_decode_experts(params.route.desc.experts, [&](auto per) {
      const auto kernel = &decode_output_kernel<decltype(zero), decltype(per)::value>;
      static KernelFacts facts;
      facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, kDecodeThreads,
                                      kOutputSharedBytes, true);
      if (!queue) return;
      const auto grid = static_cast<unsigned>(std::min<int64_t>(units, std::max(1, target.width)));
      launch("decode_output", kernel, grid, kDecodeThreads, static_cast<size_t>(params.shared.bytes), target.device,
             target.stream, params);
    });
  });
}

}  // namespace nexus::cuda
