// Recording and launching the CPU's graphs; see cpu_graph.h.
#include "exec/cpu_graph.h"

#include <algorithm>

#include "exec/fault.h"

namespace nexus::cpu {
namespace {

[[noreturn]] void capture_error(const std::string& what) { throw Error(ErrorCode::kGraphCapture, what); }

class CpuGraph final : public Graph {
 public:
  CpuGraph(std::shared_ptr<Tape> tape, int nodes, double ms)
      : Graph(DeviceId{-1}), tape_(std::move(tape)), nodes_(nodes), capture_ms_(ms) {}

  void launch(const std::shared_ptr<Stream>& stream) override { run(stream, nullptr); }
  void launch(const std::shared_ptr<Stream>& stream, const StepBlock& block) override {
    if (tape_->steps != 1)
      throw_invalid("Graph::launch: a block was given, and the graph has " + std::to_string(tape_->steps) +
                    " begin_step nodes; expected exactly 1");
    run(stream, &block);
  }
  int nodes() const override { return nodes_; }
  /// The list itself; what the closures captured is theirs and not known here.
  int64_t bytes() const override {
    return static_cast<int64_t>(sizeof(Tape) + tape_->ops.capacity() * sizeof(Tape::Op) +
                                tape_->works.capacity() * sizeof(Queue::Work));
  }
  double capture_ms() const override { return capture_ms_; }

 private:
  void run(const std::shared_ptr<Stream>& stream, const StepBlock* block) {
    auto* const target = dynamic_cast<CpuStream*>(stream.get());
    if (target == nullptr)
      throw_invalid(stream ? "Graph::launch: the graph is of the CPU, the stream of " + stream->device().name()
                           : "Graph::launch: stream is null");
    target->refuse_in_capture("a graph cannot be launched while its stream is captured into another");
    fault_point("graph.launch", *stream);
    const std::lock_guard lock(mutex_);
    Queue& queue = target->queue();
    if (last_ && last_queue_.get() != &queue && !last_->finished())
      queue.push([last = last_] { (void)last->wait(); });  // the order only: a failed run is not this one's failure
    std::vector<std::shared_ptr<Mark>> marks(static_cast<size_t>(tape_->marks) + 3);
    for (auto& mark : marks) mark = std::make_shared<Mark>();
    std::vector<bool> pushed(marks.size(), false);
    try {
      push(queue, marks, pushed, block);
    } catch (...) {
      // What is queued already must not wait for what never will be.
      for (size_t i = 0; i < marks.size(); ++i)
        if (!pushed[i]) marks[i]->finish(std::current_exception());
      throw;
    }
    last_ = marks.back();
    last_queue_ = target->shared_queue();
  }

  void push(Queue& target, const std::vector<std::shared_ptr<Mark>>& marks, std::vector<bool>& pushed,
            const StepBlock* block) const {
    const auto record = [&](Queue& queue, size_t i) {
      queue.push_marker([mark = marks[i]](std::exception_ptr error) { mark->finish(std::move(error)); });
      pushed[i] = true;
    };
    const auto wait = [&](Queue& queue, size_t i) {
      queue.push([mark = marks[i]] {
        if (const auto error = mark->wait()) std::rethrow_exception(error);
      });
    };
    const size_t begun = marks.size() - 3, ended = marks.size() - 2, done = marks.size() - 1;
    // Work recorded on a slice's stream stays there: fork to it, and join again.
    Queue& origin = tape_->streams[0] ? tape_->streams[0]->queue() : target;
    if (&origin != &target) {
      record(target, begun);
      wait(origin, begun);
    }
    for (const Tape::Op& op : tape_->ops) {
      Queue& queue = op.lane == 0 ? origin : tape_->streams[static_cast<size_t>(op.lane)]->queue();
      switch (op.kind) {
        case Tape::Kind::kWork:
          queue.push([tape = tape_, first = op.first, count = op.count] {
            for (size_t i = first; i < first + count; ++i) tape->works[i]();
          });
          break;
        case Tape::Kind::kStep:
          queue.push([tape = tape_, current = op.current, value = block != nullptr ? *block : op.block] {
            *current = value;
            current->dense[0] = 0;
            current->dense[1] = value.tokens;
          });
          break;
        case Tape::Kind::kRecord:
          record(queue, static_cast<size_t>(op.mark));
          break;
        case Tape::Kind::kWait:
          wait(queue, static_cast<size_t>(op.mark));
          break;
      }
    }
    if (&origin != &target) {
      record(origin, ended);
      wait(target, ended);
    }
    record(target, done);
  }

