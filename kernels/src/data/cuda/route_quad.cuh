// Routing of four tokens by one warp, eight lanes a token: for up to 256 experts, top_k up to 8, no groups, and not
// sparsemixer. A warp per token (route_token.cuh) spends most of its instructions on finding one largest key after
// another with 32 lanes, and on weights that eight lanes hold; here the four tokens share those instructions.
//
// Lane q of a token has experts 4q … 4q + 3, and those 32, 64, … further: four to a load, and all experts of lanes
// 4q … 4q + 3 of route_token(), so that the softmax's sum can have the same bits (sum_of_lanes()). A key is one word:
// the upper bits of the logit (or score) in the order of their float32 values, and in the lower bits the expert,
// reversed, so that keys differ and the lower index wins among equals. Each lane sorts its keys and keeps eight, and
// three exchanges leave the token's j-th best in lane j (best_of_lanes()). Where the bits that are cut off could have
// decided (two neighbours of the result agree in the others, and some key of the warp has such bits), decide_exactly()
// compares whole keys: rare for float32 logits, never for logits of half precision. It has to be short all the same: of
// a thousand tokens with 128 experts about one needs it, and a launch takes as long as its slowest warp.
//
// Minima, maxima and logic run at half the rate of floating-point arithmetic and are what a warp is bound by; hence
// the exchanges that share the sorting among lanes, and sanitise() in place of two clamps a logit.
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

/// Of two keys of which another lane keeps the other one.
__device__ __forceinline__ unsigned keep(bool smaller, unsigned a, unsigned b) {
  return smaller ? min(a, b) : max(a, b);
}

