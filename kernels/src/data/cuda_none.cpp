// The cuda:: half of the data plane in a build without CUDA: each function says so.
#include "data/backend.h"

namespace nexus::cuda {
namespace {
[[noreturn]] void no_cuda(const char* what) { throw_unsupported(std::string(what) + ": this build has no CUDA"); }
}  // namespace

size_t route_workspace_bytes(const RouterDesc&, int64_t) { no_cuda("route_workspace_bytes"); }
bool route(Stream&, const RouterDesc&, const RouteArgs&) { no_cuda("route"); }
void router_logits(Stream&, const RouterLogitsArgs&) { no_cuda("router_logits"); }
void grouped_linear(Stream&, const GroupedLinearDesc&, const GroupedLinearArgs&) { no_cuda("grouped_linear"); }
std::string grouped_linear_variant(const GroupedLinearDesc&, int64_t, bool, const VariantChoice&) {
  no_cuda("grouped_linear_variant");
}
std::vector<VariantCandidate> grouped_linear_candidates(DeviceId, const GroupedLinearDesc&, int64_t) {
  no_cuda("grouped_linear_candidates");
}
std::string device_class(DeviceId) { no_cuda("device_class"); }
bool decode_step(Stream&, const RouterDesc&, const MlpDesc&, const DecodeArgs&) { no_cuda("decode_step"); }
bool grouped_pair(Stream&, const GroupedLinearDesc&, const GroupedLinearArgs&, const GroupedLinearDesc&,
                  const GroupedLinearArgs&, void*) {
  no_cuda("grouped_mlp");
}
size_t mlp_counter_bytes(const MlpDesc&) { return 0; }
bool panels_pay(int) { return false; }
void lay_panels(Stream&, const WeightMatrices&, PanelWay, const void*, void*) { no_cuda("lay_panels"); }
void combine(Stream&, const CombineArgs&) { no_cuda("combine"); }
void shared_gate(Stream&, const SharedGateArgs&) { no_cuda("shared_gate"); }
void gather_rows(Stream&, DType, const void*, const int32_t*, int64_t, int64_t, int32_t, int64_t, void*) {
  no_cuda("gather_rows");
}
void activate(Stream&, DType, Epilogue, const EpilogueParams&, const void*, int64_t, int64_t, void*) {
  no_cuda("activate");
}
void index_add(Stream&, DType, const void*, const float*, const int32_t*, int64_t, int64_t, int32_t, int64_t, float*) {
  no_cuda("index_add");
}
void cast(Stream&, const void*, DType, void*, DType, int64_t) { no_cuda("cast"); }
void fill_normal(Stream&, void*, DType, int64_t, uint64_t, float) { no_cuda("fill_normal"); }

}  // namespace nexus::cuda