  const std::shared_ptr<Tape> tape_;
  const int nodes_;
  const double capture_ms_;
  std::mutex mutex_;
  std::shared_ptr<Mark> last_;  // the end of the latest run
  std::shared_ptr<Queue> last_queue_;
};

CpuStream& cpu_stream(const std::shared_ptr<Stream>& stream) { return static_cast<CpuStream&>(*stream); }

}  // namespace

// ---- Recording ---------------------------------------------------------------------------------------------------

void Recording::require_open_locked() const {
  if (!open_) capture_error("the capture ended while another thread used one of its streams");
  if (!failure_.empty()) capture_error(failure_);
}

bool Recording::take(const std::shared_ptr<CpuStream>& stream) {
  const std::lock_guard lock(mutex_);
  require_open_locked();
  const int lane = static_cast<int>(streams_.size());
  streams_.reserve(streams_.size() + 1);
  clocks_.emplace_back();
  if (!stream->enter_capture(shared_from_this(), lane)) {
    clocks_.pop_back();
    return false;
  }
  streams_.push_back(stream);
  return true;
}

void Recording::add(int lane, Queue::Work work) {
  const std::lock_guard lock(mutex_);
  require_open_locked();
  auto& ops = tape_->ops;
  tape_->works.push_back(std::move(work));
  if (!ops.empty() && ops.back().kind == Tape::Kind::kWork && ops.back().lane == lane) {
    ++ops.back().count;  // one task of the queue
  } else {
    Tape::Op op;
    op.lane = lane;
    op.first = tape_->works.size() - 1;
    op.count = 1;
    ops.push_back(op);
  }
  auto& clock = clocks_[static_cast<size_t>(lane)];
  clock.resize(std::max(clock.size(), static_cast<size_t>(lane) + 1));
  ++clock[static_cast<size_t>(lane)];
}

void Recording::add_step(int lane, const StepBlock& block, StepBlock* current) {
  const std::lock_guard lock(mutex_);
  require_open_locked();
  Tape::Op op;
  op.kind = Tape::Kind::kStep;
  op.lane = lane;
  op.block = block;
  op.current = current;
  tape_->ops.push_back(op);
  ++tape_->steps;
  auto& clock = clocks_[static_cast<size_t>(lane)];
  clock.resize(std::max(clock.size(), static_cast<size_t>(lane) + 1));
  ++clock[static_cast<size_t>(lane)];
}

std::shared_ptr<const CaptureMark> Recording::record(int lane) {
  const std::lock_guard lock(mutex_);
  require_open_locked();
  auto mark = std::make_shared<CaptureMark>();
  mark->recording = weak_from_this();
  mark->mark = tape_->marks++;
  mark->clock = clocks_[static_cast<size_t>(lane)];
  Tape::Op op;
  op.kind = Tape::Kind::kRecord;
  op.lane = lane;
  op.mark = mark->mark;
  tape_->ops.push_back(op);
  return mark;
}

void Recording::wait(int lane, const CaptureMark& mark) {
  const std::lock_guard lock(mutex_);
  require_open_locked();
  Tape::Op op;
  op.kind = Tape::Kind::kWait;
  op.lane = lane;
  op.mark = mark.mark;
  tape_->ops.push_back(op);
  // A wait is an operation too: a stream that only waited must be joined as well, as CUDA wants it.
  auto& clock = clocks_[static_cast<size_t>(lane)];
  clock.resize(std::max({clock.size(), mark.clock.size(), static_cast<size_t>(lane) + 1}));
  for (size_t i = 0; i < mark.clock.size(); ++i) clock[i] = std::max(clock[i], mark.clock[i]);
  ++clock[static_cast<size_t>(lane)];
}

void Recording::keep(std::function<void()> release) {
  {
    const std::lock_guard lock(mutex_);
    if (open_) {
      tape_->releases.push_back(std::move(release));
      return;
    }
  }
  release();
}

std::shared_ptr<void> Recording::kept(uint64_t key, const std::function<std::shared_ptr<void>()>& make) {
  const std::lock_guard lock(mutex_);
  if (!open_) return nullptr;
  auto& place = tape_->kept[key];
  if (place == nullptr) place = make();
  return place;
}

void Recording::refuse(const std::string& what) {
  {
    const std::lock_guard lock(mutex_);
    if (failure_.empty()) failure_ = what;
  }
  capture_error(what);
}

bool Recording::begun_on(const CpuStream& stream) {
  const std::lock_guard lock(mutex_);
  return !streams_.empty() && streams_[0].get() == &stream;
}

std::vector<std::shared_ptr<CpuStream>> Recording::close() noexcept {
  std::vector<std::shared_ptr<CpuStream>> streams;
  {
    const std::lock_guard lock(mutex_);
    open_ = false;
    streams.swap(streams_);
  }
  for (const auto& stream : streams) stream->leave_capture();
  return streams;
}

std::shared_ptr<Graph> Recording::end() {
  const auto streams = close();
  // From here on nobody else touches what was recorded.
  std::shared_ptr<Tape> tape = std::move(tape_);
  if (!failure_.empty()) capture_error(failure_);
  for (size_t lane = 1; lane < streams.size(); ++lane) {
    const auto& origin = clocks_[0];
    const uint64_t joined = lane < origin.size() ? origin[lane] : 0;
    if (joined != clocks_[lane][lane])
      capture_error("a stream was forked into the capture (number " + std::to_string(lane) +
                    ", in the order in which they came) and not joined to the captured stream again");
  }
  fault_point("graph.instantiate", *streams[0]);
  int nodes = static_cast<int>(tape->works.size()) + tape->steps;
  tape->streams = streams;
  if (!streams[0]->in_slice()) tape->streams[0] = nullptr;
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
  return std::make_shared<CpuGraph>(std::move(tape), nodes, ms);
}

void Recording::abort() noexcept {
  close();
  tape_.reset();
}

// ---- what graph.cpp dispatches to --------------------------------------------------------------------------------

void graph_begin(const std::shared_ptr<Stream>& stream) {
  fault_point("graph.capture", *stream);
  const auto recording = std::make_shared<Recording>();
  if (!recording->take(std::static_pointer_cast<CpuStream>(stream)))
    capture_error("Graph::begin: the stream takes part in a capture already");
}

std::shared_ptr<Graph> graph_end(const std::shared_ptr<Stream>& stream) {
  const auto recording = cpu_stream(stream).capture().recording;
  if (!recording) throw_invalid("Graph::end: no capture was begun on this stream");
  if (!recording->begun_on(cpu_stream(stream)))
    throw_invalid("Graph::end: the stream was forked into the capture; it ends on the stream on which it was begun");
  return recording->end();
}

void graph_abort(const std::shared_ptr<Stream>& stream) noexcept {
  const auto recording = cpu_stream(stream).capture().recording;
  if (recording) recording->abort();
}

std::shared_ptr<void> kept_by_capture(const std::shared_ptr<Stream>& stream, uint64_t key,
                                      const std::function<std::shared_ptr<void>()>& make) {
  const auto recording = cpu_stream(stream).capture().recording;
  return recording ? recording->kept(key, make) : nullptr;
}

void fail_capture(const std::shared_ptr<Stream>& stream, const std::string& why) noexcept {
  try {
    cpu_stream(stream).refuse_in_capture(why.c_str());
  } catch (...) {
    // Said at the end of the capture.
  }
}

}  // namespace nexus::cpu
