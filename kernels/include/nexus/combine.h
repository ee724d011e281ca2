// Combining the experts' rows, and the small unfused operations of which the textbook baseline is made.
#pragma once
#include <cstdint>

#include "nexus/experts.h"
#include "nexus/runtime.h"

namespace nexus {

enum class CombineMode : int32_t { kWeightedSum = 0, kConcat = 1 };

/// weighted sum: y[t] = sum_j weights[t, j] * rows[t*top_k + j], in slot order in float32, then + shared_scale[t] *
/// shared[t]. concat:       y[t] = [weights[t,0]*rows[t*top_k], weights[t,1]*rows[t*top_k+1], …]  ([tokens, top_k *
/// width]); no shared. weights == null means 1 (Llama-4, where the weight scaled the input).
struct CombineArgs {
  CombineMode mode = CombineMode::kWeightedSum;
  DType dtype = DType::kF32;            ///< of rows, shared and out
  const void* rows = nullptr;           ///< [tokens * top_k, width], slot order
  const float* weights = nullptr;       ///< [tokens, top_k] or null
  const void* shared = nullptr;         ///< [tokens, width] or null
  const float* shared_scale = nullptr;  ///< [tokens] or null (1): σ(x·w), see shared_gate
  int64_t tokens = 0, width = 0;
  int32_t top_k = 1;
  void* out = nullptr;
  const StepBlock* step = nullptr;  ///< or null: out and the true number of tokens are its
  /// The step's slot of a ring, filled beside the sum (with tokens > 0) from [experts] counts, which are those of a
  /// route() that is not the launch before this one, and was not given the ring.
  CountRingView ring{};
  const int32_t* counts = nullptr;
  int32_t experts = 0;
  /// What was queued before it writes nothing but memory that only this step's operations read, route()'s outputs and
  /// `rows` among it: then a route() or decode step behind it may begin before that ends (Stream::settle_but()). And
  /// the weights are not of the launch before this one.
  bool private_inputs = false;
};
void combine(Stream& stream, const CombineArgs& args);
void combine_reference(const CombineArgs& host_args, double* out);

/// scale[t] = σ(sum_h x[t, h] * weight[h]), float32 accumulation (Qwen2-MoE's and Qwen3-Next's shared-expert gate).
struct SharedGateArgs {
  const void* x = nullptr;
  const void* weight = nullptr;  ///< [hidden] of dtype
  DType dtype = DType::kF32;
  int64_t tokens = 0, hidden = 0;
  float* scale = nullptr;
  const StepBlock* step = nullptr;  ///< or null: x and the true number of tokens are its
};
void shared_gate(Stream& stream, const SharedGateArgs& args);

// ---- unfused operations for the per-expert baseline
// ------------------------------------------------------------------
/// out[i] = x[order[first + i] / rows_per_input], i < n.
void gather_rows(Stream& s, DType dtype, const void* x, const int32_t* order, int64_t first, int64_t n,
                 int32_t rows_per_input, int64_t width, void* out);
/// In the input's dtype, elementwise; gated: in [n, 2*width] interleaved → out [n, width]. In place allowed when not
/// gated.
void activate(Stream& s, DType dtype, Epilogue epilogue, const EpilogueParams& params, const void* in, int64_t n,
              int64_t width, void* out);
/// acc[order[first+i] / top_k] += weights[order[first+i]] * rows[i], float32 acc [tokens, width]; a token occurs at
/// most once in one call (one expert), so the result does not depend on scheduling.
void index_add(Stream& s, DType dtype, const void* rows, const float* weights, const int32_t* order, int64_t first,
               int64_t n, int32_t top_k, int64_t width, float* acc);
/// Converts n device elements between f32, bf16, f16.
void cast(Stream& s, const void* src, DType from, void* dst, DType to, int64_t n);

}  // namespace nexus
