// @nexus/slices: what a device can be cut into, partitions and their streams, and tables of lanes. See lib/binding.ts
// for the contract of each function.
#include <cstring>

#include "capture.h"

namespace nexus::addon {
namespace {

using Napi::CallbackInfo;
using Napi::Value;

using PartitionHandle = HandleOf<Partition, Kind::kPartition>;

/// Far more than any device has, so that a wrong number of slices cannot ask for gigabytes.
constexpr uint32_t kMaxSlices = 1024;

Value PartitionInformation(const CallbackInfo& info) {
  const PartitionInfo p = partition_info(device_of(info[0]));
  auto o = Napi::Object::New(info.Env());
  o.Set("units", p.units);
  o.Set("granularity", p.granularity);
  o.Set("minimum", p.minimum);
  o.Set("enforcement", static_cast<int32_t>(p.enforcement));
  o.Set("reason", p.reason);
  return o;
}

Value PartitionCreate(const CallbackInfo& info) {
  const auto device = device_of(info[0]);
  if (!info[1].IsArray()) throw Napi::TypeError::New(info.Env(), "units: expected an array of integers");
  const auto array = info[1].As<Napi::Array>();
  if (array.Length() > kMaxSlices) {
    throw_invalid("units: expected at most " + std::to_string(kMaxSlices) + " slices, got " +
                  std::to_string(array.Length()));
  }
  std::vector<int> units(array.Length());
  for (uint32_t i = 0; i < array.Length(); ++i) {
    const Napi::HandleScope scope(info.Env());
    units[i] = integer32(array.Get(i), ("units[" + std::to_string(i) + "]").c_str());
  }
  return wrap(info.Env(), std::make_unique<PartitionHandle>(Partition::create(device, units)));
}

Value PartitionGrants(const CallbackInfo& info) {
  const auto& grants = unwrap<PartitionHandle>(info[0], "partition").object->grants();
  auto array = Napi::Array::New(info.Env(), grants.size());
  for (uint32_t i = 0; i < grants.size(); ++i) {
    auto o = Napi::Object::New(info.Env());
    o.Set("units", grants[i].units);
    o.Set("enforcement", static_cast<int32_t>(grants[i].enforcement));
    o.Set("reason", grants[i].reason);
    array.Set(i, o);
  }
  return array;
}

Value PartitionStream(const CallbackInfo& info) {
  Partition& partition = *unwrap<PartitionHandle>(info[0], "partition").object;
  const int slices = static_cast<int>(partition.grants().size());
  const int slice = integer32(info[1], "slice", 0, slices - 1);
  const int priority = integer32(info[2], "priority", INT32_MIN);
  StreamShape shape;
  shape.read_ahead = absent(info[3]) ? 0 : integer(info[3], "readAheadBytes", 0);
  return wrap(info.Env(), std::make_unique<StreamHandle>(partition.create_stream(slice, priority, shape)));
}

// ---- lanes ----------------------------------------------------------------------------------------------------------

std::vector<int32_t> integers(const Value& value, const char* name) {
  napi_typedarray_type type{};
  size_t length = 0;
  void* data = nullptr;
  if (!value.IsTypedArray() ||
      napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr) != napi_ok ||
      type != napi_int32_array) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + ": expected an Int32Array");
  }
  std::vector<int32_t> result(length);
  if (length > 0) std::memcpy(result.data(), data, length * sizeof(int32_t));
  return result;
}

std::vector<int32_t> shares_of(const Value& value) {
  return absent(value) ? std::vector<int32_t>{} : integers(value, "shares");
}

Value LaneSetCreate(const CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  refuse_capture(stream, "a lane set cannot be made then; make it before");
  const int lanes = integer32(info[2], "lanes", 1, kMaxLanes);
  auto set = LaneSet::create(stream.object, integers(info[1], "laneOf"), lanes, shares_of(info[3]),
                             info[4].ToBoolean().Value());
  return wrap(info.Env(), std::make_unique<LaneSetHandle>(std::move(set), stream.object->device()));
}

/// A lane set and a stream of one device, neither of them being recorded.
LaneSet& lanes_on(const Value& lanes, const StreamHandle& stream) {
  const auto& handle = unwrap<LaneSetHandle>(lanes, "lanes");
  if (handle.device != stream.object->device()) {
    throw_invalid("lanes: are on " + handle.device.name() + ", the stream is on " + stream.object->device().name());
  }
  refuse_capture(stream, "the table and the trace of a lane set cannot be touched then; do it before");
  return *handle.object;
}

Value LaneSetUpdate(const CallbackInfo& info) {
  const auto& stream = stream_of(info[1]);
  lanes_on(info[0], stream).update(stream.object, integers(info[2], "laneOf"), shares_of(info[3]));
  return info.Env().Undefined();
}

Value LaneSetTrace(const CallbackInfo& info) {
  const auto& stream = stream_of(info[1]);
  LaneSet& lanes = lanes_on(info[0], stream);
  const auto words = static_cast<size_t>(lanes.lanes()) * kTraceWords;
  const auto environment = Environment::of(info.Env());
  const auto started = environment->start(info.Env());
  try {
    auto host = HostBuffer::allocate(stream.object->device(), words * sizeof(uint32_t));
    lanes.take_trace(stream.object, static_cast<uint32_t*>(host->data()));
    const auto held = unwrap<LaneSetHandle>(info[0], "lanes").object;
    on_complete(stream.object, [=, id = started.id](std::exception_ptr error) {
      (void)held;
      environment->settle(id, std::move(error), [host, words](Napi::Env env, Value) -> Value {
        auto array = Napi::Int32Array::New(env, words);
        std::memcpy(array.Data(), host->data(), words * sizeof(int32_t));
        return array;
      });
    });
  } catch (...) {
    environment->abandon(info.Env(), started.id);
    throw;
  }
  return started.promise;
}

}  // namespace

Napi::Object slices_functions(Napi::Env env) {
  auto o = Napi::Object::New(env);
  define<PartitionInformation>(o, "partitionInfo");
  define<PartitionCreate>(o, "partitionCreate");
  define<PartitionGrants>(o, "partitionGrants");
  define<PartitionStream>(o, "partitionStream");
  define<LaneSetCreate>(o, "laneSetCreate");
  define<LaneSetUpdate>(o, "laneSetUpdate");
  define<LaneSetTrace>(o, "laneSetTrace");
  return o;
}

}  // namespace nexus::addon
