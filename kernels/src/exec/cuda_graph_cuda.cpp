// Graphs of CUDA: stream capture, one executable graph, and the one node whose arguments change from launch to launch.
//
// CUDA orders launches of one executable graph behind each other, on whatever streams they are ("each launch is ordered
// behind both any previous work in the stream and any previous launches of the executable"), and arguments set on a
// node count for later launches only. So a launch is a set and a launch under one mutex, and no event.
//
// The node's arguments are set through the driver: a step that was recorded in a slice has its first node in the
// slice's green context, and the runtime, which knows the device's primary context only, refuses to change it.
//
// Programmatic edges (a kernel launched before the one ahead of it has ended) are recorded with the nodes; where
// streams fork and join CUDA makes them full dependencies. Nothing here reads edges, and new arguments of a node keep
// its attributes.
#include <cuda.h>

#include <algorithm>
#include <map>
#include <shared_mutex>

#include "exec/backend.h"
#include "exec/background_thread.h"
#include "exec/cuda_capture.h"
#include "exec/fault.h"
#include "exec/graph_bytes.h"
#include "exec/step.h"

namespace nexus::cuda {
namespace {

[[noreturn]] void capture_error(const std::string& what, const char* native = "") {
  Error error(ErrorCode::kGraphCapture, what);
  error.native = native;
  throw error;
}

// ---- the captures under way --------------------------------------------------------------------------------------

struct Captures {
  std::mutex mutex;
  std::map<unsigned long long, std::shared_ptr<Capture>> by_id;
  /// Held shared while something is queued by outside_captures(), alone while captures begin and end.
  std::shared_mutex gate;
  std::vector<std::function<void()>> waiting;  // for the end of all captures; under `mutex`
};
Captures& captures() {
  static auto* all = new Captures;
  return *all;
}

/// From before a capture begins until after it ends.
void enter_captures() {
  const std::unique_lock alone(captures().gate);
  captures_under_way.fetch_add(1);
}
void leave_captures() {
  std::vector<std::function<void()>> waiting;
  {
    const std::unique_lock alone(captures().gate);
    if (captures_under_way.fetch_sub(1) > 1) return;
    const std::lock_guard lock(captures().mutex);
    waiting.swap(captures().waiting);
  }
  for (const auto& queue : waiting) queue();
}

}  // namespace

void outside_captures(std::function<void()> queue) {
  thread_local bool inside = false;  // what is queued may release something itself
  if (!on_background_thread() || inside) {
    queue();
    return;
  }
  const std::shared_lock together(captures().gate);
  if (captures_under_way.load() > 0) {
    const std::lock_guard lock(captures().mutex);
    captures().waiting.push_back(std::move(queue));
    return;
  }
  inside = true;
  try {
    queue();
  } catch (...) {
    inside = false;
    throw;
  }
  inside = false;
}

std::shared_ptr<Capture> find_capture(unsigned long long id) {
  const std::lock_guard lock(captures().mutex);
  const auto found = captures().by_id.find(id);
  return found == captures().by_id.end() ? nullptr : found->second;
}

std::shared_ptr<Capture> find_capture(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  if (cudaStreamGetCaptureInfo(stream, &status, &id) != cudaSuccess) {
    (void)cudaGetLastError();  // a broken context: the call that follows reports it
    return nullptr;
  }
  if (status == cudaStreamCaptureStatusNone) return nullptr;
  if (status == cudaStreamCaptureStatusActive) return find_capture(id);
  // Of an invalidated capture CUDA does not tell the number.
  const std::lock_guard lock(captures().mutex);
  for (const auto& [number, capture] : captures().by_id)
    if (capture->has(stream)) return capture;
  return nullptr;
}

void Capture::refuse(const std::string& what) {
  {
    const std::lock_guard lock(mutex_);
    if (outcome_.failure.empty()) outcome_.failure = what;
  }
  capture_error(what);
}

void Capture::add(const std::shared_ptr<Stream>& stream) {
  const std::lock_guard lock(mutex_);
  auto& streams = outcome_.streams;
  if (std::find(streams.begin(), streams.end(), stream) == streams.end()) streams.push_back(stream);
}

bool Capture::has(cudaStream_t stream) {
  const std::lock_guard lock(mutex_);
  if (origin->cuda_stream() == stream) return true;
  for (const auto& member : outcome_.streams)
    if (member->cuda_stream() == stream) return true;
  return false;
}

void Capture::keep(std::function<void()> release) {
  {
    const std::lock_guard lock(mutex_);
    if (open_) {
      outcome_.releases.push_back(std::move(release));
      return;
    }
  }
  release();
}

std::shared_ptr<void> Capture::kept(uint64_t key, const std::function<std::shared_ptr<void>()>& make) {
  const std::lock_guard lock(mutex_);
  if (!open_) return nullptr;
  auto& place = outcome_.kept[key];
  if (place == nullptr) place = make();
  return place;
}

Capture::Outcome Capture::close() {
  bool known = false;
  {
    const std::lock_guard lock(captures().mutex);
    known = captures().by_id.erase(id) > 0;
  }
  if (known) leave_captures();
  const std::lock_guard lock(mutex_);
  open_ = false;
  return std::move(outcome_);
}

namespace {

struct Driver {
  decltype(&::cuGraphKernelNodeGetParams) get;
  decltype(&::cuGraphExecKernelNodeSetParams) set;
};
const Driver& driver() {
  static const Driver found = [] {
    Driver d{};
    d.get = reinterpret_cast<decltype(d.get)>(driver_function("cuGraphKernelNodeGetParams", 12000));
    d.set = reinterpret_cast<decltype(d.set)>(driver_function("cuGraphExecKernelNodeSetParams", 12000));
    if (d.get == nullptr || d.set == nullptr) throw_unsupported("graphs of steps need a driver of CUDA 12.0 or later");
    return d;
  }();
  return found;
}
void check_driver(CUresult status, const char* what) {
  if (status == CUDA_SUCCESS) [[likely]]
    return;
  // CUresult and cudaError_t have the same numbers where both have a meaning; the runtime's name is the known one.
  fail(static_cast<cudaError_t>(status), what);
}

// ---- the executable graph ----------------------------------------------------------------------------------------

/// Everything that launches under way need: it goes when they are done.
struct Executable {
  cudaGraph_t graph = nullptr;  // the nodes by which the executable one is changed
  cudaGraphExec_t exec = nullptr;
  std::vector<std::shared_ptr<Stream>> streams;  // of slices: they keep their green contexts
  std::vector<std::function<void()>> releases;   // buffers whose last reference went during the capture
  std::map<uint64_t, std::shared_ptr<void>> kept;
  int device = 0;

