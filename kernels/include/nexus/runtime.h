// Execution plane: devices, streams, events, buffers, completions. The same contract for the CPU and for CUDA.
//
// * A Stream is an in-order queue. On CUDA it is a cudaStream_t; on the CPU it is a worker thread that runs queued
//   closures, which may themselves spread over the shared ThreadPool.
// * A Buffer's memory is stream-ordered on both: it is allocated on a stream and its release is queued behind all
//   work of the streams that used it. So an operation may take raw pointers: whoever drops the last reference after
//   enqueueing it frees nothing too early.
// * Nothing here blocks the calling thread except where a name says so (`synchronize`).
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nexus/dtype.h"
#include "nexus/error.h"

namespace nexus {

/// -1 is the CPU, n >= 0 is cuda:n. This is also how a device crosses the addon boundary.
struct DeviceId {
  int index = -1;
  bool is_cuda() const { return index >= 0; }
  bool is_cpu() const { return index < 0; }
  bool operator==(const DeviceId&) const = default;
  std::string name() const { return is_cpu() ? "cpu" : "cuda:" + std::to_string(index); }
};

class Event;

/// What kernels on a stream are asked to keep to for the sake of neighbours. Nothing enforces it, no result depends on
/// it.
struct StreamShape {
  int max_width = 0;      ///< most SMs that persistent kernels fill with blocks; 0: all that the stream may use
  bool share_sm = false;  ///< kernels of little shared memory and few registers, which leave room for another's blocks
  /// Bytes of weights that kernels have under way at a time, about: what they ask for beyond what the memory can bring
  /// waits in its queues, and a neighbour's loads wait behind it. 0: as many as their buffers hold.
  int64_t read_ahead = 0;
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  /// priority: 0 normal, negative is more urgent (CUDA's convention; the CPU ignores it). Throws kUnsupported where
  /// there is no such device, kDevice where CUDA fails.
  static std::shared_ptr<Stream> create(DeviceId device, int priority = 0, StreamShape shape = {});
  virtual ~Stream() = default;

  DeviceId device() const { return device_; }
  /// Runs `fn` after what was queued before. CPU streams only (CUDA: throws kUnsupported; launch on cuda_stream()).
  /// An exception in `fn` makes the stream fail: later closures are skipped, synchronize() and completions report it.
  virtual void enqueue(std::function<void()> fn) = 0;
  /// The cudaStream_t, with the device made current on this thread; throws kUnsupported for the CPU.
  virtual void* cuda_stream() = 0;
  virtual void synchronize() = 0;             ///< blocks the calling thread; throws the stream's error if there is one
  virtual void wait(const Event& event) = 0;  ///< later work waits for `event`, the host does not
  virtual void copy(void* dst, const void* src, size_t bytes) = 0;  ///< any of host (pinned on CUDA) and device memory
  virtual void fill(void* dst, int byte, size_t bytes) = 0;
  /// Units (SMs; virtual workers on the CPU) that this stream's work may use: its slice's, or all of the device's.
  virtual int width() const = 0;
  bool share_sm() const { return shape_.share_sm; }
  int64_t read_ahead() const { return shape_.read_ahead; }
  /// Whether it is a slice's stream (Partition::create_stream).
  virtual bool in_slice() const { return false; }
  /// True between the begin and the end of a graph capture that this stream takes part in: what is queued is recorded.
  virtual bool capturing() const = 0;

  /// Said by the operation that was queued last: what is still under way writes nothing but these bytes and memory that
  /// only one step's operations know. Whatever is queued next takes that back.
  void settle_but(const void* out, size_t bytes) { unsettled_ = {static_cast<const char*>(out), bytes}; }
  /// Whether the bytes are settled, so that a kernel which is queued now may read them before it waits for the one
  /// before it. To be asked before cuda_stream(), which takes that for an operation.
  bool settled(const void* read, size_t bytes) const {
    const auto* const from = static_cast<const char*>(read);
    return unsettled_.out != nullptr && (from + bytes <= unsettled_.out || unsettled_.out + unsettled_.bytes <= from);
  }

  /// cuda_stream(), for a question that queues nothing.
  void* cuda_stream_to_ask() {
    const auto known = unsettled_;
    void* const stream = cuda_stream();
    unsettled_ = known;
    return stream;
  }

 protected:
  explicit Stream(DeviceId device, StreamShape shape = {}) : device_(device), shape_(shape) {}
  DeviceId device_;
  StreamShape shape_;
  struct {
    const char* out = nullptr;  // null: nothing is known to be settled
    size_t bytes = 0;
  } unsettled_;
};

/// A point in a stream. May be recorded again; timing is always on.
class Event {
 public:
  static std::shared_ptr<Event> create(DeviceId device);
  virtual ~Event() = default;
  virtual void record(Stream& stream) = 0;
  virtual bool ready() const = 0;        ///< throws kDevice when the device has failed
  virtual void synchronize() const = 0;  ///< blocks
  /// Milliseconds between two recorded and finished events of one device; throws kInvalidArgument when unfinished.
  virtual double elapsed_ms(const Event& end) const = 0;

