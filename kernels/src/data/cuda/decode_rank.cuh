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

/// The experts of all slots, for the block. Ranked: by a warp for each token, which compares as little as it can, since
/// the memory waits for it on all of the chip. Of the lanes' largest keys the top_k-th is a bound: only what is not
/// below it, hardly more than top_k, can be chosen, and an expert's place is the number of those that go before it.
/// Mostly these are lanes' largest keys and a few lanes' second ones, none equal, whose places are counted at once.
/// Otherwise what route left, which must be complete. A barrier of the block must follow.
__device__ __forceinline__ void find_experts(const DecodeParams& p, const DecodeStep& step, unsigned char* shared) {
  constexpr unsigned kAll = 0xffffffffu;
  const int experts = p.route.desc.experts, top_k = p.route.desc.top_k;
  const int lane = static_cast<int>(threadIdx.x) & 31, warp = static_cast<int>(threadIdx.x) >> 5;
  auto* const ids = reinterpret_cast<int*>(shared);
  if (!p.ranked) {
    if (static_cast<int>(threadIdx.x) < step.tokens * top_k)
      ids[threadIdx.x] = __ldcg(p.route.expert_ids + threadIdx.x);
    return;
  }
  const int stride = decode_keys(experts);
  auto* const all = reinterpret_cast<unsigned*>(shared + p.keys);  // [tokens][stride]
  unsigned* const near =
      all + static_cast<int>(p.route.tokens) * stride + warp * decode_list(experts);  // keys not below the bound
  int* const near_id = reinterpret_cast<int*>(near + decode_list(experts) / 2);
#pragma unroll 1
  for (int token = warp; warp < kRankWarps && token < step.tokens; token += kRankWarps) {
    unsigned* const keys = all + token * stride;
    const float* const logits = step.logits + static_cast<int64_t>(token) * experts;
    unsigned largest = 0, second = 0, third = 0;  // of the lane
    int id = 0, second_id = 0;
#pragma unroll 4
    for (int e = lane; e < experts; e += 32) {
      const unsigned key = key_of(sanitised(__ldcg(logits + e)));
      keys[e] = key;
      largest = max(largest, key);
    }
    near[lane] = largest;  // at least 32 words
    largest = 0;
#pragma unroll 2  // its own loop: in the one above it costs the kernel registers that its weights need
    for (int e = lane; e < experts; e += 32) {
      const unsigned key = keys[e];
      if (key > largest)
        third = second, second = largest, second_id = id, largest = key, id = e;
      else if (key > second)
        third = second, second = key, second_id = e;
      else
        third = max(third, key);
    }
    __syncwarp();
    int before = 0;
#pragma unroll
    for (int q = 0; q < 8; ++q) {
      const uint4 k = reinterpret_cast<const uint4*>(near)[q];
      before += (k.x > largest) + (k.y > largest) + (k.z > largest) + (k.w > largest);
    }
    const unsigned bound = __reduce_min_sync(kAll, before < top_k ? largest : kAll);
    const unsigned others = __ballot_sync(kAll, second >= bound);
    if (top_k < 32 && __popc(others) <= 4) {
      int second_before = top_k;
#pragma unroll 1
      for (unsigned left = others; left != 0; left &= left - 1) {
        const int from = __ffs(static_cast<int>(left)) - 1;
        const unsigned key = __shfl_sync(kAll, second, from);
        const int place = __popc(__ballot_sync(kAll, largest > key)) + __popc(__ballot_sync(kAll, second > key));
        before += key > largest;
        if (lane == from) second_before = place;
      }
      // Equal keys have the same place. So the next one stays free, or for the last place there is one too many.
      const unsigned places =
          third >= bound ? kAll
                         : (before < top_k ? 1u << before : 0u) | (second_before < top_k ? 1u << second_before : 0u);
      const int chosen =
          __popc(__ballot_sync(kAll, before < top_k)) + __popc(__ballot_sync(kAll, second_before < top_k));
      if (chosen == top_k && __reduce_or_sync(kAll, places) == (1u << top_k) - 1) {
        if (before < top_k) ids[token * top_k + before] = id;
        if (second_before < top_k) ids[token * top_k + second_before] = second_id;
        __syncwarp();
        continue;
      }
    }
    __syncwarp();
    int count = 0;  // ascending experts
#pragma unroll 4
    for (int e = lane; e - lane < experts; e += 32) {
      const unsigned key = e < experts ? keys[e] : 0u;
      const unsigned votes = __ballot_sync(kAll, key >= bound);
      const int at = count + __popc(votes & ((1u << lane) - 1));
      if (key >= bound) near[at] = key, near_id[at] = e;
      count += __popc(votes);
    }
    __syncwarp();
#pragma unroll 1
    for (int own = lane; own < count; own += 32) {
      const unsigned key = near[own];
      int place = 0;  // equal keys: the lower index goes first
#pragma unroll 4
      for (int other = 0; other < count; ++other) {
        const unsigned k = near[other];
        place += k > key || (k == key && other < own);
      }
      if (place < top_k) ids[token * top_k + place] = near_id[own];
    }
    __syncwarp();
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
