// The grouped linear layer on CUDA, in four steps that know nothing of one another's insides:
//   descriptor → choose() → Variant → launch_*() → kernel.
// A faster kernel for one architecture is a new Variant row, one case in choose() and one launcher.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>

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
  bool output_f32;    // the router's logits: float32 whatever the input is
  bool settled;       // offsets, order and lane table are older than the stream's previous kernel
  bool vector_store;  // 8 input columns' results may be stored as one aligned word
};

enum class Kernel { kMma, kMmaGuarded, kSimt, kGemv, kWgmma };

/// A tile shape. The K order of every sum is ascending k in one accumulator, whatever the shape.
struct Variant {
  const char* name;
  Kernel kernel;
  int bm, bn, bk, stages, warps;
  size_t shared_bytes;
  bool share_sm = false;  // made to run beside a neighbour's blocks
};

/// Picks by dtype, shape, alignment and rows per expert only (and by what a block of this architecture may hold, never
/// by how many SMs there are). `aligned`: rows of input and weight start at multiples of 16 bytes. `hopper`: the
/// kernels of compute capability 9.0a may be used (arch.h); they do not write float32.
const Variant& choose(DType dtype, int64_t k, int64_t n, int experts, int64_t max_rows, bool aligned,
                      size_t shared_limit, bool hopper = false);

/// What runs instead of a chosen variant on a stream that shares its SMs (Stream::share_sm()): a tile of fewer rows or
/// stages, whose block leaves shared memory and registers for blocks of a neighbour's. The sums are the same.
const Variant& share_sm(const Variant& chosen);

/// Upper bound of the number of BM-row tiles over all experts, for any way the rows may fall.
constexpr int64_t max_row_tiles(int64_t max_rows, int experts, int bm) {
  const int64_t nonempty = max_rows < experts ? max_rows : experts;
  return (max_rows + (bm - 1) * nonempty) / bm;
}

/// Where a launch goes. `width`: SMs that it may use (Stream::width()), for grids of as many blocks as fit at once.
/// `share_sm`: it has neighbours on them.
struct Target {
  int device;
  int width;
  bool share_sm;
  cudaStream_t stream;
};
inline Target target(Stream& stream) {
  const auto handle = static_cast<cudaStream_t>(stream.cuda_stream());
  return {stream.device().index, stream.width(), stream.share_sm(), handle};
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
