// The table of lanes on a device. One implementation for all devices: the table is a stream-ordered copy from host
// memory that is kept (pinned, recycled by its pool) until the copy is done, so an update never waits for the device,
// and launches that are already queued still see the table that they were queued behind.
#include <algorithm>
#include <mutex>
#include <new>
#include <string>
#include <type_traits>

#include "exec/fault.h"
#include "nexus/step.h"

namespace nexus {
namespace {

static_assert(std::is_trivially_copyable_v<LaneTable>);

std::string range(int64_t low, int64_t high, int64_t got) {
  return "expected " + std::to_string(low) + ".." + std::to_string(high) + ", got " + std::to_string(got);
}

void check(const std::vector<int32_t>& lane_of, int lanes, const std::vector<int32_t>& shares) {
  for (size_t e = 0; e < lane_of.size(); ++e)
    if (lane_of[e] < 0 || lane_of[e] >= lanes)
      throw_invalid("lane_of[" + std::to_string(e) + "]: " + range(0, lanes - 1, lane_of[e]));
  if (!shares.empty() && shares.size() != static_cast<size_t>(lanes))
    throw_invalid("shares: expected one for each of " + std::to_string(lanes) + " lanes, or none, got " +
                  std::to_string(shares.size()));
  int64_t total = 0;
  for (size_t l = 0; l < shares.size(); ++l) {
    if (shares[l] < 1)
      throw_invalid("shares[" + std::to_string(l) + "]: expected at least 1, got " + std::to_string(shares[l]));
    total += shares[l];
  }
  if (total > INT32_MAX) throw_invalid("shares: expected a sum below 2^31, got " + std::to_string(total));
}

class DeviceLaneSet final : public LaneSet {
 public:
  DeviceLaneSet(const std::shared_ptr<Stream>& stream, int experts, int lanes, bool trace)
      : experts_(experts), lanes_(lanes), table_(Buffer::allocate(stream, sizeof(LaneTable))), owner_(stream) {
    if (!trace) return;
    trace_ = Buffer::allocate(stream, trace_bytes(kMaxLanes));
    stream->fill(trace_->data(), 0, trace_->bytes());
  }

  void update(const std::shared_ptr<Stream>& stream, std::vector<int32_t> lane_of,
              std::vector<int32_t> shares) override {
    check_stream(stream);
    if (lane_of.size() != static_cast<size_t>(experts_))
      throw_invalid("lane_of: expected " + std::to_string(experts_) + " experts, got " +
                    std::to_string(lane_of.size()));
    check(lane_of, lanes_, shares);
    fault_point("lane_set.update", *stream);
    if (stream->capturing())
      throw Error(ErrorCode::kGraphCapture,
                  "LaneSet::update: cannot be recorded in a graph, which would repeat it; update between launches");
    std::shared_ptr<HostBuffer> staging = HostBuffer::allocate(table_->device(), sizeof(LaneTable));
    auto* table = new (staging->data()) LaneTable;
    table->lanes = lanes_;
    for (int l = 0; l < lanes_; ++l)
      table->begin[l + 1] = table->begin[l] + (shares.empty() ? 1 : shares[static_cast<size_t>(l)]);
    table->total = table->begin[lanes_];
    std::copy(lane_of.begin(), lane_of.end(), table->lane_of);
    record_use(stream);
    const std::lock_guard lock(mutex_);  // the last one queued is the last one kept
    stream->copy(table_->data(), table, sizeof(LaneTable));
    lane_of_ = std::move(lane_of);
    shares_ = std::move(shares);
    on_complete(stream, [staging](std::exception_ptr) {});
  }

  std::shared_ptr<LaneSet> copy(const std::shared_ptr<Stream>& stream) const override {
    check_stream(stream);
    const std::lock_guard lock(mutex_);
    return LaneSet::create(stream, lane_of_, lanes_, shares_, false);
  }

  LaneView view(int lane) const override {
    if (lane < -1 || lane >= lanes_) throw_invalid("lane: " + range(-1, lanes_ - 1, lane));
    return {static_cast<const LaneTable*>(table_->data()), lane,
            trace_ ? static_cast<uint32_t*>(trace_->data()) : nullptr};
  }
  int lanes() const override { return lanes_; }
  int experts() const override { return experts_; }
  bool traced() const override { return trace_ != nullptr; }

  void record_use(const std::shared_ptr<Stream>& stream) override {
    check_stream(stream);
    if (stream == owner_) return;
    table_->record_use(stream);
    if (trace_) trace_->record_use(stream);
  }

  void take_trace(const std::shared_ptr<Stream>& stream, uint32_t* out) override {
    check_stream(stream);
    if (!trace_) throw_unsupported("LaneSet::take_trace: the lane set was made without a trace");
    if (out == nullptr) throw_invalid("out: expected memory, got null");
    record_use(stream);
    stream->copy(out, trace_->data(), trace_bytes(lanes_));
    stream->fill(trace_->data(), 0, trace_->bytes());
  }

 private:
  static size_t trace_bytes(int lanes) { return static_cast<size_t>(lanes) * kTraceWords * sizeof(uint32_t); }
  void check_stream(const std::shared_ptr<Stream>& stream) const {
    if (!stream) throw_invalid("stream: expected a stream, got null");
    if (!(stream->device() == table_->device()))
      throw_invalid("stream: expected one of " + table_->device().name() + ", got one of " + stream->device().name());
  }

  int experts_, lanes_;
  mutable std::mutex mutex_;
  std::vector<int32_t> lane_of_, shares_;  // of the last update
  std::shared_ptr<Buffer> table_, trace_;
  std::shared_ptr<Stream> owner_;
};

}  // namespace

std::shared_ptr<LaneSet> LaneSet::create(const std::shared_ptr<Stream>& stream, std::vector<int32_t> lane_of, int lanes,
                                         std::vector<int32_t> shares, bool trace) {
  if (!stream) throw_invalid("stream: expected a stream, got null");
  if (lanes < 1 || lanes > kMaxLanes) throw_invalid("lanes: " + range(1, kMaxLanes, lanes));
  const int64_t experts = static_cast<int64_t>(lane_of.size());
  if (experts < 1 || experts > kLaneExperts)
    throw_invalid("lane_of: expected 1.." + std::to_string(kLaneExperts) + " experts, got " + std::to_string(experts));
  check(lane_of, lanes, shares);
  auto set = std::make_shared<DeviceLaneSet>(stream, static_cast<int>(experts), lanes, trace);
  set->update(stream, std::move(lane_of), std::move(shares));
  return set;
}

}  // namespace nexus
