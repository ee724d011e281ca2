// Routing of four tokens by one warp, eight lanes a token: for up to 256 experts, top_k up to 8, no groups, and not
// sparsemixer. A warp per token (route_token.cuh) spends most of its instructions on finding one largest key after
// another with 32 lanes, and on weights that eight lanes hold; here the four tokens share those instructions.
//
// Lane q of a token has experts q, q + 8, q + 16, …: the lanes of route_token() whose partial sums meet first in its
// butterfly, so that the softmax's sum has the same bits. A key is one word: the upper bits of the logit (or score) in
// the order of their float32 values, and in the lower bits the expert, reversed, so that keys differ and the lower
// index wins among equals. Each lane sorts its keys and keeps eight, and three exchanges leave the token's best eight
// in every lane. Where the bits that are cut off could have decided (two neighbours of the result agree in the others,
// and some key of the token has such bits), the token is routed once more by route_token(): rare for float32 logits,
// never for logits of half precision.
#pragma once
#include "data/cuda/route_token.cuh"

namespace nexus::cuda {

constexpr int kQuadTokens = 4, kQuadTopK = 8, kQuadExperts = 256;

/// Whether the descriptor's tokens are routed so.
bool by_fours(const RouterDesc& d);
inline bool quad_fits(const RouterDesc& d) {
  return d.top_k <= kQuadTopK && d.experts <= kQuadExperts && d.groups == 1 && d.weigh != Weigh::kSparsemixer;
}

__device__ __forceinline__ void place_larger_first(unsigned& a, unsigned& b) {
  const unsigned larger = max(a, b);
  b = min(a, b);
  a = larger;
}

/// In descending order, by a network of 19 comparisons.
__device__ __forceinline__ void sort_eight(unsigned (&k)[8]) {
  constexpr int kNetwork[19][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}, {0, 4}, {1, 5}, {2, 6}, {3, 7}, {0, 1}, {2, 3},
                                   {4, 5}, {6, 7}, {2, 4}, {3, 5}, {1, 4}, {3, 6}, {1, 2}, {3, 4}, {5, 6}};
#pragma unroll
  for (int i = 0; i < 19; ++i) place_larger_first(k[kNetwork[i][0]], k[kNetwork[i][1]]);
}

/// The eight largest of `best` and `other`, all in descending order.
__device__ __forceinline__ void keep_eight(unsigned (&best)[8], const unsigned (&other)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) best[i] = max(best[i], other[7 - i]);  // bitonic
#pragma unroll
  for (int d = 4; d > 0; d >>= 1)
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if ((i & d) == 0) place_larger_first(best[i], best[i + d]);
}

__device__ __forceinline__ unsigned ordered_bits(float v) {
  const int bits = __float_as_int(v);
  return static_cast<unsigned>(bits) ^ (static_cast<unsigned>(bits >> 31) | 0x80000000u);
}

