// Grouped expert MLPs. The unit of work is one grouped linear layer with a fused epilogue; an MLP is two or three of
// them:
//   two-layer    h = act(x W1ᵀ + b1)                      y = h W2ᵀ + b2
//   three-layer  h = relu(x W1ᵀ + b1)  g = relu(h W2ᵀ + b2)  y = g W3ᵀ + b3        (the original design's expert)
//   gated        h = glu(x W1ᵀ + b1)                      y = h W2ᵀ + b2        W1 has 2·inter rows, gate and up
//   interleaved
// Weights are [experts, N, K], K contiguous (torch's Linear layout). For a gated first layer row 2i is gate i and row
// 2i+1 is up i (GPT-OSS's own order, and the one in which one accumulator pair holds both). Biases are float32,
// interleaved alike. On CUDA they may lie in panels instead (weight_panels.h). Accumulation is float32, the K order of
// a sum is fixed per kernel variant, and a variant is chosen by dtype, shape, row count and kind of device only
// (variants.h): never by strategy, thread count or slice.
#pragma once
#include <array>
#include <cstdint>

#include "nexus/runtime.h"
#include "nexus/step.h"
#include "nexus/variants.h"
#include "nexus/weight_panels.h"

namespace nexus {

enum class Epilogue : int32_t {
  kIdentity = 0,
  kRelu = 1,
  kGelu = 2,  ///< exact, with erf
  kGeluTanh = 3,
  kSilu = 4,
  // gated: N columns come in, N/2 go out
  kSwiglu = 16,         ///< silu(gate) * up
  kGeglu = 17,          ///< gelu(gate) * up, erf
  kGegluTanh = 18,      ///< gelu_tanh(gate) * up
  kReglu = 19,          ///< relu(gate) * up
  kClampedSwiglu = 20,  ///< GPT-OSS: gate <= limit, up in ±limit, gate·σ(alpha·gate)·(up + 1)
};
constexpr bool is_gated(Epilogue e) { return static_cast<int32_t>(e) >= 16; }

struct EpilogueParams {
  float limit = 7.f;     ///< clamped swiglu
  float alpha = 1.702f;  ///< clamped swiglu
};

/// One grouped linear layer. Row r of expert e (offsets[e] <= r < offsets[e+1]) reads input row
///   order == null ? r : order[r] / rows_per_input     (gather: slot → token)
/// and writes output row   scatter ? order[r] : r.
struct GroupedLinearDesc {
  DType dtype = DType::kF32;  ///< of input, weight and output: f32, bf16, f16
  int experts = 1;
  int64_t k = 0, n = 0;  ///< columns of the input; rows of a weight matrix (before a gated epilogue halves them)
  Epilogue epilogue = Epilogue::kIdentity;
  EpilogueParams params{};
  bool in_panels = false;  ///< the weights, in those of a gated layer if the epilogue is one
};
struct GroupedLinearArgs {
  const void* input = nullptr;       ///< [*, k]
  const void* weight = nullptr;      ///< [experts, n, k], or in panels
  const float* bias = nullptr;       ///< [experts, n] or null
  void* output = nullptr;            ///< [rows, n or n/2]
  const int32_t* offsets = nullptr;  ///< [experts + 1], on the device; offsets[experts] <= max_rows. null: dense, one
                                     ///< expert has all max_rows rows
  const int32_t* order = nullptr;    ///< see above, or null
  int32_t rows_per_input = 1;      ///< top_k where order holds slots and the input holds tokens; 1 to read row order[r]
  bool gather = false;             ///< read through order
  bool scatter = false;            ///< write through order
  const int32_t* ready = nullptr;  ///< see MlpArgs: the first layer's
  const float* row_scale = nullptr;  ///< [slots] or null: the product (before the bias) of row r times row_scale[order
                                     ///< ? order[r] : r]; Llama-4
  bool settled = false;     ///< offsets, order and lanes are older than the stream's previous operation (a layer
                            ///< after the first), so weights may be fetched ahead of its end
  int64_t max_rows = 0;     ///< upper bound of rows over all experts, known on the host (tokens * top_k)
  int64_t choice_rows = 0;  ///< rows by which a kernel variant is chosen (those of a token bucket); 0: max_rows
  const StepBlock* step = nullptr;  ///< with step_input: input is step->x (offsets then give the true number of rows)
  bool step_input = false;
  LaneView lanes{};
  VariantChoice choice{};
};
void grouped_linear(Stream& stream, const GroupedLinearDesc& desc, const GroupedLinearArgs& args);
/// float64 on host memory: inputs widened, result written as double [rows, n or n/2].
void grouped_linear_reference(const GroupedLinearDesc& desc, const GroupedLinearArgs& host_args, double* output);

/// The name of the kernel variant that grouped_linear would run, for tests, stats and the docs' tables. `share_sm`: on
/// a stream that has it (runtime.h).
std::string grouped_linear_variant(DeviceId device, const GroupedLinearDesc& desc, int64_t max_rows,
                                   bool share_sm = false, const VariantChoice& choice = {});

enum class MlpKind : int32_t { kTwoLayer = 0, kThreeLayer = 1, kGated = 2 };
struct MlpDesc {
  DType dtype = DType::kF32;
  MlpKind kind = MlpKind::kGated;
  Epilogue activation =
      Epilogue::kSwiglu;  ///< two-layer: relu, gelu, gelu_tanh, silu; three-layer: relu; gated: a gated one
  EpilogueParams params{};
  int experts = 1;
  int64_t input = 0, hidden = 0, output = 0;  ///< hidden = inter for gated; three-layer: both inner widths
  bool in_panels = false;                     ///< the weights of all its layers
};
/// Bytes of the last product's weights, of which a gated first one has twice as many, up to which what a step waits for
/// is one latency behind another rather than memory.
constexpr int64_t kFewWeightBytes = 16 << 20;
inline bool has_few_weights(const MlpDesc& d) {
  return d.experts * d.hidden * d.output * static_cast<int64_t>(size_of(d.dtype)) <= kFewWeightBytes;
}
struct MlpWeights {  ///< layers() of them are set
  std::array<const void*, 3> weight{};
  std::array<const float*, 3> bias{};  ///< null: none
};
struct MlpArgs {
  const void* x = nullptr;  ///< [tokens, input]
  int64_t tokens = 0;
  int32_t top_k = 1;
  const int32_t* offsets =
      nullptr;  ///< [experts + 1]; null for a dense MLP (experts = 1, order null): all tokens are its rows
  const int32_t* order = nullptr;      ///< [tokens * top_k] slots; null for a dense MLP (experts = 1, top_k = 1)
  const float* input_scale = nullptr;  ///< [tokens * top_k] or null (Llama-4)
  void* rows = nullptr;                ///< out [tokens * top_k, output] in slot order, of dtype
  void* workspace = nullptr;           ///< mlp_workspace_bytes()
  /// mlp_counter_bytes() or null: memory by which the blocks of a launch for two layers know one another. Zero before
  /// the first call that gets it, left so by each; calls that share it are in one order.
  void* counters = nullptr;
  /// Or null: RouteArgs::ready of the route() queued just before, which returned true. Tiles are then looked up, and
  /// weights and tokens asked for, as soon as that word says so, while the step before may still be at work. So x has
  /// to be settled where the logits were (Stream::settled()), and the counters are not those of the call before.
  const int32_t* ready = nullptr;
  int64_t choice_tokens = 0;        ///< see GroupedLinearArgs::choice_rows; 0: tokens
  const StepBlock* step = nullptr;  ///< or null: x and the true number of tokens are its, `tokens` the upper bound
  LaneView lanes{};
  VariantChoice choice{};  ///< of every linear layer
};
constexpr int mlp_layers(MlpKind k) { return k == MlpKind::kThreeLayer ? 3 : 2; }
/// The grouped linear layer i of the MLP (widths, epilogue).
GroupedLinearDesc mlp_layer(const MlpDesc& desc, int i);
constexpr WeightMatrices weights_of(const GroupedLinearDesc& d) {
  return {d.dtype, d.experts, d.n, d.k, is_gated(d.epilogue)};
}
size_t mlp_workspace_bytes(DeviceId device, const MlpDesc& desc, int64_t rows);
size_t mlp_counter_bytes(DeviceId device, const MlpDesc& desc);  ///< 0: there is no use for them
void grouped_mlp(Stream& stream, const MlpDesc& desc, const MlpWeights& weights, const MlpArgs& args);

}  // namespace nexus
