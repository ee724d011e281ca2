// The experts' second linear layer of a decode step (decode.h), and the weighted sum over a token's experts.
//
//   y[t, c] = Σ_j weight[t, j] · round(W2[e(t, j)][c, :] · hidden[t, j] + b2[e(t, j)][c])        slot by slot
//   bytes: slots · n · k weights.
//
// A unit is four columns of a token (one or two where there are few, two where rows are long); a block has a few units,
// and its warps take their experts' items in turn. Where blocks would come in waves, each has so many that all have
// their places at once, and a warp asks for its next item's first weights behind its last ones. Sums meet in shared
// memory, rounded to the layer's dtype as the chain stores its rows. Where the blocks rank, the first one leaves what
// the router does instead.
#include <algorithm>

#include "data/cuda/decode_route.cuh"
#include "data/cuda/decode_stream.cuh"

namespace nexus::cuda {
namespace {

template <class T, class Form>
__global__ void __launch_bounds__(kDecodeThreads, Form::BLOCKS)
    decode_output_kernel(const __grid_constant__ DecodeParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ float weights[kDecodeSlots];
  __shared__ void* out;  // in registers it pushes others to the stack
  constexpr int ROWS = Form::ROWS;
  const int k = p.second.k, n = p.second.n, top_k = p.route.desc.top_k;
  const int warp = static_cast<int>(threadIdx.x) >> 5, lane = static_cast<int>(threadIdx.x) & 31;
  // All that is older than decode_hidden is settled.
  const DecodeStep step(p);
  if (threadIdx.x == 0) out = step.out;
  find_experts(p, step, shared);
  __syncthreads();
  if (p.ranked && blockIdx.x == 0) return leave_routing(p, step, shared, weights);

  const auto* const ids = reinterpret_cast<const int*>(shared);
  auto* const results = reinterpret_cast<float*>(shared + p.input);  // [units][top_k][columns]
  const int groups = decode_items(n, ROWS), begin = (static_cast<int>(blockIdx.x) - (p.ranked ? 1 : 0)) * p.units;
  const int units = max(0, min(p.units, step.tokens * groups - begin)), items = units * top_k;
  const auto wait = [&] {
    if (p.ranked) {  // the weights of the block's tokens, by its last warps first
#pragma unroll 1
      for (int token = begin / groups + kDecodeWarps - 1 - warp; units > 0 && token * groups < begin + units;
           token += kDecodeWarps)
        weigh_token(p, step, shared, token, weights);
    }
    wait_for_previous();
    if (!p.ranked && static_cast<int>(threadIdx.x) < step.tokens * top_k)
      weights[threadIdx.x] = __ldcg(p.route.weights + threadIdx.x);
  };
  const typename Form::Rows::Places places{k, n, false};
  const auto begin_of = [&](int item) {
    const int unit = begin + item / top_k, token = unit / groups;
    return places.first(p.second.weight, ids[token * top_k + item % top_k], (unit - token * groups) * ROWS);
  };
  const auto sum_item = [&](int item, auto& rows) {
    const int unit = begin + item / top_k, token = unit / groups, column = (unit - token * groups) * ROWS;
    const int slot = token * top_k + item % top_k, expert = ids[slot];
    if (item == warp) wait();                            // behind its first weights
    const bool ends = lane < ROWS && column + lane < n;  // lane r ends the sum of row r
    float bias[1] = {0.f}, v[ROWS] = {}, own[1] = {0.f};
    if (p.second.bias && ends) bias[0] = __ldg(p.second.bias + static_cast<int64_t>(expert) * n + column + lane);
    const T* const input = static_cast<const T*>(p.hidden) + static_cast<int64_t>(slot) * k;
    if constexpr (Form::RUNS_ON)
      rows.sum(input, v, [&] { return item + kDecodeWarps < items ? begin_of(item + kDecodeWarps) : nullptr; });
    else
      rows.sum(input, v);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      v[r] = warp_sum(v[r]);
      if (lane == r) own[0] = v[r];
    }
    finish_sums(1.f, p.second.bias != nullptr, bias, Epilogue::kIdentity, 0.f, 0.f, own);
    if (ends) results[item * ROWS + lane] = to_float(from_float<T>(own[0]));
  };
  if constexpr (Form::RUNS_ON) {
    if (warp < items) {
      typename Form::Rows rows(begin_of(warp), ROWS - 1, places);
#pragma unroll 1
      for (int item = warp; item < items; item += kDecodeWarps) sum_item(item, rows);
    }
  } else {
#pragma unroll 1
    for (int item = warp; item < items; item += kDecodeWarps) {
      typename Form::Rows rows(begin_of(item), min(ROWS, n - (begin + item / top_k) % groups * ROWS) - 1, places);
      sum_item(item, rows);
    }
  }
  if (warp >= items) wait();
  __syncthreads();
  release_next();
  for (int i = static_cast<int>(threadIdx.x); i < units * ROWS; i += kDecodeThreads) {
    const int local = i / ROWS, unit = begin + local, token = unit / groups;
    const int column = (unit - token * groups) * ROWS + i % ROWS;
    if (column >= n) continue;
    const float* const sums = results + local * top_k * ROWS + i % ROWS;
    float acc = 0.f;
#pragma unroll 4
    for (int j = 0; j < top_k; ++j) acc = fmaf(p.scale_input ? 1.f : weights[token * top_k + j], sums[j * ROWS], acc);
    static_cast<T*>(out)[static_cast<int64_t>(token) * n + column] = from_float<T>(acc);
  }
#endif
}

/// Of columns, `rows` each, that a block has at least: an item for every warp, unless there are so few that they had
/// better spread over all SMs.
int least_units(const DecodeParams& p, int rows, int width) {
  const int64_t units = p.route.tokens * decode_items(p.second.n, rows), spread = units / (2 * width);
  return static_cast<int>(std::clamp<int64_t>(spread, 1, std::max(1, kDecodeWarps / p.route.desc.top_k)));
}

/// How often blocks of least_units() would take all places, rounded up where that is more than one and a third; less
/// leaves too many of them empty.
int waves(const DecodeParams& p, int rows, int width) {
  const int64_t places = kDecodeBlocks * width - (p.ranked ? 1 : 0);
  const int64_t blocks = grid_for(p.route.tokens * decode_items(p.second.n, rows), least_units(p, rows, width));
  return 3 * blocks < 4 * places ? 1 : static_cast<int>((blocks + places - 1) / places);
}

template <class T, class Form>
void launch_units(DecodeParams p, const Target& target, bool queue) {
  constexpr int ROWS = Form::ROWS;
  static KernelFacts facts;
  const auto kernel = &decode_output_kernel<T, Form>;
  const int top_k = p.route.desc.top_k, width = std::max(1, target.width);
  const int64_t units = p.route.tokens * decode_items(p.second.n, ROWS);
  p.units = least_units(p, ROWS, width);
  if (Form::RUNS_ON)  // all at once, and none has to come and rank when another one ends
    p.units *= std::min(waves(p, ROWS, width), std::max(1, kDecodeSlots / (p.units * top_k)));
  p.input = static_cast<int>(decode_ranking(p.route.tokens, p.route.desc.experts));
  const size_t shared = static_cast<size_t>(p.input) + sizeof(float) * static_cast<size_t>(p.units * top_k * ROWS);
  const unsigned blocks = grid_for(units, p.units) + (p.ranked ? 1 : 0);
  if (queue)
    launch("decode_output", kernel, blocks, kDecodeThreads, shared, target.device, target.stream, p);
  else
    facts.blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device, kDecodeThreads, shared);
}

}  // namespace

