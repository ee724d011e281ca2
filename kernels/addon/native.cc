// @nexus/native: devices, streams, events, buffers. See lib/binding.ts for the contract of each function.
#include "capture.h"
#include "data/backend.h"
#include "transfer.h"

namespace nexus::addon {
namespace {

using Napi::CallbackInfo;
using Napi::Value;

template <class T>
Napi::Array array_of(Napi::Env env, const std::vector<T>& items) {
  auto array = Napi::Array::New(env, items.size());
  for (size_t i = 0; i < items.size(); ++i) array.Set(static_cast<uint32_t>(i), Napi::Value::From(env, items[i]));
  return array;
}

Value SystemInformation(const CallbackInfo& info) {
  const auto env = info.Env();
  const SystemInfo s = system_info();
  auto o = Napi::Object::New(env);
  o.Set("cpuName", s.cpu_name);
  o.Set("cpuIsa", s.cpu_isa);
  o.Set("cpuIsas", array_of(env, s.cpu_isas));
  o.Set("cpuCores", s.cpu_cores);
  o.Set("cpuThreads", s.cpu_threads);
  o.Set("memoryBytes", static_cast<double>(s.memory_bytes));
  o.Set("cudaCompiled", s.cuda_compiled);
  o.Set("cudaStatus", s.cuda_status);
  o.Set("cudaError", s.cuda_error);
  o.Set("cudaRuntimeVersion", s.cuda_runtime_version);
  o.Set("cudaDriverVersion", s.cuda_driver_version);
  o.Set("greenContexts", s.green_contexts);
  o.Set("tensorMaps", s.tensor_maps);
  auto devices = Napi::Array::New(env, s.devices.size());
  for (size_t i = 0; i < s.devices.size(); ++i) {
    const auto& d = s.devices[i];
    auto device = Napi::Object::New(env);
    device.Set("index", d.index);
    device.Set("name", d.name);
    device.Set("uuid", d.uuid);
    device.Set("computeMajor", d.compute_major);
    device.Set("computeMinor", d.compute_minor);
    device.Set("multiprocessors", d.multiprocessors);
    device.Set("memoryBytes", static_cast<double>(d.memory_bytes));
    device.Set("l2Bytes", static_cast<double>(d.l2_bytes));
    device.Set("sharedMemoryPerBlockOptin", static_cast<double>(d.shared_memory_per_block_optin));
    device.Set("memoryPools", d.memory_pools);
    devices.Set(static_cast<uint32_t>(i), device);
  }
  o.Set("devices", devices);
  auto nvml = Napi::Object::New(env);
  nvml.Set("available", s.nvml.available);
  nvml.Set("detail", s.nvml.detail);
  nvml.Set("library", s.nvml.library);
  nvml.Set("migModes", array_of(env, s.nvml.mig_modes));
  nvml.Set("energyCounter", s.nvml.energy_counter);
  o.Set("nvml", nvml);
  o.Set("raplDomains", array_of(env, s.rapl_domains));
  o.Set("raplDetail", s.rapl_detail);
  return o;
}

Value MemoryStatistics(const CallbackInfo& info) {
  const MemoryStats stats = memory_stats(device_of(info[0]));
  auto o = Napi::Object::New(info.Env());
  o.Set("liveBytes", static_cast<double>(stats.live_bytes));
  o.Set("liveBuffers", static_cast<double>(stats.live_buffers));
  o.Set("peakBytes", static_cast<double>(stats.peak_bytes));
  o.Set("freeBytes", static_cast<double>(stats.free_bytes));
  o.Set("totalBytes", static_cast<double>(stats.total_bytes));
  return o;
}

Value ResetPeak(const CallbackInfo& info) {
  reset_peak(device_of(info[0]));
  return info.Env().Undefined();
}

Value SetCpuThreads(const CallbackInfo& info) {
  set_cpu_threads(integer32(info[0], "n", 1));
  return info.Env().Undefined();
}

Value CpuThreads(const CallbackInfo& info) { return Napi::Number::New(info.Env(), cpu_threads()); }

// ---- streams --------------------------------------------------------------------------------------------------------

Value StreamCreate(const CallbackInfo& info) {
  const auto device = device_of(info[0]);
  const int priority = integer32(info[1], "priority", INT32_MIN);
  StreamShape shape;
  shape.max_width = absent(info[2]) ? 0 : integer32(info[2], "maxWidth");
  shape.share_sm = !absent(info[3]) && info[3].ToBoolean();
  shape.read_ahead = absent(info[4]) ? 0 : integer(info[4], "readAheadBytes", 0);
  return wrap(info.Env(), std::make_unique<StreamHandle>(Stream::create(device, priority, shape)));
}

Value StreamSynchronize(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  refuse_capture(stream, "nothing of that runs: it cannot be waited for");
  const auto environment = Environment::of(info.Env());
  const auto started = environment->start(info.Env());
  try {
    on_complete(stream.object, [environment, id = started.id](std::exception_ptr error) {
      environment->settle(id, std::move(error));
    });
  } catch (...) {
    environment->abandon(info.Env(), started.id);
    throw;
  }
  return started.promise;
}

Value StreamWait(const CallbackInfo& info) {
  stream_of(info[0]).object->wait(*unwrap<EventHandle>(info[1], "event").object);
  return info.Env().Undefined();
}

Value StreamWidth(const CallbackInfo& info) {
  return Napi::Number::New(info.Env(), stream_of(info[0]).object->width());
}

Value StreamCapturing(const CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), capturing(stream_of(info[0])));
}

