// What one executable graph of CUDA holds, told from what the device's free memory lost while it was made: the driver
// has no figure for a single one.
//
// The free memory is that of the whole device. Whatever another process, or another thread of this one, took meanwhile
// is in the difference, and so is what the driver sets up once for all graphs. So a difference counts only as far as
// one graph can explain it; beyond that the figure is that bound, and says that it is an estimate.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace nexus {

struct GraphBytes {
  int64_t bytes = 0;
  bool estimated = false;  ///< the difference was not this graph's alone: `bytes` is the bound
};

/// The driver takes device memory in pieces of so many bytes.
constexpr int64_t kGraphPieceBytes = int64_t{2} << 20;
/// A node: its arguments (a kernel has at most 32764 bytes of them), its launch descriptor, and as much again.
constexpr int64_t kGraphNodeBytes = int64_t{64} << 10;

/// The most that is believed of a graph of `nodes` nodes recorded on `streams` streams: its nodes in whole pieces, one
/// piece more for each stream, whose work is a queue of its own, and one that may be begun.
constexpr int64_t graph_bytes_bound(int64_t nodes, int64_t streams) {
  const int64_t pieces = (nodes * kGraphNodeBytes + kGraphPieceBytes - 1) / kGraphPieceBytes;
  return (pieces + streams + 1) * kGraphPieceBytes;
}

/// From the device's free bytes before and after. Pieces are shared: a graph may take 0 and the next one 2 MiB. Memory
/// that others gave back meanwhile hides some of it; less than 0 never.
constexpr GraphBytes graph_bytes(size_t free_before, size_t free_after, int64_t nodes, int64_t streams) {
  const int64_t lost = free_before > free_after ? static_cast<int64_t>(free_before - free_after) : 0;
  const int64_t bound = graph_bytes_bound(nodes, streams);
  return {std::min(lost, bound), lost > bound};
}

}  // namespace nexus
