// Public combine functions and the unfused operations: validation, then the backend of the stream's device.
#include "nexus/combine.h"

#include "data/backend.h"
#include "data/validate.h"

namespace nexus {

void combine(Stream& stream, const CombineArgs& args) {
  using namespace validate;
  floating("dtype", args.dtype);
  in_range("mode", static_cast<int>(args.mode), 0, 1);
  at_least("tokens", args.tokens, 0);
  at_least("width", args.width, 1);
  at_least("top_k", args.top_k, 1);
  slots(args.tokens, args.top_k);
  if (args.mode == CombineMode::kConcat && args.shared)
    throw_invalid("shared: expected null with concat, which has no place for it");
  if (args.shared_scale && !args.shared) throw_invalid("shared: expected memory with shared_scale, got null");
  if (args.tokens == 0) return;
  pointer("rows", args.rows);
  if (!args.step) pointer("out", args.out);
  if (args.ring.slots) {
    pointer("counts", args.counts);
    at_least("experts", args.experts, 1);
    ring(args.ring, args.experts);
  }
  stream.device().is_cpu() ? cpu::combine(stream, args) : cuda::combine(stream, args);
}

void shared_gate(Stream& stream, const SharedGateArgs& args) {
  using namespace validate;
  floating("dtype", args.dtype);
  in_range("tokens", args.tokens, 0, INT32_MAX);
  at_least("hidden", args.hidden, 1);
  if (args.tokens == 0) return;
  if (!args.step) pointer("x", args.x);
  pointer("weight", args.weight);
  pointer("scale", args.scale);
  stream.device().is_cpu() ? cpu::shared_gate(stream, args) : cuda::shared_gate(stream, args);
}

void gather_rows(Stream& s, DType dtype, const void* x, const int32_t* order, int64_t first, int64_t n,
                 int32_t rows_per_input, int64_t width, void* out) {
  using namespace validate;
  floating("dtype", dtype);
  in_range("first", first, 0, INT32_MAX);
  in_range("n", n, 0, INT32_MAX);
  at_least("rows_per_input", rows_per_input, 1);
  at_least("width", width, 1);
  if (n == 0) return;
  pointer("x", x);
  pointer("order", order);
  pointer("out", out);
  const auto run = s.device().is_cpu() ? cpu::gather_rows : cuda::gather_rows;
  run(s, dtype, x, order, first, n, rows_per_input, width, out);
}

void activate(Stream& s, DType dtype, Epilogue epilogue, const EpilogueParams& params, const void* in, int64_t n,
              int64_t width, void* out) {
  using namespace validate;
  floating("dtype", dtype);
  const int e = static_cast<int>(epilogue);
  if (!((e >= 0 && e <= 4) || (e >= 16 && e <= 20)))
    throw_invalid("epilogue: expected a value of Epilogue, got " + std::to_string(e));
  if (epilogue == Epilogue::kClampedSwiglu) {
    finite_not_negative("params.limit", params.limit);
    finite("params.alpha", params.alpha);
  }
  in_range("n", n, 0, INT32_MAX);
  at_least("width", width, 1);
  if (n == 0) return;
  pointer("in", in);
  pointer("out", out);
  if (is_gated(epilogue) && in == out)
    throw_invalid("out: expected other memory than `in` with a gated epilogue, whose output has other columns");
  const auto run = s.device().is_cpu() ? cpu::activate : cuda::activate;
  run(s, dtype, epilogue, params, in, n, width, out);
}

void index_add(Stream& s, DType dtype, const void* rows, const float* weights, const int32_t* order, int64_t first,
               int64_t n, int32_t top_k, int64_t width, float* acc) {
  using namespace validate;
  floating("dtype", dtype);
  in_range("first", first, 0, INT32_MAX);
  in_range("n", n, 0, INT32_MAX);
  at_least("top_k", top_k, 1);
  at_least("width", width, 1);
  if (n == 0) return;
  pointer("rows", rows);
  pointer("weights", weights);
  pointer("order", order);
  pointer("acc", acc);
  const auto run = s.device().is_cpu() ? cpu::index_add : cuda::index_add;
  run(s, dtype, rows, weights, order, first, n, top_k, width, acc);
}

void cast(Stream& s, const void* src, DType from, void* dst, DType to, int64_t n) {
  using namespace validate;
  floating("from", from);
  floating("to", to);
  at_least("n", n, 0);
  if (n == 0) return;
  pointer("src", src);
  pointer("dst", dst);
  s.device().is_cpu() ? cpu::cast(s, src, from, dst, to, n) : cuda::cast(s, src, from, dst, to, n);
}

}  // namespace nexus
