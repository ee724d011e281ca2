// What a block of a decode kernel finds out for itself, while kernels before this one may still run: the step's
// pointers and tokens, the tokens' experts, and a copy of the input rows near by. All of it is read past L1.
#pragma once
#include "data/cuda/decode.h"
#include "data/cuda/launch.h"
#include "data/cuda/mma.cuh"
#include "data/cuda/route_token.cuh"

namespace nexus::cuda {

struct DecodeStep {
  const void* x;
  const float* logits;
  void* out;
  int tokens;

  __device__ __forceinline__ explicit DecodeStep(const DecodeParams& p)
      : x(p.x), logits(p.route.logits), out(p.out), tokens(static_cast<int>(p.route.tokens)) {
    const StepBlock* const step = p.route.step;
    if (step == nullptr) return;
    const auto word = [](const auto& pointer) { return __ldcg(reinterpret_cast<const unsigned long long*>(&pointer)); };
    x = reinterpret_cast<const void*>(word(step->x));
    out = reinterpret_cast<void*>(word(step->out));
    if (logits == nullptr) logits = reinterpret_cast<const float*>(word(step->logits));
    tokens = max(0, min(tokens, __ldcg(&step->tokens)));
  }
};

/// The experts of all slots, for the block. Ranked: an expert's place among a token's is the number of experts that go
/// before it. All of them count at once, which takes a third of the time of a warp that finds the best top_k times.
/// Otherwise what route left, which must be complete. A barrier of the block must follow.
__device__ __forceinline__ void find_experts(const DecodeParams& p, const DecodeStep& step, unsigned char* shared) {
  const int experts = p.route.desc.experts, top_k = p.route.desc.top_k;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  auto* const ids = reinterpret_cast<int*>(shared);
  if (!p.ranked) {
    if (static_cast<int>(threadIdx.x) < step.tokens * top_k)
      ids[threadIdx.x] = __ldcg(p.route.expert_ids + threadIdx.x);
    return;
  }
  auto* const keys = reinterpret_cast<unsigned*>(shared + p.keys);  // [tokens][stride]
  const int stride = decode_keys(experts), parts = (experts + 31) / 32;
  // A warp has 32 experts of one token at a time.
#pragma unroll 1
  for (int i = warp; i < step.tokens * parts; i += kDecodeWarps) {
    const int token = i / parts, e = (i - token * parts) * 32 + lane;
    if (e < stride)
      keys[token * stride + e] =
          e < experts ? key_of(sanitised(__ldcg(step.logits + static_cast<int64_t>(token) * experts + e))) : 0u;
  }
  __syncthreads();
#pragma unroll 1
  for (int i = warp; i < step.tokens * parts; i += kDecodeWarps) {
    const int token = i / parts, first = (i - token * parts) * 32, e = first + lane;
    const auto* const all = reinterpret_cast<const uint4*>(keys + token * stride);
    const unsigned own = e < experts ? keys[token * stride + e] : 0xffffffffu;
    const int words = stride / 4, from = first / 4, to = min(words, from + 8);
    int before = 0;  // equal keys: the lower index goes first
#pragma unroll 4
    for (int q = 0; q < from; ++q) {
      const uint4 k = all[q];
      before += (k.x >= own) + (k.y >= own) + (k.z >= own) + (k.w >= own);
    }
#pragma unroll 4
    for (int q = from; q < to; ++q) {
      const uint4 k = all[q];
      const int left = e - 4 * q;  // so many of the word go before this expert where they are equal
      before += (k.x > own || (k.x == own && left > 0)) + (k.y > own || (k.y == own && left > 1)) +
                (k.z > own || (k.z == own && left > 2)) + (k.w > own || (k.w == own && left > 3));
    }
#pragma unroll 4
    for (int q = to; q < words; ++q) {
      const uint4 k = all[q];
      before += (k.x > own) + (k.y > own) + (k.z > own) + (k.w > own);
    }
    if (e < experts && before < top_k) ids[token * top_k + before] = e;
  }
}

/// Copies `bytes`, a multiple of 16, to shared memory while the threads go on. wait_async<0>() and a barrier of the
/// block must follow.
__device__ __forceinline__ void stage_rows_async(const void* rows, int bytes, unsigned char* to) {
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(to));
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += kDecodeThreads)
    copy16_async(target + 16 * i, static_cast<const uint4*>(rows) + i, true);
  commit_async();
}

}  // namespace nexus::cuda
