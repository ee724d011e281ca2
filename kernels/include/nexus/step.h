// What travels with a step without the host waiting for it: its pointers and true token count (StepBlock), who runs
// which expert (LaneTable), and the counts that go back (CountRing).
//
// A recorded graph fixes kernel arguments, so what differs from replay to replay is read from a StepBlock in device
// memory. The first node of a recorded step writes it; its arguments are set at every launch and kept by the driver for
// that launch, so any number of launches may be queued with different blocks. (Measured on an H200: 0.7 us of device
// and of host time a step, where a ring of blocks in mapped host memory costs 2.3 us of device time.)
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "nexus/runtime.h"

namespace nexus {

/// Device memory (host memory on the CPU). Where an operation's arguments have a `step`, tokens, x, logits and out are
/// read from it when the operation runs; the arguments' own `tokens` is then an upper bound that sizes the launch.
struct StepBlock {
  const void* x = nullptr;  ///< a multiple of 16 bytes: kernels were chosen for that before it was known
  const float* logits = nullptr;
  void* out = nullptr;
  int32_t tokens = 0;
  int32_t dense[2] = {0, 0};  ///< {0, tokens}: offsets of a dense product with one expert over all tokens
  int32_t unused = 0;
};
/// Stream-ordered *current = block. Recorded in a graph, `block` is what Graph::launch(stream, block) gives instead.
void begin_step(Stream& stream, const StepBlock& block, StepBlock* current);

// ---- lanes --------------------------------------------------------------------------------------------------------

constexpr int kMaxLanes = 64;
constexpr int kLaneExperts = 1024;  ///< kMaxExperts of router.h
constexpr int kTraceWords = 8;      ///< 256 SMs (virtual workers on the CPU)

/// Which lane runs which expert, in device memory, so that experts migrate and cooperative shares change without a new
/// graph.
struct LaneTable {
  int32_t lanes = 0;
  int32_t total = 0;                   ///< begin[lanes]
  int32_t begin[kMaxLanes + 1] = {};   ///< cooperative: lane l has units begin[l] … begin[l+1]-1 of `total`
  int32_t lane_of[kLaneExperts] = {};  ///< by expert
};
/// How a grouped operation takes part. Never changes a bit of the output: only which block computes which tile.
///   table == null        all experts, all blocks
///   lane >= 0            only the experts of that lane (others' rows are left alone)
///   lane == -1           cooperative: all experts in one launch; of the launch's blocks (as a fraction of the grid)
///   the
///                        range of each lane works on that lane's experts only. A table in which some lane with experts
///                        would have no block is treated as if there were none.
struct LaneView {
  const LaneTable* table = nullptr;
  int32_t lane = -1;
  uint32_t* trace = nullptr;  ///< [kMaxLanes][kTraceWords] bits or null: SMs (workers) that computed tiles of a lane
};

/// A LaneTable and its trace on a device. Updates are stream-ordered on the given stream; whoever runs lanes on other
/// streams forks them from that stream and joins them again.
class LaneSet {
 public:
  /// lane_of: [experts], values in [0, lanes). shares: units by lane, each >= 1, or empty (1 each). kInvalidArgument
  /// names what is wrong.
  static std::shared_ptr<LaneSet> create(const std::shared_ptr<Stream>& stream, std::vector<int32_t> lane_of, int lanes,
                                         std::vector<int32_t> shares, bool trace);
  virtual ~LaneSet() = default;
  virtual void update(const std::shared_ptr<Stream>& stream, std::vector<int32_t> lane_of,
                      std::vector<int32_t> shares) = 0;
  virtual LaneView view(int lane) const = 0;
  /// A set of its own, untraced, with the lanes and shares of the last update, whatever becomes of this one.
  virtual std::shared_ptr<LaneSet> copy(const std::shared_ptr<Stream>& stream) const = 0;
  virtual int lanes() const = 0;
  virtual int experts() const = 0;
  virtual bool traced() const = 0;
  /// Says that `stream` uses the table too.
  virtual void record_use(const std::shared_ptr<Stream>& stream) = 0;
  /// Copies the trace to `out` ([lanes][kTraceWords], host memory that lives until the copy is done) and clears it, in
  /// stream order. Throws kUnsupported without a trace.
  virtual void take_trace(const std::shared_ptr<Stream>& stream, uint32_t* out) = 0;
};

// ---- counts back to the host --------------------------------------------------------------------------------------

/// Where one block writes the counts of a step once its tokens are routed: slot (step % capacity) of mapped host
/// memory, `stride` 64-bit words: [0] the step's upper half, [1] tokens, [2 + e] the count of expert e, each beside the
/// lower half of the step (ring_word). So a word is of a known step by itself, the device needs no fence, and a reader
/// knows a slot that is only half written or half overwritten. The step is *counter, which that block increments; all
/// of it in stream order, so one ring serves one stream at a time.
constexpr uint64_t ring_word(uint64_t step, uint32_t value) { return step << 32 | value; }
struct CountRingView {
  uint64_t* slots = nullptr;  ///< null: no ring
  uint64_t* counter = nullptr;
  int32_t capacity = 0;
  int32_t stride = 0;
};
class CountRing : public std::enable_shared_from_this<CountRing> {
 public:
  /// experts: 1..1024, capacity: 1..65536 (kInvalidArgument names which).
  static std::shared_ptr<CountRing> create(DeviceId device, int experts, int capacity);
  virtual ~CountRing() = default;
  virtual CountRingView view() const = 0;
  /// Says that `stream` writes it: the memory is given back behind what is queued there by then. A graph that writes it
  /// holds the ring itself.
  virtual void record_use(const std::shared_ptr<Stream>& stream) = 0;
  virtual int experts() const = 0;
  virtual int capacity() const = 0;
  struct Reading {
    std::vector<uint64_t> steps;  ///< ascending
    std::vector<int32_t> tokens;  ///< by step
    std::vector<int32_t> counts;  ///< [steps][experts]
    uint64_t lost = 0;            ///< steps since `from` that were overwritten before they were read
    uint64_t next = 0;            ///< `from` of the next call
  };
  /// The complete steps from `from` on, as far as the ring still has them. Never waits for the device.
  virtual Reading read(uint64_t from) const = 0;
};

}  // namespace nexus
