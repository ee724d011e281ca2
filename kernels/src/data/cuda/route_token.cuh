// Routing of one token by one warp: score → select → weigh → normalise (the rules are in nexus/router.h).
//
// Expert e = lane + 32·i is register i of lane e % 32, so any count up to 32·PER fits. Selection works on keys: 32-bit
// integers in the order of the float32 values (−0 = +0), 0 for 'taken or not there'. The largest key is one warp
// maximum, the lowest index among equals one warp minimum. The chosen experts' values are read again from the logits
// (they are in L1), so that no register is indexed by a run-time value.
#pragma once
#include <cfloat>

#include "data/cuda/convert.cuh"
#include "data/cuda/step.cuh"
#include "nexus/router.h"

namespace nexus::cuda {

struct RouteParams {
  RouterDesc desc;
  const float* logits;  // null: the step's
  const float* select_bias;
  int64_t tokens;  // with a step the upper bound
  const StepBlock* step;
  CountRingView ring;
  int32_t* expert_ids;
  float* weights;
  int32_t* counts;
  int32_t* offsets;
  int32_t* order;
  int32_t* workspace;  // [chunks, histogram_stride()] histograms (route_large.cu)
  int chunk_tokens;    // of a block
  bool few_weights;    // see RouteArgs
  int chunks;
  unsigned per_top_k;  // ceil(2^32 / top_k), 0 for 1: see token_of()
  bool settled;        // what is read here is older than the kernel before, see Stream::settled()
  int32_t* ready;      // see RouteArgs
};

__device__ __forceinline__ float sanitised(float l) {
  return fminf(fmaxf(l, -FLT_MAX), FLT_MAX);  // the maximum of a NaN and a number is the number
}

__device__ __forceinline__ unsigned key_of(float v) {
  v = isnan(v) ? -FLT_MAX : (v == 0.f ? 0.f : v);
  const unsigned bits = __float_as_uint(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;  // never 0: that would be a NaN's bits
}
__device__ __forceinline__ float value_of(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ float score_of(Score score, float l, float max, float sum) {
  if (score == Score::kSoftmax) return __fdiv_rn(expf(l - max), sum);
  if (score == Score::kSigmoid) return __fdiv_rn(1.f, 1.f + expf(-l));
  return l;
}

/// Sum or maximum over groups of LANES neighbouring lanes, by a butterfly. Where the other lanes of a warp hold zeros,
/// the sum of eight lanes has the bits of warp_sum().
template <int LANES>
__device__ __forceinline__ float group_sum(float v) {
#pragma unroll
  for (int d = LANES / 2; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
template <int LANES>
__device__ __forceinline__ float group_max(float v) {
#pragma unroll
  for (int d = LANES / 2; d > 0; d >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
  return v;
}

/// Steps 3 and 4 for a token whose chosen experts lie in the first lanes of LANES: the weight of the expert whose logit
/// is `own`, -FLT_MAX in the lanes that are not active. `max`, `sum`: the softmax's. `mixed`: sparsemixer's weight.
template <int LANES>
__device__ __forceinline__ float weigh(const RouterDesc& d, bool active, float own, float mixed, float max, float sum) {
  float weight = mixed;
  if (d.weigh == Weigh::kScore) {
    weight = score_of(d.score, own, max, sum);
  } else if (d.weigh == Weigh::kSigmoidChosen) {
    weight = score_of(Score::kSigmoid, own, 0.f, 1.f);
  } else if (d.weigh == Weigh::kSoftmaxChosen) {
    const float top = group_max<LANES>(own);
    const float value = active ? expf(own - top) : 0.f;
    weight = __fdiv_rn(value, group_sum<LANES>(value));
  }
  if (d.normalize != Normalize::kNone) {
    const float total = group_sum<LANES>(active ? weight : 0.f);
    weight = __fdiv_rn(weight, d.normalize == Normalize::kSumPlusEpsilon ? total + d.epsilon : fmaxf(total, d.epsilon));
  }
  return weight * d.scale;
}

/// The lowest index of the largest key over the warp; `best` becomes that key (0: all are gone).
template <int PER>
__device__ __forceinline__ int largest(const unsigned (&key)[PER], int lane, unsigned& best) {
  unsigned mine = 0;
#pragma unroll
  for (int i = 0; i < PER; ++i) mine = max(mine, key[i]);
  best = __reduce_max_sync(0xffffffffu, mine);
  unsigned index = 0xffffffffu;
#pragma unroll
  for (int i = PER - 1; i >= 0; --i)
    if (key[i] == best) index = lane + 32 * i;
  return static_cast<int>(__reduce_min_sync(0xffffffffu, index));
}

/// Leaves only the keys of the best keep_groups groups. `group_key`: this warp's [groups] words of shared memory.
template <int PER>
__device__ __forceinline__ void keep_best_groups(const RouterDesc& d, unsigned (&key)[PER], int lane,
                                                 unsigned* group_key) {
  const int size = d.experts / d.groups;
  for (int g = 0; g < d.groups; ++g) {
    const int first = g * size, last = first + size;
    unsigned mine[PER];
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const int e = lane + 32 * i;
      mine[i] = e >= first && e < last ? key[i] : 0u;
    }
    unsigned best;
    const int index = largest(mine, lane, best);
    if (d.group_value == GroupValue::kTopTwoSum && size > 1) {
#pragma unroll
      for (int i = 0; i < PER; ++i)
        if (lane + 32 * i == index) mine[i] = 0;
      unsigned second;
      largest(mine, lane, second);
      best = key_of(value_of(best) + value_of(second));
    }
    if (lane == 0) group_key[g] = best;
  }
  __syncwarp();
  for (int round = 0; round < d.keep_groups; ++round) {
    unsigned best = 0, index = 0xffffffffu;
    for (int g = lane; g < d.groups; g += 32)
      if (group_key[g] > best) best = group_key[g], index = g;  // ascending g: the lowest of equals
    const unsigned top = __reduce_max_sync(0xffffffffu, best);
    const unsigned winner = __reduce_min_sync(0xffffffffu, best == top ? index : 0xffffffffu);
    __syncwarp();
    if (lane == 0) group_key[winner] = 0;  // 0 from now on says 'kept'
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const int e = lane + 32 * i;
    if (e < d.experts && group_key[e / size] != 0) key[i] = 0;
  }
  __syncwarp();
}

/// What the launch routes, behind wait_for_previous().
struct RouteInput {
  const float* logits;
  int64_t tokens;
  __device__ __forceinline__ explicit RouteInput(const RouteParams& p)
      : logits(p.logits || !p.step ? p.logits : p.step->logits), tokens(step_tokens(p.step, p.tokens)) {
    __builtin_assume(__isGlobal(logits));  // which the compiler cannot know of an address that it reads
  }
};

/// `logits`: the token's. Lane j < top_k returns the j-th expert's id and weight. All 32 lanes take part.
template <int PER>
__device__ __forceinline__ void route_token(const RouteParams& p, const float* logits, unsigned* group_key, int& id,
                                            float& weight) {
  const RouterDesc& d = p.desc;
  const int lane = threadIdx.x & 31;
  float l[PER];
  float max = -FLT_MAX;
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const int e = lane + 32 * i;
    l[i] = e < d.experts ? sanitised(logits[e]) : -FLT_MAX;
    max = fmaxf(max, l[i]);
  }

  // Without a bias and sums of two, the order of the scores is the order of the logits.
  const bool by_logit = p.select_bias == nullptr && !(d.groups > 1 && d.group_value == GroupValue::kTopTwoSum);
  float sum = 1.f;
  if (d.score == Score::kSoftmax && (!by_logit || d.weigh == Weigh::kScore)) {
    max = warp_max(max);
    float part = 0.f;
#pragma unroll
    for (int i = 0; i < PER; ++i)
      if (lane + 32 * i < d.experts) part += expf(l[i] - max);
    sum = warp_sum(part);
  }
  unsigned key[PER];
#pragma unroll
  for (int i = 0; i < PER; ++i) {
    const int e = lane + 32 * i;
    float v = l[i];
    if (!by_logit && e < d.experts) {
      v = score_of(d.score, l[i], max, sum);
      if (p.select_bias) v += p.select_bias[e];
    }
    key[i] = e < d.experts ? key_of(v) : 0u;
  }
  if (d.groups > 1) keep_best_groups(d, key, lane, group_key);

  id = 0;
  weight = 0.f;
  for (int j = 0; j < d.top_k; ++j) {
    unsigned best;
    const int chosen = largest(key, lane, best);
    if (d.weigh == Weigh::kSparsemixer) {
      const float top = sanitised(logits[chosen]);
      float part = 0.f;
#pragma unroll
      for (int i = 0; i < PER; ++i) {
        const float ratio = (top - l[i]) / fmaxf(fabsf(l[i]), top);
        if (key[i] != 0 && !(ratio > 2.f * d.jitter)) part += expf(l[i] - top);
      }
      const float total = warp_sum(part);
      if (lane == j) weight = 1.f / total;
    }
#pragma unroll
    for (int i = 0; i < PER; ++i)
      if (lane + 32 * i == chosen) key[i] = 0;
    if (lane == j) id = chosen;
  }

  const bool active = lane < d.top_k;
  weight = weigh<32>(d, active, active ? sanitised(logits[id]) : -FLT_MAX, weight, max, sum);
}

}  // namespace nexus::cuda
