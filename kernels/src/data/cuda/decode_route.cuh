// What route() leaves, from what a block of a decode kernel has found out (decode_rank.cuh): the same bits, with the
// instructions of a few slots. The experts are ranked and their keys are near by, so that what is left of a token is
// one sum and a few weights, and a slot's place is a count over all slots.
#pragma once
#include "data/cuda/decode_rank.cuh"

namespace nexus::cuda {

/// weights[slot] of the token's slots, by one warp, behind find_experts(): route_token()'s, whose warp has the same
/// experts in the same lanes. Not for sparsemixer.
__device__ __forceinline__ void weigh_token(const DecodeParams& p, const DecodeStep& step, const unsigned char* shared,
                                            int token, float* weights) {
  const RouterDesc& d = p.route.desc;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const auto* const ids = reinterpret_cast<const int*>(shared) + token * d.top_k;
  const auto* const keys = reinterpret_cast<const unsigned*>(shared + p.keys) + token * decode_keys(d.experts);
  const bool active = lane < d.top_k;
  // By its key, which is near by: a load would wait behind the block's weights, for up to 3 µs. A key takes -0 for 0.
  float own = active ? value_of(keys[ids[lane]]) : -FLT_MAX;
  if (own == 0.f) own = sanitised(__ldcg(step.logits + static_cast<int64_t>(token) * d.experts + ids[lane]));
  float max = -FLT_MAX, sum = 1.f;
  if (d.score == Score::kSoftmax && d.weigh == Weigh::kScore) {
    max = value_of(keys[ids[0]]);
    float part = 0.f;
    for (int e = lane; e < d.experts; e += 32) part += expf(value_of(keys[e]) - max);
    sum = warp_sum(part);
  }
  const float weight = weigh<32>(d, active, own, 0.f, max, sum);
  if (active) weights[token * d.top_k + lane] = weight;
}

/// All of the step's routing to memory, by one block of `threads`, behind find_experts() and a barrier.
__device__ __forceinline__ void leave_routing(const DecodeParams& p, const DecodeStep& step, unsigned char* shared,
                                              float* weights) {
  const RouteParams& r = p.route;
  const int experts = r.desc.experts, slots = step.tokens * r.desc.top_k;
  const int thread = static_cast<int>(threadIdx.x);
  const RingSlot ring(r.ring);
#pragma unroll 1
  for (int token = thread >> 5; token < step.tokens; token += kDecodeWarps)
    weigh_token(p, step, shared, token, weights);
  __syncthreads();  // the keys have been read
  const auto* const ids = reinterpret_cast<const int*>(shared);
  auto* const counts = reinterpret_cast<int*>(shared + p.keys);
#pragma unroll 1
  for (int e = thread; e <= experts; e += kDecodeThreads) {
    int before = 0, own = 0;
    for (int s = 0; s < slots; ++s) before += ids[s] < e, own += ids[s] == e;
    r.offsets[e] = before;
    if (e < experts) r.counts[e] = counts[e] = own;
  }
  if (thread < slots) {
    const int id = ids[thread];
    int place = 0;
    for (int s = 0; s < slots; ++s) place += ids[s] < id || (ids[s] == id && s < thread);
    r.order[place] = thread;
    r.expert_ids[thread] = id;
    r.weights[thread] = weights[thread];
  }
  __syncthreads();
  ring.fill(step.tokens, counts, experts);
  if (thread == 0) ring.close(r.ring.counter);
}

}  // namespace nexus::cuda
