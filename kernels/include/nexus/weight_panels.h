// Weights of linear layers in the order in which the kernels for many rows read them.
//
//   [experts, n, k] → [experts, k / 64, n, 64]
//
// A step of such a kernel takes 64 or 128 columns of k of some 128 rows: 128 bytes of each row, thousands of bytes
// apart, or in panels whole kilobytes in a row. The rows of a gated layer come sixteen by sixteen as their eight gates
// and then their eight ups, as a tile wants them. An expert's weights begin where they did and sums run over k as ever:
// the same bits.
#pragma once
#include <cstdint>

#include "nexus/runtime.h"

namespace nexus {

constexpr int64_t kPanelColumns = 64;

/// Where row `row` of a weight matrix lies among a panel's.
constexpr int64_t panel_row(int64_t row, bool gated) {
  return gated ? row / 16 * 16 + row % 2 * 8 + row % 16 / 2 : row;
}
/// Where an element lies among an expert's n × k.
constexpr int64_t panel_element(int64_t row, int64_t column, int64_t n, bool gated) {
  return (column / kPanelColumns * n + panel_row(row, gated)) * kPanelColumns + column % kPanelColumns;
}

/// The weights of a linear layer: [experts, n, k], n before a gated epilogue halves it.
struct WeightMatrices {
  DType dtype = DType::kBF16;
  int64_t experts = 1, n = 0, k = 0;
  bool gated = false;
};
/// Whether they can be in panels: elements of 16 bits, k a multiple of 64, n of 8, or of 16 if gated.
bool fit_panels(const WeightMatrices& matrices);
/// Whether a device's kernels are faster on them: those of compute capability 9.0.
bool panels_pay(DeviceId device);

enum class PanelWay : int32_t { kFromRows = 0, kToRows = 1 };
/// Bytes of scratch memory for lay_panels(): some experts' weights.
size_t lay_panels_bytes(const WeightMatrices& matrices);
/// Lays weights into panels, or back, in stream order, where they are. On CUDA. kInvalidArgument: they do not fit.
void lay_panels(Stream& stream, const WeightMatrices& matrices, PanelWay way, void* weight, void* scratch);

}  // namespace nexus
