// @nexus/energy: monitors and the inventory. See lib/binding.ts for the contract of each function.
#include <algorithm>
#include <limits>

#include "boundary.h"
#include "nexus/telemetry.h"

namespace nexus::addon {
namespace {

using Napi::CallbackInfo;
using Napi::Value;

using MonitorHandle = HandleOf<EnergyMonitor, Kind::kEnergyMonitor>;

Value NowMs(const CallbackInfo& info) { return Napi::Number::New(info.Env(), telemetry_now_ms()); }

Value MonitorStart(const CallbackInfo& info) {
  if (!info[0].IsString()) throw Napi::TypeError::New(info.Env(), "device: expected a string");
  EnergyMonitorOptions options;
  options.device = info[0].As<Napi::String>().Utf8Value();
  options.interval_ms = number(info[1], "intervalMs");
  options.history = integer32(info[2], "history", 2);
  return wrap(info.Env(), std::make_unique<MonitorHandle>(EnergyMonitor::start(options)));
}

Value MonitorRequest(const CallbackInfo& info) {
  return Napi::Number::New(info.Env(), unwrap<MonitorHandle>(info[0], "monitor").object->request());
}

Value MonitorRead(const CallbackInfo& info) {
  const auto env = info.Env();
  const auto view = unwrap<MonitorHandle>(info[0], "monitor").object->read(number(info[1], "afterMs"));
  auto samples = Napi::Float64Array::New(env, view.samples.size() * kEnergyColumns);
  double* out = samples.Data();
  for (const auto& sample : view.samples) out = std::copy(sample.begin(), sample.end(), out);
  auto reasons = Napi::Array::New(env, kEnergyColumns);
  for (uint32_t i = 0; i < kEnergyColumns; ++i) reasons.Set(i, view.reasons[i]);
  auto o = Napi::Object::New(env);
  o.Set("samples", samples);
  o.Set("reasons", reasons);
  o.Set("dropped", static_cast<double>(view.dropped));
  o.Set("blockedCall", view.blocked_call);
  o.Set("blockedMs", view.blocked_ms);
  return o;
}

Value InventoryRequest(const CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(request_inventory()));
}

Napi::Object instance_object(Napi::Env env, const MigInstance& instance) {
  auto o = Napi::Object::New(env);
  o.Set("uuid", instance.uuid);
  o.Set("gpuInstance", instance.gpu_instance);
  o.Set("computeInstance", instance.compute_instance);
  o.Set("multiprocessors", instance.multiprocessors);
  o.Set("memoryBytes", static_cast<double>(instance.memory_bytes));
  o.Set("detail", instance.detail);
  return o;
}

Napi::Object gpu_object(Napi::Env env, const GpuDevice& gpu) {
  auto o = Napi::Object::New(env);
  o.Set("index", gpu.index);
  o.Set("uuid", gpu.uuid);
  o.Set("name", gpu.name);
  o.Set("migMode", gpu.mig_mode);
  o.Set("memoryBytes", static_cast<double>(gpu.memory_bytes));
  auto instances = Napi::Array::New(env, gpu.mig.size());
  for (uint32_t i = 0; i < gpu.mig.size(); ++i) instances.Set(i, instance_object(env, gpu.mig[i]));
  o.Set("mig", instances);
  o.Set("detail", gpu.detail);
  return o;
}

Value InventoryAnswer(const CallbackInfo& info) {
  const auto env = info.Env();
  const auto inventory = inventory_answer(static_cast<uint64_t>(integer(info[0], "request")));
  if (!inventory) return env.Null();
  auto o = Napi::Object::New(env);
  o.Set("nvmlAvailable", inventory->nvml_available);
  o.Set("nvmlLibrary", inventory->nvml_library);
  o.Set("nvmlDetail", inventory->nvml_detail);
  auto gpus = Napi::Array::New(env, inventory->gpus.size());
  for (uint32_t i = 0; i < inventory->gpus.size(); ++i) gpus.Set(i, gpu_object(env, inventory->gpus[i]));
  o.Set("gpus", gpus);
  auto domains = Napi::Array::New(env, inventory->rapl_domains.size());
  for (uint32_t i = 0; i < inventory->rapl_domains.size(); ++i) domains.Set(i, inventory->rapl_domains[i]);
  o.Set("raplDomains", domains);
  o.Set("raplDetail", inventory->rapl_detail);
  return o;
}

Value CurrentlyBlockedCall(const CallbackInfo& info) {
  const auto blocked = blocked_call();
  auto o = Napi::Object::New(info.Env());
  o.Set("call", blocked.call);
  o.Set("ms", blocked.ms);
  return o;
}

}  // namespace

Napi::Object energy_functions(Napi::Env env) {
  auto o = Napi::Object::New(env);
  define<NowMs>(o, "nowMs");
  define<MonitorStart>(o, "monitorStart");
  define<MonitorRequest>(o, "monitorRequest");
  define<MonitorRead>(o, "monitorRead");
  define<InventoryRequest>(o, "inventoryRequest");
  define<InventoryAnswer>(o, "inventoryAnswer");
  define<CurrentlyBlockedCall>(o, "blockedCall");
  return o;
}

}  // namespace nexus::addon
