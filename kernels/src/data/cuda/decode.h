// A step of a handful of rows in two launches: one to a few tokens, where the layer is bound by the reads of its
// experts' weights and by whatever keeps the memory waiting between them.
//
//   decode_hidden   route; first linear layer, activation                              (decode_hidden.cu)
//   decode_output   experts again; second linear layer, rounded; weighted sum by token (decode_output.cu)
//
// In place of route → linear → linear → combine, with the same bits: sums in the same order (gemv_sum.cuh), each
// rounded where the chain stores it. What is gained, and why so:
// - Every block finds the experts for itself, all of its warps at once; their weights, which take longer, are left by a
//   block of decode_hidden's that does nothing else, and are read where rows are summed.
// - The weights of eight warps are copied into shared memory ahead of use (decode_ring.cuh), 96 KiB of them under way
//   on an SM whatever the registers hold.
// - decode_output is let in at once and fetches its own first weights before it waits: which they are follows from the
//   logits, and those are older than decode_hidden. So the memory works on across the boundary of the two. Their shared
//   memory is divided so that a block of each fits on an SM.
// - A block of decode_output owns columns of tokens, for all of a token's experts: it can sum them itself. No rows go
//   to memory and back, and no launch follows.
//
// No block waits for another one of its launch: any number of them may run at a time, in slices and beside others.
// Needs compute capability 9.0 (bulk copies, dependent launches). Grids follow the SMs at hand; no sum depends on that.
#pragma once
#include "data/cuda/grouped.h"
#include "data/cuda/route.h"

namespace nexus::cuda {

constexpr int kDecodeWarps = 8, kDecodeThreads = 32 * kDecodeWarps;
/// Weight rows that a warp sums side by side: its item. A gated layer's pairs lie in one.
constexpr int kDecodeRows = 4;
/// Bytes of a row that are copied at a time: two chunks a lane.
constexpr int kDecodePiece = 1024;
constexpr int kDecodeStages = 3;
constexpr int kDecodeStageBytes = kDecodeRows * kDecodePiece;
constexpr int kDecodeRingBytes = kDecodeWarps * kDecodeStages * kDecodeStageBytes;
/// tokens · top_k of a step at most, and experts.
constexpr int kDecodeSlots = 64, kDecodeExperts = 512;
/// Units of four columns of a token whose sums lie in shared memory at a time.
constexpr int kDecodeUnits = 8;
static_assert(kDecodeUnits * kDecodeRows <= kDecodeThreads && kDecodeUnits % kDecodeWarps == 0);
/// The most that a block of either kernel may have: both fit into an SM's 228 KiB, of which each costs one more.
constexpr int kHiddenSharedBytes = 103 * 1024, kOutputSharedBytes = 123 * 1024;

/// Where things lie in a block's shared memory: ring | barriers | ids | weights | scratch of routing | results | input.
struct DecodeShared {
  static constexpr int kBarriers = kDecodeRingBytes;
  static constexpr int kIds = kBarriers + kDecodeWarps * kDecodeStages * 8;
  static constexpr int kWeights = kIds + kDecodeSlots * 4;
  static constexpr int kScratch = kWeights + kDecodeSlots * 4;
  int route_warps;  // as many route tokens; each has decode_scratch() words
  int results;
  int input;  // all rows of the launch's input; 0: they do not fit, and are read where they are
  int bytes;
};

/// Words of scratch by token: its logits or keys, in whole words of 16 bytes, and a key by group.
__host__ __device__ constexpr int decode_scratch(const RouterDesc& d) { return (d.experts + 3) / 4 * 4 + d.groups; }

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
  bool ranked;  // the chosen experts are those of the largest logits, and all tokens' keys fit into the scratch
  DecodeShared shared;
};

/// Rows of a linear layer in items.
__host__ __device__ constexpr int decode_items(int n) { return (n + kDecodeRows - 1) / kDecodeRows; }

/// Without `queue` all is set up that the first launch of a kernel sets up, and nothing queued.
void launch_decode_hidden(DType dtype, const DecodeParams& params, const Target& target, bool queue);
void launch_decode_output(DType dtype, const DecodeParams& params, const Target& target, bool queue);

/// Calls f with the router's register count per lane: two instances are enough where routing hides behind nothing else.
template <class F>
void with_decode_experts(int experts, F&& f) {
  if (experts <= 128) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, kDecodeExperts / 32>{});
}

}  // namespace nexus::cuda