  Executable() = default;
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;
  ~Executable() {
    // What could fail here is a broken context, which every other call reports.
    if (exec != nullptr || graph != nullptr) (void)cudaSetDevice(device);
    if (exec != nullptr && cudaGraphExecDestroy(exec) != cudaSuccess) (void)cudaGetLastError();
    if (graph != nullptr && cudaGraphDestroy(graph) != cudaSuccess) (void)cudaGetLastError();
    for (const auto& release : releases) release();
  }
};

/// Lets go of the executable once the launches on `last` are done (the others were ordered before them).
void retire(std::shared_ptr<Executable> executable, const std::shared_ptr<Stream>& last) noexcept {
  try {
    outside_captures([executable = std::move(executable), last]() mutable {
      if (const auto capture = capture_of(*last)) {
        capture->keep([executable = std::move(executable), last] { retire(executable, last); });
        return;
      }
      release_behind(last, [executable = std::move(executable)]() mutable { executable.reset(); });
    });
  } catch (...) {
    // The context is broken, or there is no memory for this: `executable` goes here, nothing of it runs any more.
  }
}

class CudaGraph final : public Graph {
 public:
  CudaGraph(DeviceId device, std::shared_ptr<Executable> executable)
      : Graph(device), executable_(std::move(executable)) {
    count_and_find_steps();
  }
  ~CudaGraph() override {
    if (last_) retire(std::move(executable_), last_);
  }

