// The execution plane of a build without CUDA: there is no such device, and the error says why.
#include "exec/backend.h"

namespace nexus::cuda {
namespace {
[[noreturn]] void none() {
  throw_unsupported("this build has no CUDA: it was compiled without nvcc, or with NEXUS_CUDA=OFF");
}
}  // namespace

std::shared_ptr<Stream> create_stream(DeviceId, int, StreamShape) { none(); }
std::shared_ptr<Event> create_event(DeviceId) { none(); }
std::shared_ptr<Buffer> allocate_buffer(const std::shared_ptr<Stream>&, size_t) { none(); }
void* host_allocate(DeviceId, size_t) { none(); }
void host_free(void*, size_t) noexcept {}
void memory_info(DeviceId, MemoryStats&) { none(); }
void on_complete(const std::shared_ptr<Stream>&, std::function<void(std::exception_ptr)>) { none(); }
void graph_begin(const std::shared_ptr<Stream>&) { none(); }
std::shared_ptr<Graph> graph_end(const std::shared_ptr<Stream>&) { none(); }
void graph_abort(const std::shared_ptr<Stream>&) noexcept {}
std::shared_ptr<void> kept_by_capture(const std::shared_ptr<Stream>&, uint64_t,
                                      const std::function<std::shared_ptr<void>()>&) {
  none();
}
void fail_capture(const std::shared_ptr<Stream>&, const std::string&) noexcept {}
PartitionInfo partition_info(DeviceId) { none(); }
std::shared_ptr<Partition> create_partition(DeviceId, const std::vector<int>&) { none(); }
void require_device(DeviceId device) {
  throw_unsupported(device.name() + ": this build has no CUDA: it was compiled without nvcc, or with NEXUS_CUDA=OFF");
}

}  // namespace nexus::cuda
