// The memory of a count ring on CUDA: slots in page-locked host memory that the device writes over the bus, the counter
// in device memory, where reading it costs the router no round trip.
#include <algorithm>

#include "exec/backend.h"
#include "exec/cuda_device.h"
#include "exec/step.h"

namespace nexus::cuda {
namespace {

class CudaRingMemory final : public RingMemory {
 public:
  CudaRingMemory(DeviceId device, size_t words) : device_(device.index) {
    make_current(device_);
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, words * sizeof(uint64_t), cudaHostAllocMapped | cudaHostAllocPortable),
          "CountRing::create: cudaHostAlloc");
    host = static_cast<uint64_t*>(memory);
    std::fill_n(host, words, kEmptyRingWord);
    try {
      check(cudaHostGetDevicePointer(&memory, host, 0), "CountRing::create: cudaHostGetDevicePointer");
      slots = static_cast<uint64_t*>(memory);
      check(cudaMalloc(&memory, sizeof(uint64_t)), "CountRing::create: cudaMalloc");
      counter = static_cast<uint64_t*>(memory);
      // On a stream of its own: the default one's calls would wait for, or disturb, what others do.
      cudaStream_t stream = nullptr;
      check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "CountRing::create: cudaStreamCreateWithFlags");
      const cudaError_t filled = cudaMemsetAsync(counter, 0, sizeof(uint64_t), stream);
      const cudaError_t done = cudaStreamSynchronize(stream);
      const cudaError_t gone = cudaStreamDestroy(stream);
      for (const cudaError_t status : {filled, done, gone}) check(status, "CountRing::create: zeroing the counter");
    } catch (...) {
      release();
      throw;
    }
  }
  ~CudaRingMemory() override { release(); }

 private:
  /// A failure is a broken context, or a runtime that is unloading at process exit: the memory goes with it.
  void release() noexcept {
    int before = -1;
    if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(device_) != cudaSuccess ||
        (counter != nullptr && cudaFree(counter) != cudaSuccess) || cudaFreeHost(host) != cudaSuccess)
      (void)cudaGetLastError();
    if (before >= 0 && before != device_ && cudaSetDevice(before) != cudaSuccess) (void)cudaGetLastError();
  }
  int device_;
};

}  // namespace

std::unique_ptr<RingMemory> ring_memory(DeviceId device, size_t slot_words) {
  require_device(device);
  return std::make_unique<CudaRingMemory>(device, slot_words);
}

}  // namespace nexus::cuda
