// What each device kind gives the execution plane. The public functions (stream.cpp) validate and dispatch; a build
// without CUDA takes the cuda:: ones from cuda_runtime_none.cpp, which throw kUnsupported.
#pragma once
#include <atomic>

#include "nexus/runtime.h"

namespace nexus {

#define NEXUS_EXECUTION_PLANE                                                                                  \
  std::shared_ptr<Stream> create_stream(DeviceId device, int priority, StreamShape shape);                     \
  std::shared_ptr<Event> create_event(DeviceId device);                                                        \
  /* bytes > 0 */                                                                                              \
  std::shared_ptr<Buffer> allocate_buffer(const std::shared_ptr<Stream>& stream, size_t bytes);                \
  /* Host memory that the device copies from at full speed. host_free may block. */                            \
  void* host_allocate(DeviceId device, size_t bytes);                                                          \
  void host_free(void* memory, size_t bytes) noexcept;                                                         \
  /* Fills free_bytes and total_bytes. */                                                                      \
  void memory_info(DeviceId device, MemoryStats& stats);                                                       \
  void on_complete(const std::shared_ptr<Stream>& stream, std::function<void(std::exception_ptr error)> done); \
  void graph_begin(const std::shared_ptr<Stream>& stream);                                                     \
  std::shared_ptr<Graph> graph_end(const std::shared_ptr<Stream>& stream);                                     \
  void graph_abort(const std::shared_ptr<Stream>& stream) noexcept;                                            \
  std::shared_ptr<void> kept_by_capture(const std::shared_ptr<Stream>& stream, uint64_t key,                   \
                                        const std::function<std::shared_ptr<void>()>& make);                   \
  void fail_capture(const std::shared_ptr<Stream>& stream, const std::string& why) noexcept;                   \
  PartitionInfo partition_info(DeviceId device);                                                               \
  /* No size is below 1. */                                                                                    \
  std::shared_ptr<Partition> create_partition(DeviceId device, const std::vector<int>& units);                 \
  /* Throws kUnsupported, with the reason, where there is no such device. */                                   \
  void require_device(DeviceId device);

namespace cpu {
NEXUS_EXECUTION_PLANE
}
namespace cuda {
NEXUS_EXECUTION_PLANE
}
#undef NEXUS_EXECUTION_PLANE

// ---- stream.cpp --------------------------------------------------------------------------------------------------

/// Throws kInvalidArgument, in the name of `what`, for a shape that is none.
void check_shape(const char* what, const StreamShape& shape);

// ---- graph.cpp ---------------------------------------------------------------------------------------------------

/// What the capture that `stream` takes part in keeps under `key`, made by `make` where there is nothing yet. It goes
/// with the graph, behind its last launch, or when the capture is undone. Null where the stream takes part in none.
std::shared_ptr<void> kept_by_capture(const std::shared_ptr<Stream>& stream, uint64_t key,
                                      const std::function<std::shared_ptr<void>()>& make);
/// No graph comes of the capture that `stream` takes part in: its end throws kGraphCapture with `why`.
void fail_capture(const std::shared_ptr<Stream>& stream, const std::string& why) noexcept;

namespace cpu {
/// Throws kOutOfMemory where the machine has not so much memory left, which Linux would grant all the same (and kill
/// somebody later). Empties the arena where only that makes room. Small requests are not looked at.
void require_host_memory(size_t bytes);
}  // namespace cpu

// ---- completion.cpp ----------------------------------------------------------------------------------------------

/// Calls done(error) on the completion thread, now.
void deliver(std::function<void(std::exception_ptr)> done, std::exception_ptr error);
/// Polls `finished` on the completion thread until it returns true (then done(nullptr)) or throws (then done(that)).
/// Items of one `lane` finish in the order in which they came, so only the oldest is polled.
void deliver_when(const void* lane, std::function<bool()> finished, std::function<void(std::exception_ptr)> done);

/// At process exit: returns when the completion thread and its helper call nothing, and keeps it so; one that hangs in
/// a call for longer than two seconds is left alone. What is pending is neither delivered nor destroyed.
void stop_background_work();

// ---- accounting.cpp ----------------------------------------------------------------------------------------------

/// Counts a live Buffer for as long as it lives.
class LiveBytes {
 public:
  LiveBytes(DeviceId device, size_t bytes);
  ~LiveBytes();
  LiveBytes(const LiveBytes&) = delete;
  LiveBytes& operator=(const LiveBytes&) = delete;

 private:
  DeviceId device_;
  int64_t bytes_;
};
/// Fills live_bytes, live_buffers and peak_bytes.
void read_accounts(DeviceId device, MemoryStats& stats);

}  // namespace nexus
