// Memory of CUDA: one stream-ordered pool per device, which keeps what it once had (an allocation is then a few
// microseconds and no synchronisation), and page-locked host memory.
//
// Where pools are not supported (some virtual GPUs), or with NEXUS_CUDA_POOL=0 (so that a memory checker sees each
// buffer's bounds), a buffer is a cudaMalloc, and its cudaFree, which waits for the device, happens on the background
// helper.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "exec/backend.h"
#include "exec/cuda_capture.h"
#include "exec/cuda_device.h"
#include "telemetry/host_machine.h"

namespace nexus::cuda {
namespace {

/// A pool of our own, so that limits and statistics are not mixed with another library's. Null where unsupported.
struct Pool {
  cudaMemPool_t handle = nullptr;
  size_t device_bytes = 0;

  explicit Pool(int device) {
    size_t free = 0;
    check(cudaMemGetInfo(&free, &device_bytes), "cudaMemGetInfo");
    if (const char* v = std::getenv("NEXUS_CUDA_POOL"); v && std::strcmp(v, "0") == 0) return;
    int supported = 0;
    check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device), "cudaDeviceGetAttribute");
    if (!supported) return;
    cudaMemPoolProps props{};
    props.allocType = cudaMemAllocationTypePinned;
    props.handleTypes = cudaMemHandleTypeNone;
    props.location.type = cudaMemLocationTypeDevice;
    props.location.id = device;
    check(cudaMemPoolCreate(&handle, &props), "cudaMemPoolCreate");
    uint64_t keep = UINT64_MAX;
    check(cudaMemPoolSetAttribute(handle, cudaMemPoolAttrReleaseThreshold, &keep), "cudaMemPoolSetAttribute");
  }

  /// Bytes that the pool has from the driver and nobody uses.
  int64_t reserve() const {
    uint64_t reserved = 0, used = 0;
    if (handle == nullptr) return 0;
    check(cudaMemPoolGetAttribute(handle, cudaMemPoolAttrReservedMemCurrent, &reserved), "cudaMemPoolGetAttribute");
    check(cudaMemPoolGetAttribute(handle, cudaMemPoolAttrUsedMemCurrent, &used), "cudaMemPoolGetAttribute");
    return reserved > used ? static_cast<int64_t>(reserved - used) : 0;
  }
};

/// Made on first use of the device; never destroyed.
Pool& pool(int device) {
  static auto* mutex = new std::mutex;
  static auto* pools = new std::vector<std::unique_ptr<Pool>>(static_cast<size_t>(availability().devices));
  std::lock_guard lock(*mutex);
  auto& slot = pools->at(static_cast<size_t>(device));
  if (!slot) {
    make_current(device);
    slot = std::make_unique<Pool>(device);
  }
  return *slot;
}

[[noreturn]] void out_of_memory(DeviceId device, size_t bytes) {
  MemoryStats now;
  try {
    memory_info(device, now);
  } catch (const Error&) {
    now.free_bytes = -1;  // unknown; the failure at hand is what counts
  }
  Error error(ErrorCode::kOutOfMemory,
              device.name() + ": out of memory: " + std::to_string(bytes) + " bytes requested, " +
                  (now.free_bytes < 0 ? "an unknown number" : std::to_string(now.free_bytes)) + " free");
  error.native = "cudaErrorMemoryAllocation";
  error.requested = static_cast<int64_t>(std::min<size_t>(bytes, INT64_MAX));
  error.available = now.free_bytes;
  throw error;
}

/// What a buffer holds, and how it is given back.
struct Holding {
  Holding(std::shared_ptr<Stream> owner, void* memory, size_t bytes, bool pooled)
      : live(owner->device(), bytes), owner(std::move(owner)), memory(memory), pooled(pooled) {}

  LiveBytes live;
  std::shared_ptr<Stream> owner;
  void* memory;
  bool pooled;
  std::vector<std::shared_ptr<Stream>> users;  // other than the owner

  /// The owning stream waits for the others' use, then the memory is free for what is allocated behind that point.
  /// During a capture it is the graph's, whose nodes may use it.
  static void release(const std::shared_ptr<Holding>& holding) noexcept {
    // A failure here is a broken context, which every later call reports; its memory is lost with it. Never freed too
    // early.
    try {
      outside_captures([holding] { release_now(holding); });
    } catch (...) {
    }
  }

