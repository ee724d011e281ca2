// Host side of the grouped linear layer: dispatch by dtype, grids, and the names of what runs. What is chosen, and why,
// is in variants_cuda.cpp. See grouped.h.
#include "data/backend.h"
#include "data/cuda/check.h"
#include "data/cuda/decode_path.h"
#include "data/cuda/gemv.h"
#include "data/cuda/grouped.h"
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_mlp.h"
#include "data/cuda/mlp_path.h"
#include "data/cuda/mlp_tiles.h"
#include "exec/cuda_device.h"

namespace nexus::cuda {
namespace {

/// Of a layer that is small enough for L2, and is stepped again and again, the weights had better stay there.
constexpr int64_t kCachedBytes = int64_t{32} << 20;

bool rows_aligned(DType dtype, int64_t k) { return k * static_cast<int64_t>(size_of(dtype)) % 16 == 0; }
int64_t rows_of_choice(const GroupedLinearArgs& args) {
  return args.choice_rows > 0 ? args.choice_rows : args.max_rows;
}

}  // namespace

Problem problem_of(const GroupedLinearDesc& desc, int64_t rows, int device) {
  return {desc.dtype,
          desc.k,
          desc.n,
          desc.experts,
          rows,
          rows_aligned(desc.dtype, desc.k),
          device_facts(device).shared_memory_limit,
          hopper_path(device),
          is_gated(desc.epilogue)};
}

unsigned plan_grid(const Variant& variant, GroupedParams& params) {
  if (params.k > 0x7fffff00 || params.n > 0x7fffff00)
    throw_unsupported("k, n: got " + std::to_string(params.k) + ", " + std::to_string(params.n) +
                      ", expected less than 2^31");
  const int64_t n_tiles = (params.n + variant.bn - 1) / variant.bn;
  const int64_t blocks = n_tiles * max_row_tiles(params.max_rows, params.experts, variant.bm);
  if (blocks > 0x7fffffff) throw_unsupported("rows × n: " + std::to_string(blocks) + " tiles exceed CUDA's grid limit");
  params.n_tiles = static_cast<int>(n_tiles);
  return static_cast<unsigned>(blocks);
}

namespace {

/// What runs, and what it gets.
struct Prepared {
  const Variant* variant;
  GroupedParams params;
};
Prepared prepare(const GroupedLinearDesc& desc, const GroupedLinearArgs& args, const Target& to) {
  // The x of a step is known on the device only; whoever writes the block answers for its alignment (step.h).
  const StepBlock* const step = args.step_input ? args.step : nullptr;
  Problem problem = problem_of(desc, rows_of_choice(args), to.device);
  const bool aligned = (step || aligned16(args.input)) && aligned16(args.weight);
  if (args.choice.batch_invariant && problem.aligned && !aligned)
    throw_invalid("input, weight: expected memory aligned to 16 bytes with batch-invariant sums");
  problem.aligned = problem.aligned && aligned;
  const Variant& chosen = choose(problem, variant_key(desc), args.choice);
  // The same bits in all of them. A limit of bytes under way is kept best by the shape with the smallest buffers.
  const Variant& variant = to.share_sm ? share_sm(chosen, problem) : to.read_ahead > 0 ? plain_shape(chosen) : chosen;
  GroupedParams p{};
  p.step = step, p.lanes = args.lanes, p.ready = args.ready;
  p.input = args.input, p.weight = args.weight, p.bias = args.bias, p.output = args.output;
  p.offsets = args.offsets, p.order = args.order, p.row_scale = args.row_scale;
  p.k = desc.k, p.n = desc.n, p.max_rows = args.max_rows;
  p.experts = desc.experts, p.rows_per_input = args.rows_per_input;
  p.epilogue = static_cast<int>(desc.epilogue), p.limit = desc.params.limit, p.alpha = desc.params.alpha;
  p.gather = args.gather && args.order, p.scatter = args.scatter && args.order;
  p.gated = problem.gated, p.in_panels = desc.in_panels;
  p.expert_rows = static_cast<int>(desc.in_panels ? desc.n * (desc.k / kPanelColumns) : desc.n);
  p.settled = args.settled, p.copy_rows = p.gather || p.step;
  p.beyond_cache = desc.experts * desc.n * desc.k * static_cast<int64_t>(size_of(desc.dtype)) > kCachedBytes;
  p.vector_store = desc.n % 8 == 0 && aligned16(args.output);
  return {&variant, p};
}

}  // namespace

void grouped_linear(Stream& stream, const GroupedLinearDesc& desc, const GroupedLinearArgs& args) {
  if (args.max_rows == 0) return;
  const Target to = target(stream);
  const auto [chosen, p] = prepare(desc, args, to);
  const Variant& variant = *chosen;
  if (variant.kernel == Kernel::kGemv) return launch_gemv(desc.dtype, p, to);
  if (variant.kernel == Kernel::kWgmma) return launch_wgmma(variant, desc.dtype, p, to);
  switch (desc.dtype) {
    case DType::kBF16:
      return launch_mma_bf16(variant, p, to);
    case DType::kF16:
      return launch_mma_f16(variant, p, to);
    case DType::kF32:
      return launch_simt_f32(variant, p, to);
    default:
      throw_invalid(std::string("dtype: got ") + name_of(desc.dtype) + ", expected f32, bf16 or f16");
  }
}

size_t mlp_counter_bytes(const MlpDesc& desc) {
  return mlp_layers(desc.kind) == 2 ? mlp_counter_bytes(desc.experts) : 0;
}

bool grouped_pair(Stream& stream, const GroupedLinearDesc& first, const GroupedLinearArgs& first_args,
                  const GroupedLinearDesc& second, const GroupedLinearArgs& second_args, void* counters) {
  if (!mlp_path() || first_args.max_rows == 0) return false;
  const Target to = target(stream);
  const Prepared one = prepare(first, first_args, to), two = prepare(second, second_args, to);
  return launch_wgmma_mlp(first.dtype, *one.variant, *two.variant, one.params, two.params, rows_of_choice(first_args),
                          static_cast<int32_t*>(counters), to);
}

std::string grouped_linear_variant(const GroupedLinearDesc& desc, int64_t max_rows, bool shared,
                                   const VariantChoice& choice) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const Problem problem = problem_of(desc, max_rows, device);
  const Variant& chosen = choose(problem, variant_key(desc), choice);
  return (shared ? share_sm(chosen, problem) : chosen).name;
}

std::vector<VariantCandidate> grouped_linear_candidates(DeviceId device, const GroupedLinearDesc& desc, int64_t rows) {
  const Problem problem = problem_of(desc, rows, device.index);
  const SumOrder order = invariant_order(problem);
  const Variant &heuristic = choose(problem), &invariant = choose(problem, &order);
  std::vector<VariantCandidate> all;
  for (const Variant* v : candidates(problem))
    all.push_back({v->name, name_of(v->order), v == &heuristic, v == &invariant,
                   v->kernel == Kernel::kGemv && problem.hopper && decode_path()});
  return all;
}

std::string device_class(DeviceId device) {
  int multiprocessors = 0, major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device.index), "multiprocessors");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.index), "compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.index), "compute capability");
  // A Hopper GPU that runs the kernels of 8.0 is another class: its choices are others.
  const std::string arch = major == 9 && !hopper_path(device.index) ? "80 on " : "";
  return "sm_" + arch + std::to_string(10 * major + minor) + "/" + std::to_string(multiprocessors);
}

}  // namespace nexus::cuda