// ---- graphs ---------------------------------------------------------------------------------------------------------

/// Also a released one: a capture whose stream was let go of must be ended too.
const StreamHandle& stream_of_capture(const Value& value) {
  const Handle& handle = any_handle(value, "stream");
  if (handle.kind != Kind::kStream) throw_kind(handle, Kind::kStream, "stream");
  return static_cast<const StreamHandle&>(handle);
}

Value GraphBegin(const CallbackInfo& info) {
  begin_capture(stream_of(info[0]));
  return info.Env().Undefined();
}

Value GraphEnd(const CallbackInfo& info) {
  return wrap(info.Env(), std::make_unique<GraphHandle>(end_capture(stream_of_capture(info[0]))));
}

Value GraphAbort(const CallbackInfo& info) {
  abort_capture(stream_of_capture(info[0]));
  return info.Env().Undefined();
}

Value GraphLaunch(const CallbackInfo& info) {
  auto& graph = unwrap<GraphHandle>(info[0], "graph");
  const auto& stream = stream_of(info[1]);
  if (graph.object->graph->device() != stream.object->device()) {
    throw_invalid("graph: is on " + graph.object->graph->device().name() + ", the stream is on " +
                  stream.object->device().name());
  }
  launch(*graph.object, stream);
  return info.Env().Undefined();
}

Value GraphInfo(const CallbackInfo& info) {
  const Graph& graph = *unwrap<GraphHandle>(info[0], "graph").object->graph;
  return graph_info(info.Env(), graph.nodes(), graph.bytes(), graph.bytes_estimated(), graph.capture_ms());
}

// ---- events ---------------------------------------------------------------------------------------------------------

Value EventCreate(const CallbackInfo& info) {
  return wrap(info.Env(), std::make_unique<EventHandle>(Event::create(device_of(info[0]))));
}

Value EventRecord(const CallbackInfo& info) {
  unwrap<EventHandle>(info[0], "event").object->record(*stream_of(info[1]).object);
  return info.Env().Undefined();
}

Value EventReady(const CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), unwrap<EventHandle>(info[0], "event").object->ready());
}

Value EventElapsedMs(const CallbackInfo& info) {
  const auto& start = unwrap<EventHandle>(info[0], "start");
  const auto& end = unwrap<EventHandle>(info[1], "end");
  return Napi::Number::New(info.Env(), start.object->elapsed_ms(*end.object));
}

Value Release(const CallbackInfo& info) {
  Handle& handle = any_handle(info[0], "handle");
  handle.drop();
  if (handle.host_bytes != 0) {
    Napi::MemoryManagement::AdjustExternalMemory(info.Env(), -handle.host_bytes);
    handle.host_bytes = 0;
  }
  return info.Env().Undefined();
}

// ---- buffers
// ----------------------------------------------------------------------------------------------------------

