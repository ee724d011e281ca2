// Graphs of the CPU: a recorded list of operations, each with the stream that it was issued on.
//
// While a capture is under way its streams hold the Recording, and what is issued on them goes there instead of into
// their queues. Events order lanes (streams) as they do eagerly; a vector clock per event tells whether every forked
// lane was joined again. A launch pushes the operations onto the queues in the order in which they were recorded, so a
// wait always comes after its record: launches from any threads cannot wait for each other in a circle.
#pragma once
#include <map>
#include <vector>

#include "exec/cpu_stream.h"

namespace nexus::cpu {

/// An event's place in a capture.
struct CaptureMark {
  std::weak_ptr<Recording> recording;
  int mark = 0;
  std::vector<uint64_t> clock;  ///< by lane: how much of it has happened before this point
};

/// What is launched. Closures in queues share it, so it (and the memory it keeps) outlives its graph until they have
/// run.
struct Tape {
  enum class Kind { kWork, kStep, kRecord, kWait };
  struct Op {
    Kind kind = Kind::kWork;
    int lane = 0;
    int mark = 0;                 // kRecord, kWait
    size_t first = 0, count = 0;  // kWork: of `works`
    StepBlock block{};            // kStep
    StepBlock* current = nullptr;
  };
  std::vector<Op> ops;
  std::vector<Queue::Work> works;
  /// By lane. [0] is the stream on which the capture began: null where the launching stream takes its place.
  std::vector<std::shared_ptr<CpuStream>> streams;
  int marks = 0, steps = 0;
  /// Release the buffers whose last reference went during the capture: recorded work may use them.
  std::vector<std::function<void()>> releases;
  std::map<uint64_t, std::shared_ptr<void>> kept;  ///< see kept_by_capture()
  ~Tape() {
    for (const auto& release : releases) release();
  }
};

class Recording : public std::enable_shared_from_this<Recording> {
 public:
  Recording() : tape_(std::make_shared<Tape>()) {}

  /// Puts the stream under this capture. False when another capture has it.
  bool take(const std::shared_ptr<CpuStream>& stream);
  void add(int lane, Queue::Work work);
  void add_step(int lane, const StepBlock& block, StepBlock* current);
  std::shared_ptr<const CaptureMark> record(int lane);
  void wait(int lane, const CaptureMark& mark);
  void keep(std::function<void()> release);
  /// See kept_by_capture().
  std::shared_ptr<void> kept(uint64_t key, const std::function<std::shared_ptr<void>()>& make);
  /// Marks the capture as failed, and says so.
  [[noreturn]] void refuse(const std::string& what);

  bool begun_on(const CpuStream& stream);
  /// Both set the streams free; abort() drops what was recorded.
  std::shared_ptr<Graph> end();
  void abort() noexcept;

 private:
  void require_open_locked() const;
  std::vector<std::shared_ptr<CpuStream>> close() noexcept;

  std::mutex mutex_;
  bool open_ = true;
  std::string failure_;
  std::shared_ptr<Tape> tape_;
  std::vector<std::shared_ptr<CpuStream>> streams_;  // by lane
  std::vector<std::vector<uint64_t>> clocks_;        // by lane; [l][l] counts the lane's own operations
  Clock::time_point start_ = Clock::now();
};

}  // namespace nexus::cpu
