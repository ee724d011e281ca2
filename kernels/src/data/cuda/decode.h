// A step of a handful of rows, one to a few tokens, where the layer is bound by the reads of its experts' weights and
// by whatever keeps the memory waiting between them.
//
//   route           what the router leaves                                             (route_small.cu)
//   decode_hidden   first linear layer, activation                                     (decode_hidden.cu)
//   decode_output   second linear layer, rounded; weighted sum over a token's experts  (decode_output.cu)
//
// In place of route → linear → linear → combine, with the same bits: sums in the same order (gemv_sum.cuh), each
// rounded where the chain stores it. What is gained, and why so:
// - Where the chosen experts are those of the largest logits, every block finds them for itself (decode_rank.cuh), all
//   of its warps at once. So decode_hidden runs beside route, whose ids and weights take longer, and waits for them
//   when its own work is done.
// - decode_output's first blocks come early, too, and fetch their first weights before they wait: which those are
//   follows from the logits, which are older than the step. So the memory works on across the boundary of the two.
// - A block of decode_output owns columns of tokens, for all of a token's experts: it can sum them itself. No rows go
//   to memory and back, and no launch follows.
// - The input is asked for before the weights: behind them it would wait as long as those.
//
// Order: route passes its wait and lets decode_hidden in. All that is older than route is complete then: the logits,
// the input, the step, and the last reader of `hidden`. decode_hidden waits for route at its end only, before
// decode_output may take it for complete; decode_output reads what route left behind its own wait. In the other cases
// (groups, a bias on the choice, weights that scale the input) decode_hidden waits first and reads route's ids.
//
// No block waits for another one of its launch: any number of them may run at a time, in slices and beside others.
// Needs compute capability 9.0 (dependent launches).
#pragma once
#include "data/cuda/grouped.h"
#include "data/cuda/route.h"

namespace nexus::cuda {

constexpr int kDecodeWarps = 8, kDecodeThreads = 32 * kDecodeWarps;
/// Blocks of either kernel on an SM.
constexpr int kDecodeBlocks = 4;
/// Weight rows that a warp sums side by side, and chunks of each that are under way. A gated layer's pairs lie in one.
constexpr int kDecodeRows = 4, kDecodeAhead = 2;
/// tokens · top_k of a step at most, and experts.
constexpr int kDecodeSlots = 64, kDecodeExperts = 512;
/// Of shared memory at most; the input's rows lie there if they fit.
constexpr int kDecodeSharedBytes = 48 * 1024;
/// Of them at most: decode_output's results, and its weights.
constexpr int kDecodeResultBytes = 4 * (kDecodeRows + 1) * kDecodeSlots;

struct DecodeLinear {
  const void* weight;
  const float* bias;
  int k, n;
};

struct DecodeParams {
  RouteParams route;
  const void* x;  // x and out: null with a step
  void* out;
  void* hidden;  // [slots, second.k], in slot order
  DecodeLinear first, second;
  int epilogue;
  float limit, alpha;
  bool gated, scale_input;
  bool ranked;  // the chosen experts are those of the largest logits
  int units;    // of four columns of a token, that a block of decode_output has
  // Shared memory: ids | keys of ranking | results or the input's rows.
  int keys, input;  // where the second and third begin; input 0: it does not fit, and is read where it is
};

/// Keys of a token's experts while they are ranked, in whole words of 16 bytes.
__host__ __device__ constexpr int decode_keys(int experts) { return (experts + 3) / 4 * 4; }
/// Bytes of shared memory before the results or the input's rows.
constexpr int64_t decode_ranking(int64_t tokens, int experts) {
  return 4 * (kDecodeSlots + tokens * decode_keys(experts));
}
/// Rows of a linear layer in items.
__host__ __device__ constexpr int decode_items(int n) { return (n + kDecodeRows - 1) / kDecodeRows; }

/// Without `queue` all is set up that the first launch of a kernel sets up, and nothing queued.
void launch_decode_hidden(DType dtype, const DecodeParams& params, const Target& target, bool queue);
void launch_decode_output(DType dtype, DecodeParams params, const Target& target, bool queue);

}  // namespace nexus::cuda
