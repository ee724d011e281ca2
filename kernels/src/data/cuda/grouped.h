// The grouped linear layer on CUDA, in four steps that know nothing of one another's insides:
//   descriptor → choose() → Variant → launch_*() → kernel.
// A faster kernel for one architecture is a new Variant row in variants_cuda.cpp, with the order of its sums and when
// it is correct, and one launcher; a table of measurements then finds it. choose() names what runs where none was made.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

#include "nexus/experts.h"

namespace nexus::cuda {

/// What every grouped kernel gets, by value. The layer's own struct carries more than a kernel needs to know.
struct GroupedParams {
  const void* input;
  const void* weight;
  const float* bias;  // [experts, n] or null
  void* output;
  const int32_t* offsets;  // [experts + 1]; null: one dense expert with max_rows rows
  const int32_t* order;    // null: rows are their own slots
  const float* row_scale;  // by slot, or null
  const StepBlock* step;   // or null: input is its x, read on the device
  const int32_t* ready;    // or null: says when offsets and order are there (RouteArgs)
  LaneView lanes;          // which experts, by which blocks (lanes.cuh)
  int64_t k, n;
  int64_t max_rows;
  int experts;
  int rows_per_input;
  int n_tiles;  // ceil(n / BN), set by the launcher
  int epilogue;
  float limit, alpha;
  bool gather, scatter;
  bool copy_rows;     // wgmma: rows of the input one by one, since it is gathered or the host does not know where it is
  bool gated;         // n columns in, n/2 out
  bool in_panels;     // the weights (nexus/weight_panels.h)
  int expert_rows;    // wgmma: from an expert's first row of weights to the next's, as their map counts them
  bool output_f32;    // the router's logits: float32 whatever the input is
  bool settled;       // offsets, order and lane table are older than the stream's previous kernel
  bool beyond_cache;  // more weights than L2 keeps from one step to the next
  bool vector_store;  // 8 input columns' results may be stored as one aligned word
  bool lets_in;       // wgmma: the next kernel's blocks may come at once, set by the launcher
  int ring;           // wgmma: ring_quarters(), set by the launcher
  int64_t ahead;      // wgmma: bytes of the weights that L2 is asked for ahead of the wait, set by the launcher
};

enum class Kernel { kMma, kMmaGuarded, kSimt, kGemv, kWgmma };

/// How a sum over k is ordered. Variants of one order give a row the same bits, whatever their tiles: those of kMma16
/// and kWgmma64 walk k upwards in one accumulator, by an mma's 16 or a wgmma chain's 64; kSimt1 by 1; kGemv sums every
/// 32nd chunk in a lane and the lanes in a butterfly, and has no tile for many rows.
enum class SumOrder { kMma16, kWgmma64, kSimt1, kGemv };
constexpr const char* name_of(SumOrder order) {
  switch (order) {
    case SumOrder::kMma16:
      return "mma16";
    case SumOrder::kWgmma64:
      return "wgmma64";
    case SumOrder::kSimt1:
      return "simt1";
    case SumOrder::kGemv:
      return "gemv";
  }
  return "";
}

/// A tile shape.
struct Variant {
  const char* name;
  Kernel kernel;
  SumOrder order;
  int bm, bn, bk, stages, warps;
  size_t shared_bytes;
  bool share_sm = false;  // made to run beside a neighbour's blocks
};

/// All that a choice without a table may depend on: dtype, shape, alignment, rows, and what a block of this
/// architecture may hold; never how many SMs there are. `aligned`: rows of input and weight start at multiples of 16
/// bytes. `hopper`: the kernels of compute capability 9.0a may be used (arch.h); they do not write float32. `gated`: n
/// columns in, n/2 out.
struct Problem {
  DType dtype;
  int64_t k, n;
  int experts;
  int64_t rows;
  bool aligned;
  size_t shared_limit;
  bool hopper;
  bool gated = false;
};
/// With aligned memory, as a layer's is.
Problem problem_of(const GroupedLinearDesc& desc, int64_t rows, int device);
/// The heuristic; with `only`, among the variants of one order, of which there must be one (invariant_order()).
const Variant& choose(const Problem& problem, const SumOrder* only = nullptr);
/// The override, else the table's first candidate, else the heuristic.
const Variant& choose(const Problem& problem, const VariantKey& key, const VariantChoice& choice);
/// Whether a variant computes the problem correctly.
bool fits(const Variant& variant, const Problem& problem);
/// Every variant that does, but for those made to share an SM.
std::vector<const Variant*> candidates(const Problem& problem);
/// The order that has a variant for any number of rows of the problem's layer: the table's, if it has, else the one
/// that is fastest over all of them by and large.
SumOrder invariant_order(const Problem& problem, const std::string* measured = nullptr);

/// The heuristic for the router's product.
const Variant& choose(DType dtype, int64_t k, int64_t n, int experts, int64_t max_rows, bool aligned,
                      size_t shared_limit, bool hopper = false);

/// What runs instead of a chosen variant on a stream that shares its SMs (Stream::share_sm()): a tile of fewer rows or
/// stages, whose block leaves shared memory and registers for blocks of a neighbour's. The sums are the same.
const Variant& share_sm(const Variant& chosen, const Problem& problem);

/// Upper bound of the number of BM-row tiles over all experts, for any way the rows may fall.
constexpr int64_t max_row_tiles(int64_t max_rows, int experts, int bm) {
  const int64_t nonempty = max_rows < experts ? max_rows : experts;
  return (max_rows + (bm - 1) * nonempty) / bm;
}

/// Where a launch goes. `width`: SMs that it may use (Stream::width()), for grids of as many blocks as fit at once.
/// `share_sm`: it has neighbours on them. `read_ahead`: StreamShape's.
struct Target {
  int device;
  int width;
  bool share_sm;
  cudaStream_t stream;
  int64_t read_ahead = 0;
};
inline Target target(Stream& stream) {
  const auto handle = static_cast<cudaStream_t>(stream.cuda_stream());
  return {stream.device().index, stream.width(), stream.share_sm(), handle, stream.read_ahead()};
}

/// Whether a launch takes part in lanes: its kernels are instances of their own, so that the plain ones stay as they
/// are.
constexpr bool with_lanes(const GroupedParams& params) { return params.lanes.table || params.lanes.trace; }
/// Whether its blocks walk tiles, as many of them as fit at once: with a table, whose lanes have some of the experts
/// each. A block for every tile of the layer, in each lane, would cost 100 to 200 us of blocks that leave at once.
constexpr bool walks(const GroupedParams& params) { return params.lanes.table != nullptr; }

void launch_mma_bf16(const Variant& variant, const GroupedParams& params, const Target& target);
void launch_mma_f16(const Variant& variant, const GroupedParams& params, const Target& target);
void launch_simt_f32(const Variant& variant, const GroupedParams& params, const Target& target);
/// input bf16 or f16, weight and output float32, 64×64 tile: a float32 router on half-precision tokens.
void launch_simt_router(DType input, const GroupedParams& params, const Target& target);
/// Fills n_tiles and checks the grid; returns the number of blocks.
unsigned plan_grid(const Variant& variant, GroupedParams& params);

extern const Variant kSimt64;  // also the router's

}  // namespace nexus::cuda
