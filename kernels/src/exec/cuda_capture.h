// Captures under way on CUDA streams: what CUDA does not keep for us. Why a capture cannot be ended (an allocation that
// we refuse leaves CUDA's own capture intact), which streams take part, and what must not be released into it.
//
// Captures are begun in relaxed mode. The stricter modes forbid calls that might synchronise with the legacy stream,
// which nothing here uses; they would also fail a capture for what has nothing to do with it: a kernel that is loaded
// on its first launch, page-locked memory allocated on the way, a host program that goes on on the same thread between
// begin() and end(). What would be wrong, work on a capturing stream that cannot be recorded, fails in every mode.
#pragma once
#include <atomic>
#include <chrono>
#include <map>

#include "exec/cuda_device.h"

namespace nexus::cuda {

class Capture {
 public:
  Capture(std::shared_ptr<Stream> origin, unsigned long long id) : origin(std::move(origin)), id(id) {}

  const std::shared_ptr<Stream> origin;
  const unsigned long long id;
  const std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();

  /// Marks the capture as failed, and says so.
  [[noreturn]] void refuse(const std::string& what);
  /// Keeps a stream that joined.
  void add(const std::shared_ptr<Stream>& stream);
  bool has(cudaStream_t stream);
  /// Calls `release` when the graph goes, or the capture is undone; now, when it is over already.
  void keep(std::function<void()> release);
  /// See kept_by_capture().
  std::shared_ptr<void> kept(uint64_t key, const std::function<std::shared_ptr<void>()>& make);

  struct Outcome {
    std::string failure;
    std::vector<std::shared_ptr<Stream>> streams;
    std::vector<std::function<void()>> releases;
    std::map<uint64_t, std::shared_ptr<void>> kept;
  };
  /// The capture is over.
  Outcome close();

 private:
  std::mutex mutex_;
  bool open_ = true;
  Outcome outcome_;
};

inline std::atomic<int> captures_under_way{0};

std::shared_ptr<Capture> find_capture(cudaStream_t stream);
/// The capture with this number, or null when it is over.
std::shared_ptr<Capture> find_capture(unsigned long long id);
/// The capture that the stream takes part in, or null. Costs one load as long as there is none in the process.
inline std::shared_ptr<Capture> capture_of(cudaStream_t stream) {
  return captures_under_way.load(std::memory_order_relaxed) == 0 ? nullptr : find_capture(stream);
}
inline std::shared_ptr<Capture> capture_of(Stream& stream) {
  if (captures_under_way.load(std::memory_order_relaxed) == 0) return nullptr;
  return find_capture(static_cast<cudaStream_t>(stream.cuda_stream_to_ask()));
}
inline void refuse_in_capture(Stream& stream, const char* what) {
  if (const auto capture = capture_of(stream)) capture->refuse(what);
}

/// Runs `queue`, which queues something behind what streams had to do so far: a release, a completion. On the library's
/// own threads it may come at any time, also while another thread captures one of those streams; an event recorded
/// into that capture and then asked for would invalidate it. So there it waits until no capture is under way.
void outside_captures(std::function<void()> queue);

/// A stream that somebody else's call made: `width` SMs, kept within `owner`, which lives until the stream's work is
/// done.
std::shared_ptr<Stream> adopt_slice_stream(DeviceId device, cudaStream_t stream, int width, StreamShape shape,
                                           std::shared_ptr<Partition> owner);
/// `wanted`, clamped to what the device has.
int stream_priority(int wanted);

/// Runs `release` on the background helper once what is now queued on `stream` is done. Waits for nothing.
void release_behind(const std::shared_ptr<Stream>& stream, std::function<void()> release) noexcept;

}  // namespace nexus::cuda
