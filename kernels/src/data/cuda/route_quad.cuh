// Routing of four tokens by one warp, eight lanes a token: for up to 256 experts, top_k up to 8, no groups, and not
// sparsemixer. A warp per token (route_token.cuh) spends most of its instructions on finding one largest key after
// another with 32 lanes, and on weights that eight lanes hold; here the four tokens share those instructions.
//
// Lane q of a token has experts 4q … 4q + 3, and those 32, 64, … further: four to a load, and all experts of lanes
// 4q … 4q + 3 of route_token(), so that the softmax's sum can have the same bits (sum_of_lanes()). A key is one word:
// in the upper bits the logit's (or score's) place among those of its token (KeyScale), and in the lower bits the
// expert, reversed, so that keys differ and the lower index wins among equals. Each lane sorts its keys and keeps
// eight, and three exchanges leave the token's j-th best in lane j (best_of_lanes()). Values that are very close to one
// another share a place. So the chosen ones' values must be found in descending order, and no key that is not chosen
// may share the last one's place; else resolve() decides by the values: rare, about one token in 50 000 of normal
// logits.
//
// Minima, maxima and logic run at half the rate of floating-point arithmetic and are what a warp is bound by; hence
// the exchanges that share the sorting among lanes, keys that are made without them, and sanitise() in place of two
// clamps a logit.
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

/// max(a + b, c): one instruction from compute capability 9.0 on.
__device__ __forceinline__ unsigned max_of_sum(unsigned a, unsigned b, unsigned c) { return __viaddmax_u32(a, b, c); }

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