Value BufferCreate(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  refuse_capture(stream, "memory cannot be allocated then: make tensors before, and pass them as `out`");
  auto buffer = Buffer::allocate(stream.object, static_cast<size_t>(integer(info[1], "bytes")));
  return wrap(info.Env(), std::make_unique<BufferHandle>(std::move(buffer), stream.id));
}

Value BufferBytes(const CallbackInfo& info) {
  const auto& buffer = unwrap<BufferHandle>(info[0], "buffer");
  return Napi::Number::New(info.Env(), static_cast<double>(buffer.object->bytes()));
}

Value BufferRecordUse(const CallbackInfo& info) {
  record_use(unwrap<BufferHandle>(info[0], "buffer"), stream_of(info[1]));
  return info.Env().Undefined();
}

Value BufferFill(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const auto bytes = static_cast<int64_t>(unwrap<BufferHandle>(info[1], "buffer").object->bytes());
  const int byte = integer32(info[2], "byte", 0, 255);
  void* data = view_bytes(stream, info[1], "buffer", bytes, 0, 1);
  if (bytes > 0) stream.object->fill(data, byte, static_cast<size_t>(bytes));
  return info.Env().Undefined();
}

Value Copy(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const int64_t bytes = integer(info[5], "bytes");
  void* dst = view_bytes(stream, info[1], "dst", bytes, integer(info[2], "dstOffset"), 1);
  const void* src = view_bytes(stream, info[3], "src", bytes, integer(info[4], "srcOffset"), 1);
  if (bytes > 0) stream.object->copy(dst, src, static_cast<size_t>(bytes));
  return info.Env().Undefined();
}

Value Cast(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const DType from = float_dtype_of(info[2], "fromDtype"), to = float_dtype_of(info[4], "toDtype");
  const int64_t elements = integer(info[5], "elements");
  const void* src = view(stream, info[1], "src", from, elements);
  void* dst = view(stream, info[3], "dst", to, elements);
  if (elements > 0) cast(*stream.object, src, from, dst, to, elements);
  return info.Env().Undefined();
}

Value FillNormal(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  const DType dtype = float_dtype_of(info[2], "dtype");
  const int64_t elements = integer(info[3], "elements");
  const auto seed = static_cast<uint64_t>(integer(info[4], "seed"));
  const auto scale = static_cast<float>(number(info[5], "scale"));
  void* dst = view(stream, info[1], "buffer", dtype, elements);
  if (elements > 0) fill_normal(*stream.object, dst, dtype, elements, seed, scale);
  return info.Env().Undefined();
}

}  // namespace

Napi::Object native_functions(Napi::Env env) {
  auto o = Napi::Object::New(env);
  define<SystemInformation>(o, "systemInfo");
  define<MemoryStatistics>(o, "memoryStats");
  define<ResetPeak>(o, "resetPeak");
  define<SetCpuThreads>(o, "setCpuThreads");
  define<CpuThreads>(o, "cpuThreads");
  define<StreamCreate>(o, "streamCreate");
  define<StreamSynchronize>(o, "streamSynchronize");
  define<StreamWait>(o, "streamWait");
  define<StreamWidth>(o, "streamWidth");
  define<StreamCapturing>(o, "streamCapturing");
  define<GraphBegin>(o, "graphBegin");
  define<GraphEnd>(o, "graphEnd");
  define<GraphAbort>(o, "graphAbort");
  define<GraphLaunch>(o, "graphLaunch");
  define<GraphInfo>(o, "graphInfo");
  define<EventCreate>(o, "eventCreate");
  define<EventRecord>(o, "eventRecord");
  define<EventReady>(o, "eventReady");
  define<EventElapsedMs>(o, "eventElapsedMs");
  define<Release>(o, "release");
  define<BufferCreate>(o, "bufferCreate");
  define<BufferBytes>(o, "bufferBytes");
  define<BufferRecordUse>(o, "bufferRecordUse");
  define<BufferFill>(o, "bufferFill");
  define<upload>(o, "upload");
  define<upload_async>(o, "uploadAsync");
  define<download>(o, "download");
  define<Copy>(o, "copy");
  define<Cast>(o, "cast");
  define<FillNormal>(o, "fillNormal");
  return o;
}

}  // namespace nexus::addon