/// `logits`: those of the first of the warp's `tokens` (1 … 4) tokens. Lane 8t + j with j < top_k returns the id and
/// weight of token t's j-th expert. All 32 lanes take part. N: keys a lane, experts <= 8N.
template <int N>
__device__ __forceinline__ void route_quad(const RouteParams& p, const float* logits, int tokens, int& id,
                                           float& weight) {
  static_assert(N >= 4 && N <= kQuadExperts / 8);
  constexpr unsigned kAll = 0xffffffffu, kIndex = 8 * N - 1;
  const RouterDesc& d = p.desc;
  const int lane = threadIdx.x & 31, q = lane & 7, token = lane >> 3;
  const int experts = token < tokens ? d.experts : 0;  // lanes of a token that is not there: no experts
  const float* const row = logits + token * d.experts;
  float l[N];
  if (d.experts == 8 * N && tokens >= kQuadTokens) {
#pragma unroll
    for (int m = 0; m < N; ++m) l[m] = sanitised(row[q + 8 * m]);
  } else {
#pragma unroll
    for (int m = 0; m < N; ++m) l[m] = q + 8 * m < experts ? sanitised(row[q + 8 * m]) : -INFINITY;  // below all real
  }

  const bool by_logit = p.select_bias == nullptr;
  float bias[N];  // all on their way before the first is used
  if (!by_logit) {
#pragma unroll
    for (int m = 0; m < N; ++m) bias[m] = q + 8 * m < experts ? p.select_bias[q + 8 * m] : 0.f;
  }
  float max = -FLT_MAX, sum = 1.f;
  if (d.score == Score::kSoftmax && (!by_logit || d.weigh == Weigh::kScore)) {
#pragma unroll
    for (int m = 0; m < N; ++m) max = fmaxf(max, l[m]);
    max = group_max<8>(max);
    float part[4] = {0.f, 0.f, 0.f, 0.f};  // of lanes q, q + 8, q + 16, q + 24 of route_token()
#pragma unroll
    for (int m = 0; m < N; ++m) part[m & 3] += expf(l[m] - max);
    sum = group_sum<8>((part[0] + part[2]) + (part[1] + part[3]));
  }

  unsigned key[N], cut = 0;
  if (by_logit) {
#pragma unroll
    for (int m = 0; m < N; ++m) {
      const float v = l[m] + 0.f;  // -0 becomes 0
      cut |= __float_as_uint(v);
      key[m] = ordered_bits(v);
    }
  } else {
#pragma unroll
    for (int m = 0; m < N; ++m) {
      key[m] = 0;
      if (q + 8 * m >= experts) continue;
      const unsigned exact = key_of(score_of(d.score, l[m], max, sum) + bias[m]);
      cut |= __float_as_uint(value_of(exact));
      key[m] = exact;
    }
  }
  // Bits of the value, not of the key: those of a negative number are inverted in its key.
  const unsigned inexact = __ballot_sync(kAll, (cut & kIndex) != 0);

  unsigned best[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) best[i] = i < N ? (key[i] & ~kIndex) | (kIndex - q - 8 * i) : 0;
  sort_eight(best);
#pragma unroll
  for (int g = 8; g < N; g += 8) {
    unsigned more[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) more[i] = (key[g + i] & ~kIndex) | (kIndex - q - 8 * (g + i));
    sort_eight(more);
    keep_eight(best, more);
  }
  unsigned mine[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) mine[i] = best[i];
#pragma unroll
  for (int step = 1; step < 8; step <<= 1) {
    unsigned other[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) other[i] = __shfl_xor_sync(kAll, best[i], step);
    keep_eight(best, other);
  }
  unsigned own = best[0];
#pragma unroll
  for (int i = 1; i < 8; ++i)
    if (q == i) own = best[i];

  // Neighbours up to the first that is not chosen must differ in what was not cut off.
  const unsigned better = __shfl_up_sync(kAll, own, 1, 8);
  bool clear = q == 0 || q > d.top_k || (better & ~kIndex) > (own & ~kIndex);
  if (d.top_k == kQuadTopK) {
    const unsigned least = best[7] & ~kIndex;
    int reach = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) reach += mine[i] >= least;
    if (N > 8 && reach == 8) clear = false;  // more of this lane's keys, which it did not keep, may
#pragma unroll
    for (int step = 1; step < 8; step <<= 1) reach += __shfl_xor_sync(kAll, reach, step);
    if (reach != kQuadTopK) clear = false;
  }
  const unsigned unclear = __ballot_sync(kAll, !clear);

  id = static_cast<int>(kIndex - (own & kIndex));
  const bool active = token < tokens && q < d.top_k;
  weight = weigh<8>(d, active, active ? sanitised(row[id]) : -FLT_MAX, 0.f, max, sum);

  if (unclear == 0 || inexact == 0) return;
#pragma unroll 1
  for (int t = 0; t < tokens; ++t) {
    const unsigned lanes = 0xffu << (8 * t);
    if ((unclear & lanes) == 0 || (inexact & lanes) == 0) continue;
    int exact_id;
    float exact_weight;
    route_token<N / 4>(p, logits + t * d.experts, nullptr, exact_id, exact_weight);
    exact_id = __shfl_sync(kAll, exact_id, q);
    exact_weight = __shfl_sync(kAll, exact_weight, q);
    if (token == t) id = exact_id, weight = exact_weight;
  }
}

}  // namespace nexus::cuda