 protected:
  Event() = default;
};

/// Device memory, or host memory aligned to 64 bytes on the CPU. Reference-counted through shared_ptr.
class Buffer {
 public:
  /// Stream-ordered. bytes may be 0 (data() is then null). Throws kOutOfMemory.
  static std::shared_ptr<Buffer> allocate(const std::shared_ptr<Stream>& stream, size_t bytes);
  virtual ~Buffer() = default;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  DeviceId device() const { return device_; }
  /// Says that `stream` (another than the owner) uses this memory: the release will wait for it too.
  virtual void record_use(const std::shared_ptr<Stream>& stream) = 0;

 protected:
  Buffer(DeviceId d, void* p, size_t n) : data_(p), bytes_(n), device_(d) {}
  void* data_;
  size_t bytes_;
  DeviceId device_;
};

/// Page-locked host memory on a machine with CUDA, plain aligned memory elsewhere; recycled through a pool.
class HostBuffer {
 public:
  static std::shared_ptr<HostBuffer> allocate(DeviceId for_device, size_t bytes);
  virtual ~HostBuffer() = default;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 protected:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

struct StepBlock;  // step.h

/// Recorded stream work: a CUDA graph, on the CPU a list of closures. Launched any number of times, in stream order.
class Graph {
 public:
  /// Records what `body` queues on `stream`, and on streams that wait for its events and are joined to it again;
  /// nothing of it runs. When `body` throws, or does what cannot be recorded (allocating, synchronising), the capture
  /// is undone and kGraphCapture says why. Streams belong to one capture at a time.
  static std::shared_ptr<Graph> capture(const std::shared_ptr<Stream>& stream, const std::function<void()>& body);
  /// The same in two calls, for callers that cannot pass a closure. After begin(), exactly one of end() and abort().
  static void begin(const std::shared_ptr<Stream>& stream);
  static std::shared_ptr<Graph> end(const std::shared_ptr<Stream>& stream);
  static void abort(const std::shared_ptr<Stream>& stream) noexcept;
  virtual ~Graph() = default;
  /// Queues one run. Work that was recorded in a slice runs in that slice, whatever `stream` is. Runs of one graph
  /// never overlap.
  virtual void launch(const std::shared_ptr<Stream>& stream) = 0;
  /// The same; the recorded begin_step (step.h), of which there must be one, writes `block`.
  virtual void launch(const std::shared_ptr<Stream>& stream, const StepBlock& block) = 0;
  virtual int nodes() const = 0;
  /// Device memory of the executable graph, measured at its making; host bytes on the CPU. CUDA: what the device's free
  /// memory lost, as far as a graph of so many nodes and streams can explain it.
  virtual int64_t bytes() const = 0;
  /// More was lost than that: others allocated at the same time, and bytes() is the most that is believed of the graph.
  virtual bool bytes_estimated() const { return false; }
  virtual double capture_ms() const = 0;  ///< capture, instantiation and upload
  DeviceId device() const { return device_; }

 protected:
  explicit Graph(DeviceId device) : device_(device) {}
  DeviceId device_;
};

enum class Enforcement : int32_t { kHardware = 0, kCooperative = 1, kAdvisory = 2, kNone = 3 };

/// What a device can be cut into.
struct PartitionInfo {
  int units = 0;        ///< SMs; on the CPU virtual workers (8, or NEXUS_CPU_WORKERS)
  int granularity = 1;  ///< slices are multiples of it, but for one, which has the remainder too
  int minimum = 1;
  Enforcement enforcement = Enforcement::kNone;  ///< what create() can give
  std::string reason;                            ///< why, for people
};
PartitionInfo partition_info(DeviceId device);

/// A layout, built: disjoint sets of units and streams that keep to them. CUDA: green contexts merged from one split by
/// granularity (the remainder joins the one slice whose size is not a multiple). CPU: worker threads of its own for
/// each slice, pinned to cores (kHardware) where the process may use as many cores as there are units, else
/// kCooperative. Making one takes milliseconds. Its streams keep it alive.
class Partition : public std::enable_shared_from_this<Partition> {
 public:
  struct Grant {
    int units = 0;
    Enforcement enforcement = Enforcement::kNone;
    std::string reason;
  };
  /// units: by slice. kInvalidArgument: a size that is not possible (names slice, what came, what is possible);
  /// kUnsupported: the device cannot be cut (with the reason).
  static std::shared_ptr<Partition> create(DeviceId device, const std::vector<int>& units);
  virtual ~Partition() = default;
  virtual const std::vector<Grant>& grants() const = 0;
  /// kInvalidArgument for a slice that is none and for a shape as in Stream::create.
  virtual std::shared_ptr<Stream> create_stream(int slice, int priority, StreamShape shape = {}) = 0;
  DeviceId device() const { return device_; }