 private:
  static void release_now(const std::shared_ptr<Holding>& holding) noexcept {
    try {
      auto capture = capture_of(*holding->owner);
      for (size_t i = 0; capture == nullptr && i < holding->users.size(); ++i) capture = capture_of(*holding->users[i]);
      if (capture)
        capture->keep([holding] { release(holding); });
      else if (holding->pooled)
        holding->free_behind_users();
      else
        holding->free_in_background();
    } catch (...) {
    }
  }
  void free_behind_users() {
    auto* const stream = static_cast<cudaStream_t>(owner->cuda_stream());
    for (const auto& user : users) {
      const PooledEvent used(user->device().index);
      check(cudaEventRecord(used.get(), static_cast<cudaStream_t>(user->cuda_stream())), "cudaEventRecord");
      owner->cuda_stream();  // the user's device may be current now
      check(cudaStreamWaitEvent(stream, used.get(), 0), "cudaStreamWaitEvent");
    }
    check(cudaFreeAsync(memory, stream), "cudaFreeAsync");
  }
  void free_in_background() {
    std::vector<std::shared_ptr<PooledEvent>> uses;
    users.push_back(owner);
    for (const auto& user : users) {
      uses.push_back(std::make_shared<PooledEvent>(user->device().index));
      check(cudaEventRecord(uses.back()->get(), static_cast<cudaStream_t>(user->cuda_stream())), "cudaEventRecord");
    }
    run_in_background(
        [uses = std::move(uses), memory = memory, device = owner->device().index] {
          for (const auto& use : uses) check(cudaEventSynchronize(use->get()), "cudaEventSynchronize");
          make_current(device);
          check(cudaFree(memory), "cudaFree");
        },
        [](std::exception_ptr) {});
  }
};

class CudaBuffer final : public Buffer {
 public:
  CudaBuffer(const std::shared_ptr<Stream>& owner, void* memory, size_t bytes, bool pooled)
      : Buffer(owner->device(), memory, bytes), holding_(std::make_shared<Holding>(owner, memory, bytes, pooled)) {}
  ~CudaBuffer() override { Holding::release(holding_); }

  void record_use(const std::shared_ptr<Stream>& stream) override {
    if (!stream) throw_invalid("Buffer::record_use: stream is null");
    if (!stream->device().is_cuda())
      throw_invalid("Buffer::record_use: a buffer of " + device_.name() + ", a stream of " + stream->device().name());
    std::lock_guard lock(mutex_);
    auto& users = holding_->users;
    if (stream != holding_->owner && std::find(users.begin(), users.end(), stream) == users.end())
      users.push_back(stream);
  }

 private:
  std::mutex mutex_;
  std::shared_ptr<Holding> holding_;
};

}  // namespace

std::shared_ptr<Buffer> allocate_buffer(const std::shared_ptr<Stream>& stream, size_t bytes) {
  const DeviceId device = stream->device();
  refuse_in_capture(
      *stream,
      "Buffer::allocate: the stream is being captured into a graph, which has no memory of its own; allocate before");
  auto* const handle = static_cast<cudaStream_t>(stream->cuda_stream());
  const Pool& from = pool(device.index);
  if (bytes > from.device_bytes) out_of_memory(device, bytes);  // hopeless: keep the pool as it is
  void* memory = nullptr;
  const auto allocate = [&] {
    const cudaError_t status =
        from.handle ? cudaMallocFromPoolAsync(&memory, bytes, from.handle, handle) : cudaMalloc(&memory, bytes);
    if (status != cudaErrorMemoryAllocation) check(status, from.handle ? "cudaMallocFromPoolAsync" : "cudaMalloc");
    if (status != cudaSuccess) (void)cudaGetLastError();
    return status == cudaSuccess;
  };
  if (!allocate()) {
    // The pool may hold free memory in pieces: give those back to the driver and ask once more.
    if (from.handle) check(cudaMemPoolTrimTo(from.handle, 0), "cudaMemPoolTrimTo");
    if (!allocate()) out_of_memory(device, bytes);
  }
  try {
    return std::make_shared<CudaBuffer>(stream, memory, bytes, from.handle != nullptr);
  } catch (...) {
    (void)(from.handle ? cudaFreeAsync(memory, handle) : cudaFree(memory));
    throw;
  }
}

void* host_allocate(DeviceId device, size_t bytes) {
  cpu::require_host_memory(bytes);
  make_current(device.index);
  void* memory = nullptr;
  const cudaError_t status = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    Error error(ErrorCode::kOutOfMemory,
                "page-locked host memory: " + std::to_string(bytes) + " bytes requested and refused");
    error.native = "cudaErrorMemoryAllocation";
    error.requested = static_cast<int64_t>(bytes);
    error.available = host_memory().available;
    throw error;
  }
  check(status, "cudaHostAlloc");
  return memory;
}

void host_free(void* memory, size_t) noexcept {
  if (cudaFreeHost(memory) != cudaSuccess) (void)cudaGetLastError();  // a broken context: reported by the next call
}

void memory_info(DeviceId device, MemoryStats& stats) {
  make_current(device.index);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  stats.free_bytes = static_cast<int64_t>(free) + pool(device.index).reserve();
  stats.total_bytes = static_cast<int64_t>(total);
}

}  // namespace nexus::cuda
