// The fault seam of test builds; see fault.h. Nothing of it is compiled without NEXUS_FAULTS.
#ifdef NEXUS_FAULTS
#include "exec/fault.h"

#include <array>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "exec/cpu_stream.h"
#ifdef NEXUS_HAS_CUDA
#include "exec/cuda_device.h"
#include "nexus/combine.h"
#endif

namespace nexus {
namespace {

/// NEXUS_FAULT as it is now. A test may change it: then counting begins anew.
class Wish {
 public:
  /// The kind of fault that this pass of `name` gets, or "".
  std::string pass(const char* name) {
    const std::lock_guard lock(mutex_);
    const char* text = std::getenv("NEXUS_FAULT");
    if (text_ != (text == nullptr ? "" : text)) parse(text == nullptr ? "" : text);
    if (name_ != name || ++passes_ != nth_) return "";
    return kind_;
  }

 private:
  void parse(const std::string& text) {
    text_ = text;
    passes_ = 0;
    const size_t first = text.find(':'), second = first == std::string::npos ? first : text.find(':', first + 1);
    name_ = text.substr(0, first);
    const std::string nth = first == std::string::npos ? "" : text.substr(first + 1, second - first - 1);
    kind_ = second == std::string::npos ? "error" : text.substr(second + 1);
    char* end = nullptr;
    nth_ = nth.empty() ? 1 : std::strtol(nth.c_str(), &end, 10);
    const bool known = kind_ == "error" || kind_ == "oom" || kind_ == "device" || kind_ == "hang";
    if ((end != nullptr && *end != '\0') || nth_ < 1 || !known) {
      name_.clear();
      throw_invalid("NEXUS_FAULT: expected name[:nth[:error|oom|device|hang]], got '" + text + "'");
    }
  }

  std::mutex mutex_;
  std::string text_, name_, kind_;
  long nth_ = 1, passes_ = 0;
};

Wish& wish() {
  static auto* the_wish = new Wish;
  return *the_wish;
}

/// By device: it broke.
std::atomic<bool>& broken(DeviceId device) {
  static auto* all = new std::array<std::atomic<bool>, 65>{};
  return all->at(static_cast<size_t>(device.index + 1));
}

[[noreturn]] void device_error(const char* name) {
  Error error(ErrorCode::kDevice, std::string(name) + ": cudaErrorIllegalAddress: injected fault");
  error.native = "cudaErrorIllegalAddress";
  throw error;
}

void break_device(DeviceId device) {
  broken(device) = true;
#ifdef NEXUS_HAS_CUDA
  if (!device.is_cuda()) return;
  // A kernel that reads nobody's memory, on a stream of its own: another may be in a capture.
  const auto stream = Stream::create(device);
  cast(*stream, reinterpret_cast<const void*>(4096), DType::kF32, reinterpret_cast<void*>(8192), DType::kBF16, 1024);
  stream->synchronize();  // throws what every later call throws
#endif
}

void sleep_for_long(void*) { std::this_thread::sleep_for(std::chrono::hours(1)); }

void hang(Stream* stream) {
  if (stream == nullptr) return sleep_for_long(nullptr);
#ifdef NEXUS_HAS_CUDA
  if (stream->device().is_cuda()) {
    const cudaError_t status =
        cudaLaunchHostFunc(static_cast<cudaStream_t>(stream->cuda_stream()), &sleep_for_long, nullptr);
    cuda::check(status, "cudaLaunchHostFunc");
    return;
  }
#endif
  static_cast<cpu::CpuStream*>(stream)->queue().push([] { sleep_for_long(nullptr); });
}

void pass(const char* name, DeviceId device, Stream* stream) {
  if (broken(device)) device_error(name);
  const std::string kind = wish().pass(name);
  if (kind.empty()) return;
  if (kind == "hang") return hang(stream);
  if (kind == "device") {
    if (stream != nullptr && device.is_cpu())
      static_cast<cpu::CpuStream*>(stream)->queue().push([name] { device_error(name); });
    break_device(device);
    device_error(name);
  }
  if (kind == "oom") {
    Error error(ErrorCode::kOutOfMemory, std::string(name) + ": out of memory: injected fault");
    error.requested = 1;
    error.available = 0;
    throw error;
  }
  throw Error(ErrorCode::kInternal, std::string(name) + ": injected fault");
}

}  // namespace

void fault_point(const char* name, DeviceId device) { pass(name, device, nullptr); }
void fault_point(const char* name, Stream& stream) { pass(name, stream.device(), &stream); }

}  // namespace nexus
#endif
