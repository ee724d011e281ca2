// The two implementations behind each public function of the data plane. The public functions (router.cpp, experts.cpp,
// combine.cpp) validate and dispatch on stream.device(); these do the work and may assume valid arguments.
// A build without CUDA takes the cuda:: ones from cuda_none.cpp, which throw kUnsupported.
#pragma once
#include "nexus/combine.h"
#include "nexus/experts.h"
#include "nexus/router.h"

namespace nexus {

#define NEXUS_DATA_PLANE                                                                                              \
  size_t route_workspace_bytes(const RouterDesc& desc, int64_t tokens);                                               \
  bool route(Stream& stream, const RouterDesc& desc, const RouteArgs& args);                                          \
  void router_logits(Stream& stream, const RouterLogitsArgs& args);                                                   \
  void grouped_linear(Stream& stream, const GroupedLinearDesc& desc, const GroupedLinearArgs& args);                  \
  std::string grouped_linear_variant(const GroupedLinearDesc& desc, int64_t max_rows, bool share_sm,                  \
                                     const VariantChoice& choice = {});                                               \
  std::vector<VariantCandidate> grouped_linear_candidates(DeviceId device, const GroupedLinearDesc& desc,             \
                                                          int64_t rows);                                              \
  std::string device_class(DeviceId device);                                                                          \
  void combine(Stream& stream, const CombineArgs& args);                                                              \
  void shared_gate(Stream& stream, const SharedGateArgs& args);                                                       \
  void gather_rows(Stream& s, DType dtype, const void* x, const int32_t* order, int64_t first, int64_t n,             \
                   int32_t rows_per_input, int64_t width, void* out);                                                 \
  void activate(Stream& s, DType dtype, Epilogue epilogue, const EpilogueParams& params, const void* in, int64_t n,   \
                int64_t width, void* out);                                                                            \
  void index_add(Stream& s, DType dtype, const void* rows, const float* weights, const int32_t* order, int64_t first, \
                 int64_t n, int32_t top_k, int64_t width, float* acc);                                                \
  void cast(Stream& s, const void* src, DType from, void* dst, DType to, int64_t n);                                  \
  void fill_normal(Stream& s, void* dst, DType dtype, int64_t n, uint64_t seed, float scale);

namespace cpu {
NEXUS_DATA_PLANE
}
namespace cuda {
NEXUS_DATA_PLANE
}
#undef NEXUS_DATA_PLANE

/// A step of few tokens from logits to outputs, all operations of it at once.
struct DecodeArgs {
  RouteArgs route;            ///< logits may be null with a step, like x and out
  int64_t choice_tokens = 0;  ///< see GroupedLinearArgs::choice_rows
  const void* x = nullptr;
  MlpWeights weights;
  bool scale_input = false;  ///< the routing weight scales the expert's input, not its output
  void* hidden = nullptr;    ///< mlp_workspace_bytes()
  void* out = nullptr;       ///< [tokens, output]: the weighted sum
  VariantChoice choice{};
  bool prepare = false;  ///< queue nothing, but load and set up what a recording of this step will want
};
namespace cuda {
/// Leaves what route(), grouped_mlp() and combine() would, bit for bit, but for the rows. False: nothing was queued,
/// since this step is not one for it (cuda/decode.h). Arguments are valid.
bool decode_step(Stream& stream, const RouterDesc& router, const MlpDesc& experts, const DecodeArgs& args);

/// Both layers of an MLP in one launch, with the bits of two calls of grouped_linear(). False: nothing was queued,
/// since these are not layers for it (cuda/hopper_mlp.h). `counters`: MlpArgs::counters.
bool grouped_pair(Stream& stream, const GroupedLinearDesc& first, const GroupedLinearArgs& first_args,
                  const GroupedLinearDesc& second, const GroupedLinearArgs& second_args, void* counters);
size_t mlp_counter_bytes(const MlpDesc& desc);

bool panels_pay(int device);
/// All of `from`, to `to`. Arguments are valid.
void lay_panels(Stream& stream, const WeightMatrices& matrices, PanelWay way, const void* from, void* to);
}  // namespace cuda

/// dst[i] = scale * normal(seed, i): Philox4x32-10 with counter i/4, then Box-Muller on pairs. The uniforms are exact
/// on every device; the transcendental part is computed in float64 and rounded once, so that CPU and CUDA agree to the
/// last bit but for ties.
void fill_normal(Stream& s, void* dst, DType dtype, int64_t n, uint64_t seed, float scale);

}  // namespace nexus
