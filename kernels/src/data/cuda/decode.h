// A step of a handful of rows, one to a few tokens, where the layer is bound by the reads of its experts' weights and
// by whatever keeps the memory waiting between them.
//
//   decode_hidden   first linear layer, activation                                     (decode_hidden.cu)
//   decode_output   second linear layer, rounded; weighted sum over a token's experts  (decode_output.cu)
//
// In place of route → linear → linear → combine, with the same bits: sums in the same order (gemv_sum.cuh), each
// rounded where the chain stores it. What is gained, and why so:
// - Where the chosen experts are those of the largest logits, every block ranks them for itself (decode_rank.cuh), and
//   no launch precedes. What the router leaves for others is written by a block of decode_output that does nothing else
//   (decode_route.cuh), long before that kernel's end; a token's weights are found by those blocks that sum for it.
// - decode_output's first blocks come early and fetch their first weights before they wait: which those are follows
//   from the logits, which are older than the step. So the memory works on across the boundary of the two.
// - A block of decode_output owns columns of tokens, for all of a token's experts: it can sum them itself. No rows go
//   to memory and back, and no launch follows.
// - The input is asked for before the weights: behind them it would wait as long as those.
// - Each kernel lets the next one in late enough to find room everywhere, since blocks stay where they were dealt to,
//   and an SM with more of them than others ends later: decode_hidden when its blocks know their experts, decode_output
//   when its sums are done.
//
// Order: decode_hidden waits first, so that all that is older than it is complete when decode_output's blocks come: the
// logits, the input, the step, and whatever read or wrote what the router leaves, `hidden` and the outputs. Hence
// decode_output may read the logits, and its first block may write what the router leaves, without a wait; nothing
// in decode_hidden touches the latter. The other blocks wait before they read `hidden` and write outputs, so that
// decode_output is complete only when decode_hidden is. The next step's decode_hidden waits for that, as any kernel
// does. In the other cases (groups, a bias on the choice, sparsemixer, weights that scale the input) route goes first,
// decode_hidden waits for it and reads its ids, and decode_output, whose blocks come after that wait, reads them, too.
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
/// Weight rows that a warp sums side by side, a gated layer's pairs in one, and loads that a lane has under way.
constexpr int kDecodeRows = 4, kDecodeLoads = 8;
/// Up to so many rows of all slots together a warp takes fewer, so that there are enough warps: of the first layer two,
/// of the second two, or one that is as long as all of its loads. In panels two of the second also of more, long rows.
constexpr int64_t kFewHiddenRows = 8192, kFewOutputRows = 4096, kFewLongRows = 2048, kFewPanelRows = 8192;
/// tokens · top_k of a step at most, and experts.
constexpr int kDecodeSlots = 64, kDecodeExperts = 512;
/// Warps of a block that rank, each another token's experts.
constexpr int kRankWarps = 4;
/// Of shared memory at most; the input's rows lie there if they fit.
constexpr int kDecodeSharedBytes = 48 * 1024;
/// Of them at most: decode_output's results, and its weights.
constexpr int kDecodeResultBytes = 4 * (kDecodeRows + 1) * kDecodeSlots;

struct DecodeLinear {
  const void* weight;
  const float* bias;
  int k, n;
  bool in_panels;  // see nexus/weight_panels.h; then n · k < 2^32
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
  bool ranked;  // the blocks rank the experts, and route is not launched
  int units;    // of a warp's columns of a token, that a block of decode_output has
  // Shared memory: ids | keys of ranking | lists of ranking | results or the input's rows.
  int keys, input;  // where the second and fourth begin; input 0: it does not fit, and is read where it is
};

/// Keys of a token's experts while they are ranked, in whole words of 16 bytes.
__host__ __device__ constexpr int decode_keys(int experts) { return (experts + 3) / 4 * 4; }
/// Words of a warp that ranks: keys that may be among a token's best, and their experts.
__host__ __device__ constexpr int decode_list(int experts) { return 2 * (experts < 32 ? 32 : decode_keys(experts)); }
/// Bytes of shared memory before the results or the input's rows.
constexpr int64_t decode_ranking(int64_t tokens, int experts) {
  return 4 * (kDecodeSlots + tokens * decode_keys(experts) +
              (tokens < kRankWarps ? tokens : kRankWarps) * decode_list(experts));
}
/// Rows of a linear layer in items of `rows`.
__host__ __device__ constexpr int decode_items(int n, int rows) { return (n + rows - 1) / rows; }

/// Without `queue` all is set up that the first launch of a kernel sets up, and nothing queued.
void launch_decode_hidden(DType dtype, const DecodeParams& params, const Target& target, bool queue);
void launch_decode_output(DType dtype, const DecodeParams& params, const Target& target, bool queue);

}  // namespace nexus::cuda
