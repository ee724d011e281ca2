// @nexus/profiler/native: rings of counts. Reading one never waits for the device.
#include <cstring>

#include "capture.h"

namespace nexus::addon {
namespace {

using Napi::CallbackInfo;
using Napi::Value;

Value CountRingCreate(const CallbackInfo& info) {
  const auto device = device_of(info[0]);
  const int experts = integer32(info[1], "experts", 1, kMaxExperts);
  const int capacity = integer32(info[2], "capacity", 1);
  return wrap(info.Env(), std::make_unique<CountRingHandle>(CountRing::create(device, experts, capacity), device));
}

template <class Array, class T>
Array array_of(Napi::Env env, const std::vector<T>& values) {
  auto array = Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

Value CountRingRead(const CallbackInfo& info) {
  const auto env = info.Env();
  const auto from = static_cast<uint64_t>(integer(info[1], "from"));
  const auto reading = unwrap<CountRingHandle>(info[0], "ring").object->read(from);
  auto o = Napi::Object::New(env);
  o.Set("steps", array_of<Napi::Float64Array>(env, reading.steps));
  o.Set("tokens", array_of<Napi::Int32Array>(env, reading.tokens));
  o.Set("counts", array_of<Napi::Int32Array>(env, reading.counts));
  o.Set("lost", static_cast<double>(reading.lost));
  o.Set("next", static_cast<double>(reading.next));
  return o;
}

}  // namespace

Napi::Object profiler_functions(Napi::Env env) {
  auto o = Napi::Object::New(env);
  define<CountRingCreate>(o, "countRingCreate");
  define<CountRingRead>(o, "countRingRead");
  return o;
}

}  // namespace nexus::addon
