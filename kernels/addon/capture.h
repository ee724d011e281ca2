// Graphs under recording, seen from the boundary: which are open on this thread, what they keep alive, and what must
// not be recorded. A recorded graph holds raw pointers, so every buffer, lane set and ring that a call names while a
// capture is open is kept by its graph, also when JavaScript lets go of it.
#pragma once
#include <memory>
#include <unordered_map>
#include <vector>

#include "boundary.h"

namespace nexus::addon {

struct CountRingHandle : HandleOf<CountRing, Kind::kCountRing> {
  CountRingHandle(std::shared_ptr<CountRing> ring, DeviceId device) : HandleOf(std::move(ring)), device(device) {}
  const DeviceId device;
  uint64_t recorded = 0;  ///< id of the last stream that record_use was told of
};
struct LaneSetHandle : HandleOf<LaneSet, Kind::kLaneSet> {
  LaneSetHandle(std::shared_ptr<LaneSet> lanes, DeviceId device) : HandleOf(std::move(lanes)), device(device) {}
  const DeviceId device;
};

/// What the operations of a graph use.
struct Kept {
  std::unordered_map<const Buffer*, std::shared_ptr<Buffer>> buffers;
  std::unordered_map<const LaneSet*, std::shared_ptr<LaneSet>> lanes;
  std::unordered_map<const CountRing*, std::shared_ptr<CountRing>> rings;
};
struct RecordedGraph {
  std::shared_ptr<Graph> graph;
  Kept kept;
  uint64_t used_on = 0;  ///< id of the stream that what it keeps was last told of
};
using GraphHandle = HandleOf<RecordedGraph, Kind::kGraph>;

void begin_capture(const StreamHandle& stream);
std::shared_ptr<RecordedGraph> end_capture(const StreamHandle& stream);  ///< also of a stream that was released
void abort_capture(const StreamHandle& stream);
/// Undoes what a closing environment has left open on this thread.
void abort_captures() noexcept;
void launch(RecordedGraph& graph, const StreamHandle& stream);

bool any_capture();  ///< on this thread; the question to ask first, since it costs nothing
inline bool capturing(const StreamHandle& stream) { return any_capture() && stream.object->capturing(); }
/// kGraphCapture where `stream` is being recorded: `what` cannot be part of a graph.
void refuse_capture(const StreamHandle& stream, const char* what);
void keep(const std::shared_ptr<Buffer>& buffer);
void keep(const std::shared_ptr<LaneSet>& lanes);
void keep(const std::shared_ptr<CountRing>& ring);

/// The view for a launch on `stream` (null: none): checks device, number of experts and lane.
LaneView lane_view(const StreamHandle& stream, const Napi::Value& lanes, int experts, const Napi::Value& lane);
/// The ring for work on `stream`, or null: checks device and number of experts.
CountRing* ring_of(const StreamHandle& stream, const Napi::Value& ring, int experts);

/// RawGraphInfo.
Napi::Object graph_info(Napi::Env env, int nodes, int64_t bytes, bool estimated, double capture_ms);

}  // namespace nexus::addon
