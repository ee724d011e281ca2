// Weights from rows into panels and back (nexus/weight_panels.h), from one place to another, 16 bytes a thread.
//
//   2 bytes moved an element and way; neighbouring threads are neighbours in a panel, where 128 bytes of a row lie
//   together, which is as much as memory gives at a time.
#include <algorithm>

#include "data/backend.h"
#include "data/cuda/arch.h"
#include "data/cuda/grouped.h"
#include "data/cuda/launch.h"

namespace nexus::cuda {
namespace {

constexpr int kThreads = 256, kVec = 8;  // 16-bit elements of a word

template <bool TO_ROWS>
__global__ void __launch_bounds__(kThreads)
    lay_panels_kernel(const uint4* from, uint4* to, int64_t words, int64_t n, int64_t k, bool gated) {
  wait_for_previous();
  release_next();
  constexpr int64_t kWords = kPanelColumns / kVec;  // of a panel's row
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < words; at += int64_t{gridDim.x} * kThreads) {
    const int64_t expert = at / (n * k / kVec), inside = at - expert * (n * k / kVec);
    const int64_t panel = inside / (n * kWords), row = inside / kWords - panel * n, word = inside % kWords;
    // Row r of a panel is this one of the matrix: the inverse of panel_row().
    const int64_t own = gated ? row / 16 * 16 + row % 8 * 2 + row % 16 / 8 : row;
    const int64_t in_rows = ((expert * n + own) * k + panel * kPanelColumns) / kVec + word;
    if constexpr (TO_ROWS)
      to[in_rows] = from[at];
    else
      to[at] = from[in_rows];
  }
}

}  // namespace

bool panels_pay(int device) { return hopper_path(device); }

void lay_panels(Stream& stream, const WeightMatrices& m, PanelWay way, const void* from, void* to) {
  const Target at = target(stream);
  const int64_t words = m.experts * m.n * m.k / kVec;
  const auto kernel = way == PanelWay::kToRows ? &lay_panels_kernel<true> : &lay_panels_kernel<false>;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((words + kThreads - 1) / kThreads, 16 * at.width));
  launch("lay_panels", kernel, blocks, kThreads, 0, at.device, at.stream, static_cast<const uint4*>(from),
         static_cast<uint4*>(to), words, m.n, m.k, m.gated);
}

}  // namespace nexus::cuda