  void instantiate(Stream& stream, std::chrono::steady_clock::time_point start) {
    fault_point("graph.instantiate", stream);
    auto* const handle = static_cast<cudaStream_t>(stream.cuda_stream());
    // The driver has no figure for one executable graph (cudaDeviceGetGraphMemAttribute knows memory nodes only, of
    // which we have none), so it is what the device's free memory lost, as far as one graph can explain that; see
    // graph_bytes.h. One at a time in this process.
    static auto* one_at_a_time = new std::mutex;
    const std::lock_guard lock(*one_at_a_time);
    size_t before = 0, after = 0, total = 0;
    check(cudaMemGetInfo(&before, &total), "cudaMemGetInfo");
    check(cudaGraphInstantiate(&executable_->exec, executable_->graph, 0), "cudaGraphInstantiate");
    check(cudaGraphUpload(executable_->exec, handle), "cudaGraphUpload");
    check(cudaMemGetInfo(&after, &total), "cudaMemGetInfo");
    bytes_ = graph_bytes(before, after, nodes_, static_cast<int64_t>(executable_->streams.size()));
    capture_ms_ = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    last_ = stream.shared_from_this();  // the upload must be over, too, before the graph goes
  }

  void launch(const std::shared_ptr<Stream>& stream) override { run(stream, nullptr); }
  void launch(const std::shared_ptr<Stream>& stream, const StepBlock& block) override {
    if (steps_ != 1)
      throw_invalid("Graph::launch: a block was given, and the graph has " + std::to_string(steps_) +
                    " begin_step nodes; expected exactly 1");
    run(stream, &block);
  }
  int nodes() const override { return nodes_; }
  int64_t bytes() const override { return bytes_.bytes; }
  bool bytes_estimated() const override { return bytes_.estimated; }
  double capture_ms() const override { return capture_ms_; }