/// The (q + 1)-th largest of the keys of eight lanes, each with KEYS (4 or 8) in descending order. Two sorted lists
/// that are merged leave the same keys in both of their lanes, so from then on each of the two keeps one half of them:
/// eight keys in lanes of eight, pairs of lanes with four each, and so on. Bit 2 of a key's place is bit 2 of its lane
/// after the first exchange, bit 1 is bit 1 after the second, and bit 0 is bit 0 after the third.
template <int KEYS>
__device__ __forceinline__ unsigned best_of_lanes(const unsigned (&mine)[KEYS], int q) {
  static_assert(KEYS == 4 || KEYS == 8);
  constexpr unsigned kAll = 0xffffffffu;
  unsigned eight[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const unsigned other = 7 - i < KEYS ? __shfl_xor_sync(kAll, mine[(7 - i) % KEYS], 4) : 0;
    eight[i] = i < KEYS ? max(mine[i % KEYS], other) : other;  // bitonic
  }
  unsigned four[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = keep(q & 4, eight[i], eight[i + 4]);
  place_larger_first(four[0], four[2]);
  place_larger_first(four[1], four[3]);
  place_larger_first(four[0], four[1]);
  place_larger_first(four[2], four[3]);

  unsigned merged[4];  // with place 7 - p of the other pair's eight
#pragma unroll
  for (int i = 0; i < 4; ++i) merged[i] = max(four[i], __shfl_xor_sync(kAll, four[3 - i], 6));
#pragma unroll
  for (int i = 0; i < 4; ++i) merged[i] = keep(q & 4, merged[i], __shfl_xor_sync(kAll, merged[i], 4));
  unsigned two[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) two[i] = keep(q & 2, merged[i], merged[i + 2]);
  place_larger_first(two[0], two[1]);

  unsigned last[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) last[i] = max(two[i], __shfl_xor_sync(kAll, two[1 - i], 7));
#pragma unroll
  for (int i = 0; i < 2; ++i) last[i] = keep(q & 4, last[i], __shfl_xor_sync(kAll, last[i], 4));
#pragma unroll
  for (int i = 0; i < 2; ++i) last[i] = keep(q & 2, last[i], __shfl_xor_sync(kAll, last[i], 2));
  return keep(q & 1, last[0], last[1]);
}

__device__ __forceinline__ unsigned ordered_bits(float v) {
  const int bits = __float_as_int(v);
  return static_cast<unsigned>(bits) ^ (static_cast<unsigned>(bits >> 31) | 0x80000000u);
}

/// Clamps the logits where one is not finite: a product with 0 is then a NaN.
template <int N>
__device__ __forceinline__ void sanitise(float (&l)[N]) {
  float zero[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
  for (int m = 0; m < N; ++m) zero[m & 3] = fmaf(l[m], 0.f, zero[m & 3]);
  if ((zero[0] + zero[1]) + (zero[2] + zero[3]) == 0.f) return;
#pragma unroll
  for (int m = 0; m < N; ++m) l[m] = sanitised(l[m]);
}

/// The sum over eight lanes of four partial sums each, those of lanes 4q … 4q + 3 of route_token(), with the bits of
/// its warp_sum(). Of two lanes that exchange sums, each goes on with one half of them.
__device__ __forceinline__ float sum_of_lanes(const float (&part)[4], int q) {
  constexpr unsigned kAll = 0xffffffffu;
  const bool upper = q & 4, odd = q & 2;
  float two[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    two[i] = (upper ? part[i + 2] : part[i]) + __shfl_xor_sync(kAll, upper ? part[i] : part[i + 2], 4);
  float one = (odd ? two[1] : two[0]) + __shfl_xor_sync(kAll, odd ? two[0] : two[1], 2);
#pragma unroll
  for (int i = 0; i < 3; ++i) one += __shfl_xor_sync(kAll, one, i == 0 ? 1 : 8 >> i);
  return one;
}

/// The experts of the warp's tokens by whole keys: exact(e) is expert e's, the lower index wins among equals. `id` is
/// lane q's by the keys' upper bits alone; `least` the upper bits of the last that is chosen, `split` whether a key
/// that is not chosen shares them, `above` how many chosen ones have more.
template <class Exact>
__device__ __forceinline__ int decide_exactly(int experts, int top_k, int id, unsigned least, unsigned upper, int above,
                                              bool split, Exact&& exact) {
  constexpr unsigned kAll = 0xffffffffu;
  const int q = threadIdx.x & 7;
  // Which of those that share the last one's upper bits are chosen: the best, the next best, …
  unsigned last = 0xffffffffu;
  int last_id = -1, place = split ? above : top_k;
#pragma unroll 1
  while (__any_sync(kAll, place < top_k)) {
    unsigned best = 0, winner = 0xffffffffu;
    if (place < top_k) {
#pragma unroll 4
      for (int e = q; e < experts; e += 8) {
        const unsigned key = exact(e);
        if ((key & upper) == least && key > best && (key < last || (key == last && e > last_id)))
          best = key, winner = e;
      }
    }
    unsigned top = best;
#pragma unroll
    for (int step = 1; step < 8; step <<= 1) top = max(top, __shfl_xor_sync(kAll, top, step));
    if (best != top) winner = 0xffffffffu;
#pragma unroll
    for (int step = 1; step < 8; step <<= 1) winner = min(winner, __shfl_xor_sync(kAll, winner, step));
    last = top, last_id = static_cast<int>(winner);
    if (q == place) id = last_id;
    ++place;
  }
  // And their order.
  const unsigned key = q < top_k && experts > 0 ? exact(id) : 0;
  int rank = 0, decided = id;
#pragma unroll
  for (int step = 1; step < 8; ++step) {
    const unsigned other = __shfl_xor_sync(kAll, key, step);
    const int other_id = __shfl_xor_sync(kAll, id, step);
    rank += other > key || (other == key && other_id < id);
  }
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    const int other_rank = __shfl_xor_sync(kAll, rank, step), other_id = __shfl_xor_sync(kAll, id, step);
    if (other_rank == q) decided = other_id;
  }
  return decided;
}

/// The expert of key m of a token's lane q.
__device__ __forceinline__ int quad_expert(int m, int q) { return m / 4 * 32 + 4 * q + m % 4; }

/// Whether the rows are read by fours, and as they are.
template <int N>
__device__ __forceinline__ bool quad_rows_whole(const RouterDesc& d, const float* logits, int tokens) {
  return d.experts == 8 * N && tokens >= kQuadTokens && reinterpret_cast<uintptr_t>(logits) % 16 == 0;
}

/// The logits of the lane's experts for route_quad(): whole rows not sanitised yet, else -INFINITY, below all real
/// ones, for what is not there.
template <int N>
__device__ __forceinline__ void load_quad(const RouterDesc& d, const float* logits, int tokens, float (&l)[N]) {
  const int lane = threadIdx.x & 31, q = lane & 7, token = lane >> 3;
  const float* const row = logits + token * d.experts;
  if (quad_rows_whole<N>(d, logits, tokens)) {
#pragma unroll
    for (int m = 0; m < N; m += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + quad_expert(m, q));
      l[m] = four.x, l[m + 1] = four.y, l[m + 2] = four.z, l[m + 3] = four.w;
    }
  } else {
    const int experts = token < tokens ? d.experts : 0;
#pragma unroll
    for (int m = 0; m < N; ++m) l[m] = quad_expert(m, q) < experts ? sanitised(row[quad_expert(m, q)]) : -INFINITY;
  }
}

/// `logits`: those of the first of the warp's `tokens` (1 … 4) tokens, `l` what load_quad() has read of them. Lane
/// 8t + j with j < top_k returns the id and weight of token t's j-th expert; `l` becomes that of the warp's next
/// tokens, on its way while these are sorted, if there are any. All 32 lanes take part. N: keys a lane, experts <= 8N.
template <int N>
__device__ __forceinline__ void route_quad(const RouteParams& p, const float* logits, int tokens,
                                           const float* next_logits, int next_tokens, float (&l)[N], int& id,
                                           float& weight) {
  static_assert(N >= 4 && N <= kQuadExperts / 8);
  constexpr unsigned kAll = 0xffffffffu, kIndex = 8 * N - 1;
  const RouterDesc& d = p.desc;
  const int lane = threadIdx.x & 31, q = lane & 7, token = lane >> 3;
  const int experts = token < tokens ? d.experts : 0;  // lanes of a token that is not there: no experts
  const float* const row = logits + token * d.experts;
  const auto expert = [q](int m) { return quad_expert(m, q); };
  if (quad_rows_whole<N>(d, logits, tokens)) sanitise(l);

  const bool by_logit = p.select_bias == nullptr;
  float bias[N];  // all on their way before the first is used
  if (!by_logit) {
#pragma unroll
    for (int m = 0; m < N; ++m) bias[m] = expert(m) < experts ? p.select_bias[expert(m)] : 0.f;
  }
  float max = -FLT_MAX, sum = 1.f;
  if (d.score == Score::kSoftmax && (!by_logit || d.weigh == Weigh::kScore)) {
#pragma unroll
    for (int m = 0; m < N; ++m) max = fmaxf(max, l[m]);
    max = group_max<8>(max);
    float part[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int m = 0; m < N; ++m) part[m & 3] += expf(l[m] - max);
    sum = sum_of_lanes(part, q);
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
      if (expert(m) >= experts) continue;
      const unsigned exact = key_of(score_of(d.score, l[m], max, sum) + bias[m]);
      cut |= __float_as_uint(value_of(exact));
      key[m] = exact;
    }
  }
  // Bits of the value, not of the key: those of a negative number are inverted in its key.
  const unsigned inexact = __ballot_sync(kAll, (cut & kIndex) != 0);

  if (next_tokens > 0) load_quad(d, next_logits, next_tokens, l);

  constexpr int kKept = N < 8 ? 4 : 8;
  unsigned mine[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) mine[i] = i < N ? (key[i % N] & ~kIndex) | (kIndex - expert(i)) : 0;
  sort_eight(mine);
#pragma unroll
  for (int g = 8; g < N; g += 8) {
    unsigned more[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) more[i] = (key[g + i] & ~kIndex) | (kIndex - expert(g + i));
    sort_eight(more);
    keep_eight(mine, more);
  }
  unsigned kept[kKept];
#pragma unroll
  for (int i = 0; i < kKept; ++i) kept[i] = mine[i];
  const unsigned own = best_of_lanes(kept, q);

  // Neighbours among the chosen must differ in what was not cut off, and the last of them from all that are not chosen.
  const unsigned better = __shfl_up_sync(kAll, own, 1, 8);
  const bool same = (better & ~kIndex) == (own & ~kIndex);
  bool split = same && q == d.top_k;
  if (d.top_k == kQuadTopK) {
    const unsigned eighth = __shfl_sync(kAll, own, 7, 8), least = eighth & ~kIndex;
    if (N > 8) split = kept[kKept - 1] >= least;  // more of this lane's keys, which it did not keep, may
#pragma unroll
    for (int i = 0; i < kKept; ++i) split = split || kept[i] - least < eighth - least;
  }
  const bool there = token < tokens;
  const unsigned unclear = __ballot_sync(kAll, there && (split || (same && q > 0 && q < d.top_k)));

  id = static_cast<int>(kIndex - (own & kIndex));
  if (unclear != 0 && inexact != 0) {
    const unsigned lanes = 0xffu << (8 * token), least = __shfl_sync(kAll, own, d.top_k - 1, 8) & ~kIndex;
    const bool splits = (__ballot_sync(kAll, there && split) & lanes) != 0;
    const int above = __popc(__ballot_sync(kAll, (own & ~kIndex) > least) & lanes);
    id = decide_exactly(experts, d.top_k, id, least, ~kIndex, above, splits, [&](int e) {
      const float v = sanitised(row[e]);
      return key_of(by_logit ? v : score_of(d.score, v, max, sum) + p.select_bias[e]);
    });
  }
  const bool active = there && q < d.top_k;
  weight = weigh<8>(d, active, active ? sanitised(row[id]) : -FLT_MAX, 0.f, max, sum);
}

}  // namespace nexus::cuda
