// logits[t, e] = x[t, :] · W[e, :] (+ bias[e]), float32 accumulation and result. x [tokens, hidden], W [experts,
// hidden]. 2·tokens·experts·hidden flop; bytes: x and W once, tokens·experts·4 out.
//
// Up to kFewTokens tokens it is bound by latency and L2: a warp takes two experts and eight tokens (one and two for
// decode), each lane every 32nd 8-element chunk of hidden in ascending order, a butterfly at the end. Up to kSplitTo,
// and where x and W are of one half-precision type, tensor cores with k split among eight blocks (router_split.cu).
// Otherwise a dense matrix product: the grouped kernels with one expert and a float32 output (tensor cores, or FFMA
// where either type is float32).
//
// With a step, x and the number of tokens are read on the device, and the grid is that of the bound: blocks past the
// last token leave.
#include "data/backend.h"
#include "data/cuda/arch.h"
#include "data/cuda/check.h"
#include "data/cuda/convert.cuh"
#include "data/cuda/grouped.h"
#include "data/cuda/router_split.h"

namespace nexus::cuda {
namespace {

constexpr int kFewTokens = kSplitFrom - 1;
constexpr int kWarps = 4;

template <class TX, class TW, int VEC, int kExpertsPerWarp, int kTokensPerWarp>
__global__ void __launch_bounds__(kWarps * 32)
    few_tokens_kernel(const TX* __restrict__ x, const TW* __restrict__ weight, const float* __restrict__ bias,
                      int tokens, int hidden, int experts, float* __restrict__ logits,
                      const StepBlock* __restrict__ step) {
  if (step != nullptr) {
    x = static_cast<const TX*>(step->x);
    tokens = min(tokens, step->tokens);
  }
  const int lane = threadIdx.x & 31;
  const int first_expert = (blockIdx.x * kWarps + (threadIdx.x >> 5)) * kExpertsPerWarp;
  const int first_token = blockIdx.y * kTokensPerWarp;
  if (first_expert >= experts || first_token >= tokens) return;
  float acc[kExpertsPerWarp][kTokensPerWarp] = {};
  // Rows past the end are read as the last row and not stored: no branches in the loop.
  const TW* w_row[kExpertsPerWarp];
#pragma unroll
  for (int e = 0; e < kExpertsPerWarp; ++e)
    w_row[e] = weight + static_cast<int64_t>(min(first_expert + e, experts - 1)) * hidden;
  const TX* x_row[kTokensPerWarp];
#pragma unroll
  for (int t = 0; t < kTokensPerWarp; ++t)
    x_row[t] = x + static_cast<int64_t>(min(first_token + t, tokens - 1)) * hidden;
  constexpr int kUnroll = kTokensPerWarp <= 2 ? 4 : 2;  // loads in flight, against registers
#pragma unroll kUnroll
  for (int h = lane * VEC; h < hidden; h += 32 * VEC) {  // VEC > 1 only where it divides hidden
    Pack<TW, VEC> w[kExpertsPerWarp];
    Pack<TX, VEC> v[kTokensPerWarp];
#pragma unroll
    for (int e = 0; e < kExpertsPerWarp; ++e) w[e] = load_pack<VEC>(w_row[e] + h);
#pragma unroll
    for (int t = 0; t < kTokensPerWarp; ++t) v[t] = load_pack<VEC>(x_row[t] + h);
#pragma unroll
    for (int e = 0; e < kExpertsPerWarp; ++e)
#pragma unroll
      for (int t = 0; t < kTokensPerWarp; ++t)
#pragma unroll
        for (int i = 0; i < VEC; ++i) acc[e][t] = fmaf(to_float(w[e].v[i]), to_float(v[t].v[i]), acc[e][t]);
  }
#pragma unroll
  for (int e = 0; e < kExpertsPerWarp; ++e)
#pragma unroll
    for (int t = 0; t < kTokensPerWarp; ++t) {
      const float sum = warp_sum(acc[e][t]);
      const int expert = first_expert + e, token = first_token + t;
      if (lane == 0 && expert < experts && token < tokens)
        logits[static_cast<int64_t>(token) * experts + expert] = sum + (bias ? bias[expert] : 0.f);
    }
}

template <class TX, class TW, int VEC, int EXPERTS, int TOKENS>
void launch_few_shape(const RouterLogitsArgs& args, cudaStream_t stream) {
  const dim3 grid((args.experts + kWarps * EXPERTS - 1) / (kWarps * EXPERTS),
                  static_cast<unsigned>((args.tokens + TOKENS - 1) / TOKENS));
  few_tokens_kernel<TX, TW, VEC, EXPERTS, TOKENS><<<grid, kWarps * 32, 0, stream>>>(
      static_cast<const TX*>(args.x), static_cast<const TW*>(args.weight), args.bias, static_cast<int>(args.tokens),
      static_cast<int>(args.hidden), args.experts, args.logits, args.step);
  check_launch("router_logits_few_tokens");
}

int64_t choice_tokens(const RouterLogitsArgs& args) {
  return args.choice_tokens > 0 ? args.choice_tokens : args.tokens;
}

/// Rows of x and of the weight start at multiples of 16 bytes. For a step's x, whoever writes the block answers.
bool rows_aligned(const RouterLogitsArgs& args) {
  return args.hidden % 8 == 0 && (args.step || aligned16(args.x)) && aligned16(args.weight);
}

template <class TX, class TW>
void launch_few(const RouterLogitsArgs& args, cudaStream_t stream) {
  constexpr int kVec = sizeof(TX) == 2 && sizeof(TW) == 2 ? 8 : 4;
  if (!rows_aligned(args)) return launch_few_shape<TX, TW, 1, 2, 8>(args, stream);
  if (choice_tokens(args) <= 4) return launch_few_shape<TX, TW, kVec, 1, 2>(args, stream);
  launch_few_shape<TX, TW, kVec, 2, 8>(args, stream);
}

}  // namespace

void router_logits(Stream& stream, const RouterLogitsArgs& args) {
  if (args.tokens == 0) return;
  if (args.tokens > 0x7fffffff || args.hidden > 0x7fffff00)
    throw_unsupported("tokens, hidden: got " + std::to_string(args.tokens) + ", " + std::to_string(args.hidden) +
                      ", expected less than 2^31");
  const Target to = target(stream);
  const cudaStream_t s = to.stream;
  const bool same = args.x_dtype == args.weight_dtype;
  if (choice_tokens(args) <= kFewTokens) {
    if (args.x_dtype == DType::kF32) return launch_few<float, float>(args, s);
    if (args.x_dtype == DType::kBF16)
      return same ? launch_few<__nv_bfloat16, __nv_bfloat16>(args, s) : launch_few<__nv_bfloat16, float>(args, s);
    return same ? launch_few<__half, __half>(args, s) : launch_few<__half, float>(args, s);
  }
  if (same && args.x_dtype != DType::kF32 && rows_aligned(args) && choice_tokens(args) <= kSplitTo) {
    const bool clusters = hopper_path(to.device) && !stream.in_slice() && !stream.share_sm();
    return launch_router_split(args, choice_tokens(args), clusters, to);
  }
  GroupedParams p{};
  p.input = args.x, p.weight = args.weight, p.bias = args.bias, p.output = args.logits;
  p.k = args.hidden, p.n = args.experts, p.max_rows = args.tokens;
  p.experts = 1, p.rows_per_input = 1, p.output_f32 = true;
  p.step = args.step;
  if (args.step) p.offsets = args.step->dense;  // an address in device memory, read there
  p.vector_store = args.experts % 8 == 0 && aligned16(args.logits);
  if (args.x_dtype == DType::kF32) return launch_simt_f32(kSimt64, p, to);
  if (!same) return launch_simt_router(args.x_dtype, p, to);
  // n = 1 in choose(): never a tile of 128 rows, which would leave most of the chip idle on so narrow a product.
  const Variant& variant = choose(args.x_dtype, p.k, 1, 1, choice_tokens(args), rows_aligned(args),
                                  device_facts(to.device).shared_memory_limit);
  if (args.x_dtype == DType::kBF16)
    launch_mma_bf16(variant, p, to);
  else
    launch_mma_f16(variant, p, to);
}

}  // namespace nexus::cuda