/// The experts of the warp's tokens by their values: exact(v) orders those of value(e), the lower index wins among
/// equals. `id` is lane q's by the keys alone; `least` the upper bits of the last key that is chosen, near(v) those of
/// a value's, `split` whether a key that is not chosen shares them, `above` how many chosen ones have more.
template <class Value, class Near>
__device__ __forceinline__ int decide_exactly(int experts, int top_k, int id, unsigned least, int above, bool split,
                                              Value&& value, Near&& near) {
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
        const float v = value(e);
        const unsigned key = key_of(v);
        if (near(v) == least && key > best && (key < last || (key == last && e > last_id))) best = key, winner = e;
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
  const unsigned key = q < top_k && experts > 0 ? key_of(value(id)) : 0;
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

/// This thread's lane, anew in each round of a loop: what follows from it would else be worked out before the loop, for
/// paths that are hardly ever taken, and wait in registers.
__device__ __forceinline__ int fresh_lane() {
  int lane = threadIdx.x & 31;
  asm volatile("" : "+r"(lane));
  return lane;
}

/// Whether the rows are read by fours, and as they are.
template <int N>
__device__ __forceinline__ bool quad_rows_whole(const RouterDesc& d, const float* logits, int tokens) {
  return d.experts == 8 * N && tokens >= kQuadTokens && reinterpret_cast<uintptr_t>(logits) % 16 == 0;
}

/// The logits of the lane's experts for route_quad(), sanitised; -INFINITY, below all real ones, for what is not there.
template <int N>
__device__ __forceinline__ void load_quad(const RouterDesc& d, const float* logits, int tokens, float (&l)[N]) {
  const int lane = fresh_lane(), q = lane & 7, token = lane >> 3;
  const float* const row = logits + token * d.experts;
  if (quad_rows_whole<N>(d, logits, tokens)) {
#pragma unroll
    for (int m = 0; m < N; m += 4) {
      const float4 four = *reinterpret_cast<const float4*>(row + quad_expert(m, q));
      l[m] = four.x, l[m + 1] = four.y, l[m + 2] = four.z, l[m + 3] = four.w;
    }
    sanitise(l);
  } else {
    const int experts = token < tokens ? d.experts : 0;
#pragma unroll
    for (int m = 0; m < N; ++m) l[m] = quad_expert(m, q) < experts ? sanitised(row[quad_expert(m, q)]) : -INFINITY;
  }
}

/// The upper bits of a token's keys: where a value lies between one that is no larger than the last to be chosen and
/// the token's largest, in 2^23 steps. They cost hardly any other instructions than those of floating-point arithmetic,
/// of which there are twice as many a cycle as of logic, shifts and comparisons.
constexpr unsigned kIndex = 511;
struct KeyScale {
  float largest, factor;
  unsigned multiple;  // kIndex + 1, which the compiler must not know: it would shift
  /// `floor`: what at least top_k values reach, or any other value: whatever lies below has one key, as has all that is
  /// 256 below the largest.
  __device__ __forceinline__ KeyScale(const RouterDesc& d, float largest, float floor)
      : largest(largest), multiple(kIndex + 1 + (static_cast<unsigned>(d.experts) >> 16)) {
    factor = fminf(__fdividef(1.f - 0x1p-20f, largest - fmaxf(floor, largest - 256.f)), 0x1p100f);
  }
  __device__ __forceinline__ unsigned operator()(float value, unsigned index) const {
    const float place = __saturatef(fmaf(value - largest, factor, 1.f - 0x1p-22f));
    return __float_as_uint(1.f + place) * multiple + index;
  }
};

/// What at least top_k values of a token reach, as far as that is cheap to say: the least of its lanes' largest ones.
template <int N>
__device__ __forceinline__ float least_of_lanes(const RouterDesc& d, const float (&values)[N], float lane_largest,
                                                int q) {
  float least = lane_largest;
  if (N < 8 && d.experts < 32) {  // some lanes have none
    if ((d.experts + 3) / 4 < d.top_k) {
#pragma unroll
      for (int m = 0; m < N; ++m)
        if (quad_expert(m, q) < d.experts) least = fminf(least, values[m]);
    }
    if (4 * q >= d.experts) least = INFINITY;
  }
#pragma unroll
  for (int step = 4; step > 0; step >>= 1) least = fminf(least, __shfl_xor_sync(0xffffffffu, least, step));
  return least;
}

/// What decides a token's choice by its values where the keys may not have: those that nothing else reads.
struct Doubt {
  const float *row, *select_bias;
  Score score;
  float max, sum;  // the softmax's
  KeyScale scale;
  __device__ __forceinline__ float value(int e) const {
    const float v = sanitised(row[e]);
    return select_bias == nullptr ? v : value_of(key_of(score_of(score, v, max, sum) + select_bias[e]));
  }
  __device__ __forceinline__ unsigned near(float v) const { return scale(v, 0) & ~kIndex; }
};

/// The id of lane q's expert. `own`: its key; `split`: whether a key that is not chosen shares the upper bits of the
/// last that is. By all lanes; a call, so that its registers and instructions are not the common case's.
static __device__ __noinline__ int resolve(const Doubt doubt, int experts, int top_k, int id, unsigned own, bool split,
                                           bool rises) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = threadIdx.x & 31, q = lane & 7;
  const unsigned lanes = 0xffu << (lane & 24), least = __shfl_sync(kAll, own, top_k - 1, 8) & ~kIndex;
  const bool splits = (__ballot_sync(kAll, split) & lanes) != 0;
  // Equal values are chosen by their experts, as they should be.
  const int last_id = __shfl_sync(kAll, id, top_k - 1, 8);
  const float last = experts > 0 ? doubt.value(last_id) : 0.f;
  bool unlike = rises;
  if (splits) {
#pragma unroll 4
    for (int e = q; e < experts; e += 8) {
      const float v = doubt.value(e);
      unlike = unlike || (v != last && doubt.near(v) == least);
    }
  }
  if (!__any_sync(kAll, unlike)) return id;
  const int above = __popc(__ballot_sync(kAll, (own & ~kIndex) > least) & lanes);
  return decide_exactly(
      experts, top_k, id, least, above, splits, [&](int e) { return doubt.value(e); },
      [&](float v) { return doubt.near(v); });
}

