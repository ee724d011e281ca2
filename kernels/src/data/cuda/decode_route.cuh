// What a block of a decode kernel finds out for itself: the step's pointers and tokens, their experts and weights, and
// a copy of the input rows near by. All of it is read past L1: decode_output does so while the kernel before it runs.
#pragma once
#include "data/cuda/decode.h"
#include "data/cuda/launch.h"
#include "data/cuda/mma.cuh"

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

/// Ids of all slots, without weights: an expert's place among a token's is the number of experts that go before it. All
/// of them count at once, which takes a third of the time of a warp that finds the best top_k times; and the weights'
/// addresses hang on it. A barrier of the block must follow.
__device__ __forceinline__ void rank_experts(const DecodeParams& p, const DecodeStep& step, unsigned char* shared) {
  const int experts = p.route.desc.experts, top_k = p.route.desc.top_k;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  auto* const ids = reinterpret_cast<int*>(shared + DecodeShared::kIds);
  auto* const keys = reinterpret_cast<unsigned*>(shared + DecodeShared::kScratch);  // [tokens][stride]
  const int stride = (experts + 3) / 4 * 4, parts = (experts + 31) / 32;
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

/// Ids and weights of all slots into shared memory: a warp a token. A barrier of the block must follow.
template <int PER>
__device__ __forceinline__ void route_tokens(const DecodeParams& p, const DecodeStep& step, unsigned char* shared) {
  const RouterDesc& d = p.route.desc;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (warp >= p.shared.route_warps) return;
  auto* const ids = reinterpret_cast<int*>(shared + DecodeShared::kIds);
  auto* const weights = reinterpret_cast<float*>(shared + DecodeShared::kWeights);
  auto* const logits = reinterpret_cast<float*>(shared + DecodeShared::kScratch) + warp * decode_scratch(d);
#pragma unroll 1
  for (int t = warp; t < step.tokens; t += p.shared.route_warps) {
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const int e = lane + 32 * i;
      if (e < d.experts) logits[e] = __ldcg(step.logits + static_cast<int64_t>(t) * d.experts + e);
    }
    __syncwarp();
    int id;
    float weight;
    route_token<PER>(p.route, logits, reinterpret_cast<unsigned*>(logits + d.experts), id, weight);
    if (lane < d.top_k) {
      ids[t * d.top_k + lane] = id;
      weights[t * d.top_k + lane] = weight;
    }
    __syncwarp();  // the next token's logits overwrite these
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

/// Copies `bytes`, a multiple of 16, to shared memory. A barrier of the block must follow.
__device__ __forceinline__ void stage_rows(const void* rows, int bytes, unsigned char* to) {
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += kDecodeThreads)
    reinterpret_cast<uint4*>(to)[i] = __ldcg(static_cast<const uint4*>(rows) + i);
}

/// What the router leaves for others to read: by one block, once `ids` and `weights` are there and nobody needs the
/// scratch any more. `ring` was made before the barrier that this follows.
__device__ __forceinline__ void keep_routing(const RouteParams& p, int tokens, unsigned char* shared,
                                             const RingSlot& ring) {
  const auto* const ids = reinterpret_cast<const int*>(shared + DecodeShared::kIds);
  const auto* const weights = reinterpret_cast<const float*>(shared + DecodeShared::kWeights);
  auto* const counts = reinterpret_cast<int*>(shared + DecodeShared::kScratch);
  const int slots = tokens * p.desc.top_k, experts = p.desc.experts, thread = static_cast<int>(threadIdx.x);
  if (thread < slots) {
    const int own = ids[thread];
    int place = 0;  // by expert, then by slot
    for (int s = 0; s < slots; ++s) place += ids[s] < own || (ids[s] == own && s < thread);
    p.expert_ids[thread] = own;
    p.weights[thread] = weights[thread];
    p.order[place] = thread;
  }
  for (int e = thread; e < experts; e += kDecodeThreads) {
    int count = 0, before = 0;
    for (int s = 0; s < slots; ++s) count += ids[s] == e, before += ids[s] < e;
    counts[e] = count;  // read again by this thread only
    p.counts[e] = count;
    p.offsets[e] = before;
  }
  if (thread == 0) p.offsets[experts] = slots;
  ring.fill(tokens, counts, experts);
  if (thread == kDecodeThreads - 1) ring.close(p.ring.counter);
}

}  // namespace nexus::cuda
