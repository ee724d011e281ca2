// cpu::grouped_linear: one closure on the stream, see gemm.cpp.
#include <algorithm>

#include "data/backend.h"
#include "data/cpu/gemm.h"
#include "data/cpu/variants.h"

namespace nexus::cpu {

void grouped_linear(Stream& stream, const GroupedLinearDesc& desc, const GroupedLinearArgs& args) {
  GroupedProduct p{.input_dtype = desc.dtype, .weight_dtype = desc.dtype, .output_dtype = desc.dtype};
  p.experts = desc.experts;
  p.k = desc.k;
  p.n = desc.n;
  p.epilogue = desc.epilogue;
  p.params = desc.params;
  p.input = args.input;
  p.weight = args.weight;
  p.bias = args.bias;
  p.output = args.output;
  p.offsets = args.offsets;
  p.order = args.order;
  p.rows_per_input = args.rows_per_input;
  p.gather = args.gather;
  p.scatter = args.scatter;
  p.row_scale = args.row_scale;
  p.max_rows = args.max_rows;
  p.step = args.step;
  p.step_input = args.step_input;
  p.lanes = args.lanes;
  p.kernel = choose(desc, args.choice_rows > 0 ? args.choice_rows : args.max_rows, args.choice);
  p.workers = std::max(1, stream.width());
  stream.enqueue([p] { run_grouped_product(p); });
}

}  // namespace nexus::cpu
