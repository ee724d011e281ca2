// Oracle of grouped_linear: the definition in float64, one dot product at a time.
#include "data/reference.h"

namespace nexus {

void grouped_linear_reference(const GroupedLinearDesc& d, const GroupedLinearArgs& a, double* output) {
  using reference::element;
  const int64_t width = is_gated(d.epilogue) ? d.n / 2 : d.n;
  std::vector<double> x(static_cast<size_t>(d.k)), y(static_cast<size_t>(d.n));
  const int32_t whole[2] = {0, static_cast<int32_t>(a.max_rows)};
  const int32_t* offsets = a.offsets ? a.offsets : whole;
  for (int64_t e = 0; e < d.experts; ++e) {
    for (int64_t r = offsets[e]; r < offsets[e + 1]; ++r) {
      const int64_t from = a.gather ? a.order[r] / a.rows_per_input : r;
      const double scale = a.row_scale ? a.row_scale[a.order ? a.order[r] : r] : 1.0;
      for (int64_t i = 0; i < d.k; ++i) x[static_cast<size_t>(i)] = element(a.input, d.dtype, from * d.k + i);
      for (int64_t j = 0; j < d.n; ++j) {
        double sum = 0;
        const auto place = [&](int64_t i) {
          return d.in_panels ? panel_element(j, i, d.n, is_gated(d.epilogue)) : j * d.k + i;
        };
        for (int64_t i = 0; i < d.k; ++i)
          sum += x[static_cast<size_t>(i)] * element(a.weight, d.dtype, e * d.n * d.k + place(i));
        y[static_cast<size_t>(j)] = sum * scale + (a.bias ? a.bias[e * d.n + j] : 0.0);
      }
      double* out = output + (a.scatter ? a.order[r] : r) * width;
      for (int64_t j = 0; j < width; ++j) {
        const size_t at = static_cast<size_t>(j);
        out[j] = is_gated(d.epilogue) ? reference::activate(d.epilogue, d.params, y[2 * at], y[2 * at + 1])
                                      : reference::activate(d.epilogue, d.params, y[at], 0);
      }
    }
  }
}

}  // namespace nexus
