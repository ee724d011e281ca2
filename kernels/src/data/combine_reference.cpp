// Oracle of combine: the definition in float64.
#include "data/reference.h"
#include "nexus/combine.h"

namespace nexus {

void combine_reference(const CombineArgs& a, double* out) {
  using reference::element;
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t c = 0; c < a.width; ++c) {
      double sum = 0;
      for (int64_t slot = t * a.top_k; slot < (t + 1) * a.top_k; ++slot) {
        const double term = (a.weights ? a.weights[slot] : 1.0) * element(a.rows, a.dtype, slot * a.width + c);
        if (a.mode == CombineMode::kConcat) out[slot * a.width + c] = term;
        sum += term;
      }
      if (a.mode == CombineMode::kConcat) continue;
      if (a.shared) sum += (a.shared_scale ? a.shared_scale[t] : 1.0) * element(a.shared, a.dtype, t * a.width + c);
      out[t * a.width + c] = sum;
    }
  }
}

}  // namespace nexus