void launch_decode_output(DType dtype, const DecodeParams& params, const Target& target, bool queue) {
  const int64_t rows = params.route.tokens * params.route.desc.top_k * params.second.n;
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    const bool long_rows = rows <= kFewLongRows && params.second.k >= kDecodeLoads * 32 * kChunk<T>;
    if (!long_rows && is_streamed(dtype, params.second, 8))
      return launch_units<T, Streamed<T, 8, kDecodeBlocks>>(params, target, queue);
    with_panels<T>(params.second, [&](auto panels) {
      constexpr bool PANELS = panels.value;
      constexpr int ROWS = kDecodeRows;
      if (long_rows) return launch_units<T, SideBySide<T, 1, PANELS>>(params, target, queue);
      if (rows <= kFewOutputRows) return launch_units<T, SideBySide<T, 2, PANELS>>(params, target, queue);
      if constexpr (PANELS) {
        const bool few = rows <= kFewPanelRows && params.second.k * static_cast<int64_t>(sizeof(T)) >= kLongBytes;
        if (few) return launch_units<T, RunOn<T, 2, true>>(params, target, queue);
        launch_units<T, RunOn<T, ROWS, true>>(params, target, queue);  // in panels all items are whole
      } else if (params.second.n % ROWS == 0 && waves(params, ROWS, std::max(1, target.width)) > 1) {
        launch_units<T, RunOn<T, ROWS, false>>(params, target, queue);
      } else {
        launch_units<T, SideBySide<T, ROWS, false>>(params, target, queue);
      }
    });
  });
}

}  // namespace nexus::cuda