/// `logits`: those of the first of the warp's `tokens` (1 … 4) tokens, `l` what load_quad() has read of them. Lane
/// 8t + j with j < top_k returns the id and weight of token t's j-th expert. All 32 lanes take part. N: keys a lane,
/// experts <= 8N.
template <bool BIASED, int N>
__device__ __forceinline__ void route_quad(const RouteParams& p, const float* logits, int tokens, float (&l)[N],
                                           int& id, float& weight) {
  static_assert(N >= 4 && N <= kQuadExperts / 8 && kQuadExperts <= kIndex + 1);
  constexpr unsigned kAll = 0xffffffffu;
  const RouterDesc& d = p.desc;
  const int lane = fresh_lane(), q = lane & 7, token = lane >> 3;
  const bool there = token < tokens;
  const int experts = there ? d.experts : 0;  // lanes of a token that is not there: no experts
  const float* const row = logits + token * d.experts;
  const auto expert = [q](int m) { return quad_expert(m, q); };

  constexpr bool by_logit = !BIASED;
  float lane_largest = l[0];
#pragma unroll
  for (int m = 1; m < N; ++m) lane_largest = fmaxf(lane_largest, l[m]);
  const float max = group_max<8>(fmaxf(lane_largest, -FLT_MAX));
  float sum = 1.f;
  if (d.score == Score::kSoftmax && (!by_logit || d.weigh == Weigh::kScore)) {
    float part[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
    for (int m = 0; m < N; ++m) part[m & 3] += expf(l[m] - max);
    sum = sum_of_lanes(part, q);
  }
  float largest_value = max;
  if (!by_logit) {
    const volatile float* const bias = p.select_bias;  // read where it is used: else all of it waits in registers
#pragma unroll
    for (int m = 0; m < N; ++m)
      l[m] = expert(m) < experts ? value_of(key_of(score_of(d.score, l[m], max, sum) + bias[expert(m)])) : -INFINITY;
    lane_largest = l[0];
#pragma unroll
    for (int m = 1; m < N; ++m) lane_largest = fmaxf(lane_largest, l[m]);
    largest_value = group_max<8>(lane_largest);
  }
  const KeyScale key_of_value(d, largest_value, least_of_lanes(d, l, lane_largest, q));

  constexpr int kKept = N < 8 ? 4 : 8;
  const auto key = [&](int m) { return key_of_value(l[m], kIndex - quad_expert(m, 0)); };
  unsigned mine[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) mine[i] = i < N ? key(i % N) : 0;
  sort_eight(mine);
#pragma unroll
  for (int g = 8; g < N; g += 8) {
    unsigned more[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) more[i] = key(g + i);
    sort_eight(more);
    keep_eight(mine, more);
  }
  unsigned kept[kKept];  // the lane's part of the expert, too
#pragma unroll
  for (int i = 0; i < kKept; ++i) kept[i] = mine[i] - 4 * q;
  const unsigned own = best_of_lanes(kept, q);
  id = static_cast<int>(kIndex - (own & kIndex));

  // The chosen must be in descending order by their values, and the keys that are not chosen must all differ from the
  // last that is in more than the expert.
  const Doubt doubt{row, p.select_bias, d.score, max, sum, key_of_value};
  const bool active = there && q < d.top_k;
  float logit = active ? sanitised(row[id]) : -FLT_MAX;
  float own_value = logit;
  if (!by_logit) own_value = active ? doubt.value(id) : 0.f;
  const bool rises = __shfl_up_sync(kAll, own_value, 1, 8) < own_value;
  bool split;
  if (d.top_k == kQuadTopK) {
    const unsigned last = __shfl_sync(kAll, own, 7, 8), least = last & ~kIndex;
    unsigned nearest = 0;  // of the lane's keys below the last that is chosen: the difference is negative
#pragma unroll
    for (int i = 0; i < kKept; ++i) nearest = max_of_sum(kept[i], 0u - last, nearest);
    split = nearest >= least - last && least != last;
    if (N > 8) split = split || kept[kKept - 1] >= least;  // more of this lane's keys, which it did not keep, may
  } else {
    const unsigned better = __shfl_up_sync(kAll, own, 1, 8);
    split = q == d.top_k && (better | kIndex) == (own | kIndex);
  }
  const bool wrong = active && q > 0 && rises;
  if (__any_sync(kAll, wrong || (there && split))) {
    id = resolve(doubt, experts, d.top_k, id, own, there && split, wrong);
    logit = active ? sanitised(row[id]) : -FLT_MAX;
  }
  weight = weigh<8>(d, active, logit, 0.f, max, sum);
}

}  // namespace nexus::cuda