 private:
  void count_and_find_steps() {
    size_t count = 0;
    check(cudaGraphGetNodes(executable_->graph, nullptr, &count), "cudaGraphGetNodes");
    nodes_ = static_cast<int>(count);
    std::vector<cudaGraphNode_t> nodes(count);
    if (count > 0) check(cudaGraphGetNodes(executable_->graph, nodes.data(), &count), "cudaGraphGetNodes");
    // CUDA may answer with the host's symbol, or with its own handle of the same kernel.
    const void* const symbol = begin_step_kernel();
    cudaFunction_t function = nullptr;
    cudaKernel_t kernel = nullptr;
    if (cudaGetFuncBySymbol(&function, symbol) != cudaSuccess) (void)cudaGetLastError();
    if (cudaGetKernel(&kernel, symbol) != cudaSuccess) (void)cudaGetLastError();
    for (const cudaGraphNode_t node : nodes) {
      cudaGraphNodeType type{};
      check(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
      if (type != cudaGraphNodeTypeKernel) continue;
      cudaKernelNodeParams params{};
      if (cudaGraphKernelNodeGetParams(node, &params) != cudaSuccess) {
        (void)cudaGetLastError();  // a kernel that the runtime does not know: another library's, not ours
        continue;
      }
      if (params.func != symbol && (function == nullptr || params.func != static_cast<void*>(function)) &&
          (kernel == nullptr || params.func != static_cast<void*>(kernel)))
        continue;
      ++steps_;
      step_ = node;
      check_driver(driver().get(node, &params_), "cuGraphKernelNodeGetParams");
      recorded_ = *static_cast<const StepBlock*>(params.kernelParams[0]);
      current_ = *static_cast<StepBlock* const*>(params.kernelParams[1]);
    }
  }

  void run(const std::shared_ptr<Stream>& stream, const StepBlock* block) {
    if (!stream) throw_invalid("Graph::launch: stream is null");
    if (stream->device() != device_)
      throw_invalid("Graph::launch: the graph is of " + device_.name() + ", the stream of " + stream->device().name());
    auto* const handle = static_cast<cudaStream_t>(stream->cuda_stream());
    refuse_in_capture(*stream, "Graph::launch: a graph cannot be launched while its stream is captured into another");
    fault_point("graph.launch", *stream);
    const std::lock_guard lock(mutex_);
    if (block != nullptr)
      set_block(*block);
    else if (changed_)
      set_block(recorded_);
    changed_ = block != nullptr;
    check(cudaGraphLaunch(executable_->exec, handle), "cudaGraphLaunch");
    if (last_ != stream) last_ = stream;
  }

  void set_block(StepBlock block) {
    void* arguments[] = {&block, &current_};
    CUDA_KERNEL_NODE_PARAMS params = params_;
    params.kernelParams = arguments;
    params.extra = nullptr;
    check_driver(driver().set(executable_->exec, step_, &params), "cuGraphExecKernelNodeSetParams");
  }

  std::shared_ptr<Executable> executable_;
  int nodes_ = 0, steps_ = 0;
  GraphBytes bytes_;
  double capture_ms_ = 0;
  cudaGraphNode_t step_ = nullptr;    // the last begin_step; used when it is the only one
  CUDA_KERNEL_NODE_PARAMS params_{};  // with the context that it runs in
  StepBlock recorded_{};
  StepBlock* current_ = nullptr;
  std::mutex mutex_;
  bool changed_ = false;          // the node's block is not the recorded one
  std::shared_ptr<Stream> last_;  // of the latest launch
};

std::shared_ptr<Capture> own_capture(const std::shared_ptr<Stream>& stream, const char* call) {
  auto capture = capture_of(*stream);
  if (!capture) throw_invalid(std::string(call) + ": no capture was begun on this stream");
  if (capture->origin != stream)
    throw_invalid(std::string(call) +
                  ": the stream was forked into the capture; it ends on the stream on which it was begun");
  return capture;
}

}  // namespace

// ---- what graph.cpp dispatches to --------------------------------------------------------------------------------

void graph_begin(const std::shared_ptr<Stream>& stream) {
  fault_point("graph.capture", *stream);
  auto* const handle = static_cast<cudaStream_t>(stream->cuda_stream());
  if (const auto under_way = capture_of(*stream))
    under_way->refuse("Graph::begin: the stream takes part in a capture already");
  enter_captures();
  bool begun = false;
  try {
    check(cudaStreamBeginCapture(handle, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
    begun = true;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long id = 0;
    check(cudaStreamGetCaptureInfo(handle, &status, &id), "cudaStreamGetCaptureInfo");
    const std::lock_guard lock(captures().mutex);
    captures().by_id.emplace(id, std::make_shared<Capture>(stream, id));
  } catch (...) {
    cudaGraph_t graph = nullptr;
    if (begun && cudaStreamEndCapture(handle, &graph) != cudaSuccess) (void)cudaGetLastError();
    if (graph != nullptr) (void)cudaGraphDestroy(graph);
    leave_captures();
    throw;
  }
}

std::shared_ptr<Graph> graph_end(const std::shared_ptr<Stream>& stream) {
  const auto capture = own_capture(stream, "Graph::end");
  const auto executable = std::make_shared<Executable>();
  executable->device = stream->device().index;
  auto* const handle = static_cast<cudaStream_t>(stream->cuda_stream());
  const cudaError_t status = cudaStreamEndCapture(handle, &executable->graph);
  if (status != cudaSuccess) (void)cudaGetLastError();
  Capture::Outcome outcome = capture->close();
  executable->releases = std::move(outcome.releases);
  executable->kept = std::move(outcome.kept);
  executable->streams = std::move(outcome.streams);
  executable->streams.push_back(stream);
  if (!outcome.failure.empty()) capture_error(outcome.failure);
  if (status == cudaErrorStreamCaptureUnjoined)
    capture_error("a stream was forked into the capture and not joined to the captured stream again",
                  cudaGetErrorName(status));
  check(status, "cudaStreamEndCapture");
  const auto graph = std::make_shared<CudaGraph>(stream->device(), executable);
  graph->instantiate(*stream, capture->start);
  return graph;
}

void graph_abort(const std::shared_ptr<Stream>& stream) noexcept {
  try {
    const auto capture = own_capture(stream, "Graph::abort");
    Executable undone;
    undone.device = stream->device().index;
    auto* const handle = static_cast<cudaStream_t>(stream->cuda_stream());
    if (cudaStreamEndCapture(handle, &undone.graph) != cudaSuccess) (void)cudaGetLastError();
    Capture::Outcome outcome = capture->close();
    undone.releases = std::move(outcome.releases);
    undone.kept = std::move(outcome.kept);
    undone.streams = std::move(outcome.streams);
  } catch (...) {
    // No capture of this stream, or a broken context, which every other call reports.
  }
}

std::shared_ptr<void> kept_by_capture(const std::shared_ptr<Stream>& stream, uint64_t key,
                                      const std::function<std::shared_ptr<void>()>& make) {
  const auto capture = capture_of(*stream);
  return capture ? capture->kept(key, make) : nullptr;
}

void fail_capture(const std::shared_ptr<Stream>& stream, const std::string& why) noexcept {
  try {
    refuse_in_capture(*stream, why.c_str());
  } catch (...) {
    // Said at the end of the capture; a broken context is said by every other call.
  }
}

}  // namespace nexus::cuda