 protected:
  explicit Partition(DeviceId device) : device_(device) {}
  DeviceId device_;
};

/// Calls `done` on the one completion thread once everything now queued on `stream` has finished; `error` is empty, or
/// what went wrong. The thread is shared by the process, polls CUDA events with a backoff (so that a failed context is
/// reported rather than never called back), and never runs user code that may block.
void on_complete(const std::shared_ptr<Stream>& stream, std::function<void(std::exception_ptr error)> done);
/// Runs `work` on the completion side's helper thread (host conversions of large arrays), then `done` as above.
void run_in_background(std::function<void()> work, std::function<void(std::exception_ptr error)> done);

/// Bytes now held by live Buffers of a device (not the pool's cached reserve). For leak tests and stats.
struct MemoryStats {
  int64_t live_bytes = 0, live_buffers = 0, peak_bytes = 0;
  int64_t free_bytes = -1, total_bytes = -1;  ///< of the device or of the machine; -1 unknown
};
MemoryStats memory_stats(DeviceId device);
void reset_peak(DeviceId device);

/// CPU workers that share one parallel loop at a time. Results never depend on their number: every output element is
/// computed by exactly one task in a fixed order.
int cpu_threads();            ///< NEXUS_NUM_THREADS, or the cores this process may use
void set_cpu_threads(int n);  ///< n >= 1; takes effect for the next loop
/// Calls body(i) for i in [0, n) on the pool and the calling thread; returns when all are done. Rethrows the first
/// exception.
void parallel_for(int64_t n, const std::function<void(int64_t)>& body);
/// The virtual worker that this thread is (0 … units-1 of a partition), or 0: what a CPU trace records.
int current_worker();
/// One of several loops that run at the same time, each on virtual workers of its own: first_worker … first_worker +
/// workers - 1. In `body`, current_worker() is one of them.
struct WorkerLoop {
  int first_worker = 0;
  int workers = 1;
  int64_t n = 0;
  std::function<void(int64_t)> body;
};
/// Runs the loops together and returns when all are done (cooperative lanes on a plain stream). Virtual workers are
/// tasks of the pool that parallel_for would use here: how many run at once depends on its threads, which worker takes
/// which index does not show in a result. Worker k of a loop takes index k first, then what is left. On a slice's
/// stream numbers count from the slice's first worker, modulo its units. Inside another loop everything runs inline.
void parallel_for_on(const std::vector<WorkerLoop>& loops);
/// The same for one loop.
void parallel_for_on(int first_worker, int workers, int64_t n, const std::function<void(int64_t)>& body);

// ---- what the machine has ----------------------------------------------------------------------------------------

struct CudaDeviceInfo {
  int index = 0;
  std::string name, uuid;
  int compute_major = 0, compute_minor = 0, multiprocessors = 0;
  int64_t memory_bytes = 0, l2_bytes = 0, shared_memory_per_block_optin = 0;
  bool memory_pools = false;
};
struct NvmlInfo {
  bool available = false;
  std::string detail;                  ///< why not, or the driver's version
  std::string library;                 ///< the path or soname that was opened
  std::vector<std::string> mig_modes;  ///< per device: "disabled", "enabled", "unsupported"
  bool energy_counter = false;         ///< device 0 answers nvmlDeviceGetTotalEnergyConsumption
};
struct SystemInfo {
  std::string cpu_name, cpu_isa;      ///< isa in use: "avx512", "avx2", "scalar"
  std::vector<std::string> cpu_isas;  ///< all that this machine can run
  int cpu_cores = 0, cpu_threads = 0;
  int64_t memory_bytes = 0;
  bool cuda_compiled = false;
  std::string cuda_status;                                ///< "ok", or one sentence why CUDA cannot be used
  std::string cuda_error;                                 ///< the runtime's own error name, or empty
  int cuda_runtime_version = 0, cuda_driver_version = 0;  ///< 13000 = 13.0; 0 none
  bool green_contexts = false, tensor_maps = false;       ///< driver entry points found
  std::vector<CudaDeviceInfo> devices;
  NvmlInfo nvml;
  std::vector<std::string> rapl_domains;  ///< readable energy counters, by name
  std::string rapl_detail;                ///< why none
};
/// Never throws and never needs a GPU. Finds NVML by dlopen of NEXUS_NVML_PATH, or libnvidia-ml.so.1.
SystemInfo system_info();

}  // namespace nexus
