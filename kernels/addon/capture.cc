#include "capture.h"

#include <algorithm>

namespace nexus::addon {
namespace {

struct OpenCapture {
  uint64_t id;  ///< of the stream's handle
  std::shared_ptr<Stream> stream;
  Kept kept;
};

/// A capture is begun and ended by the thread of its environment.
thread_local std::vector<OpenCapture> open_captures;

OpenCapture take(uint64_t id) {
  const auto found = std::ranges::find(open_captures, id, &OpenCapture::id);
  if (found == open_captures.end()) throw Error(ErrorCode::kGraphCapture, "stream: no capture was begun on it");
  OpenCapture capture = std::move(*found);
  open_captures.erase(found);
  return capture;
}

}  // namespace

void begin_capture(const StreamHandle& stream) {
  // Room first: what is begun must be found again.
  open_captures.reserve(open_captures.size() + 1);
  Graph::begin(stream.object);
  open_captures.push_back({stream.id, stream.object, {}});
}

std::shared_ptr<RecordedGraph> end_capture(const StreamHandle& stream) {
  OpenCapture capture = take(stream.id);
  auto graph = Graph::end(capture.stream);
  return std::make_shared<RecordedGraph>(RecordedGraph{std::move(graph), std::move(capture.kept)});
}

void abort_capture(const StreamHandle& stream) { Graph::abort(take(stream.id).stream); }

void abort_captures() noexcept {
  for (auto& capture : open_captures) Graph::abort(capture.stream);
  open_captures.clear();
}

void launch(RecordedGraph& graph, const StreamHandle& stream) {
  refuse_capture(stream, "a graph cannot be launched into another one");
  if (graph.used_on != stream.id) {
    for (const auto& [_, buffer] : graph.kept.buffers) buffer->record_use(stream.object);
    for (const auto& [_, lanes] : graph.kept.lanes) lanes->record_use(stream.object);
    for (const auto& [_, ring] : graph.kept.rings) ring->record_use(stream.object);
    graph.used_on = stream.id;
  }
  graph.graph->launch(stream.object);
}

bool any_capture() { return !open_captures.empty(); }

void refuse_capture(const StreamHandle& stream, const char* what) {
  if (capturing(stream)) {
    throw Error(ErrorCode::kGraphCapture, std::string("stream: is being recorded, and ") + what);
  }
}

void keep(const std::shared_ptr<Buffer>& buffer) {
  for (auto& capture : open_captures) capture.kept.buffers.emplace(buffer.get(), buffer);
}
void keep(const std::shared_ptr<LaneSet>& lanes) {
  for (auto& capture : open_captures) capture.kept.lanes.emplace(lanes.get(), lanes);
}
void keep(const std::shared_ptr<CountRing>& ring) {
  for (auto& capture : open_captures) capture.kept.rings.emplace(ring.get(), ring);
}

LaneView lane_view(const StreamHandle& stream, const Napi::Value& lanes, int experts, const Napi::Value& lane) {
  if (absent(lanes)) return {};
  const auto& handle = unwrap<LaneSetHandle>(lanes, "lanes");
  if (handle.device != stream.object->device()) {
    throw_invalid("lanes: are on " + handle.device.name() + ", the stream is on " + stream.object->device().name());
  }
  if (handle.object->experts() != experts) {
    throw_invalid("lanes: expected lanes of " + std::to_string(experts) + " experts, got lanes of " +
                  std::to_string(handle.object->experts()));
  }
  const int chosen = integer32(lane, "lane", -1, handle.object->lanes() - 1);
  handle.object->record_use(stream.object);
  if (any_capture()) keep(handle.object);
  return handle.object->view(chosen);
}

CountRing* ring_of(const StreamHandle& stream, const Napi::Value& ring, int experts) {
  if (absent(ring)) return nullptr;
  auto& handle = unwrap<CountRingHandle>(ring, "ring");
  if (handle.device != stream.object->device()) {
    throw_invalid("ring: is on " + handle.device.name() + ", the stream is on " + stream.object->device().name());
  }
  if (handle.object->experts() != experts) {
    throw_invalid("ring: expected a ring of " + std::to_string(experts) + " experts, got one of " +
                  std::to_string(handle.object->experts()));
  }
  if (handle.recorded != stream.id) {
    handle.object->record_use(stream.object);
    handle.recorded = stream.id;
  }
  if (any_capture()) keep(handle.object);
  return handle.object.get();
}

Napi::Object graph_info(Napi::Env env, int nodes, int64_t bytes, bool estimated, double capture_ms) {
  auto o = Napi::Object::New(env);
  o.Set("nodes", nodes);
  o.Set("bytes", static_cast<double>(bytes));
  o.Set("bytesEstimated", estimated);
  o.Set("captureMs", capture_ms);
  return o;
}

}  // namespace nexus::addon
