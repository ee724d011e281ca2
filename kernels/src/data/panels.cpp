// Weights in panels: when they can be, and laying them so. See nexus/weight_panels.h.
#include "data/panels.h"

#include <algorithm>

#include "data/backend.h"
#include "data/validate.h"

namespace nexus {
namespace {

/// Experts' weights that are laid at a time: one's, or as many as this holds.
constexpr int64_t kScratchBytes = int64_t{64} << 20;

int64_t bytes_of_one(const WeightMatrices& m) { return m.n * m.k * static_cast<int64_t>(size_of(m.dtype)); }
int64_t at_once(const WeightMatrices& m) { return std::clamp<int64_t>(kScratchBytes / bytes_of_one(m), 1, m.experts); }
int64_t rows_unit(const WeightMatrices& m) { return m.gated ? 16 : 8; }

}  // namespace

bool fit_panels(const WeightMatrices& m) {
  return size_of(m.dtype) == 2 && m.experts > 0 && m.n > 0 && m.k > 0 && m.k % kPanelColumns == 0 &&
         m.n % rows_unit(m) == 0;
}

bool panels_pay(DeviceId device) { return !device.is_cpu() && cuda::panels_pay(device.index); }

void check_panels(const WeightMatrices& m) {
  using namespace validate;
  if (size_of(m.dtype) != 2)
    throw_invalid(std::string("dtype: expected bf16 or f16 with weights in panels, got ") + name_of(m.dtype));
  in_range("experts", m.experts, 1, INT32_MAX - 1);
  in_range("k", m.k, 1, INT32_MAX);
  in_range("n", m.n, 1, INT32_MAX);
  const auto multiple = [](const char* name, int64_t value, int64_t unit) {
    if (value % unit != 0)
      throw_invalid(std::string(name) + ": expected a multiple of " + std::to_string(unit) +
                    " with weights in panels, got " + std::to_string(value));
  };
  multiple("k", m.k, kPanelColumns);
  multiple("n", m.n, rows_unit(m));
}

void check_panels(bool in_panels, DeviceId device, const char* name) {
  if (in_panels && device.is_cpu()) throw_unsupported(std::string(name) + ": expected weights in rows on the CPU");
}

size_t lay_panels_bytes(const WeightMatrices& m) {
  check_panels(m);
  return static_cast<size_t>(at_once(m) * bytes_of_one(m));
}

void lay_panels(Stream& stream, const WeightMatrices& m, PanelWay way, void* weight, void* scratch) {
  check_panels(m);
  validate::in_range("way", static_cast<int>(way), 0, 1);
  validate::pointer("weight", weight);
  validate::pointer("scratch", scratch);
  if (stream.device().is_cpu()) throw_unsupported("lay_panels: expected a stream on a CUDA device, got one on the CPU");
  const int64_t each = at_once(m);
  for (int64_t first = 0; first < m.experts; first += each) {
    const int64_t count = std::min(each, m.experts - first);
    void* const at = static_cast<char*>(weight) + first * bytes_of_one(m);
    stream.copy(scratch, at, static_cast<size_t>(count * bytes_of_one(m)));
    cuda::lay_panels(stream, {m.dtype, count, m.n, m.k, m.gated}, way, scratch, at);
  }
}

}  // namespace nexus
