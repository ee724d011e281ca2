// Crossing the boundary: errors, handles, checked arguments. Every function of the addon is defined through define(),
// which turns any C++ exception into a JavaScript error with a `code`; sizes are checked against buffers here, before
// anything is enqueued, so that no wrong argument from JavaScript can reach memory that is not its own.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "environment.h"
#include "nexus/layer.h"
#include "nexus/runtime.h"

namespace nexus::addon {

// ---- errors
// -----------------------------------------------------------------------------------------------------------

Napi::Error js_error(Napi::Env env, const std::exception_ptr& error);

template <Napi::Value (*Body)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return Body(info);
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw js_error(info.Env(), std::current_exception());
  }
}
template <Napi::Value (*Body)(const Napi::CallbackInfo&)>
void define(Napi::Object& target, const char* name) {
  target.Set(name, Napi::Function::New<guarded<Body>>(target.Env(), name));
}

/// The arguments of a hot function: no allocation, where CallbackInfo makes one beyond six.
template <size_t N>
struct Arguments {
  napi_env env;
  napi_value values[N];
  Napi::Value operator[](size_t i) const { return {env, values[i]}; }
  Napi::Env Env() const { return env; }
};
template <size_t N, void (*Body)(const Arguments<N>&)>
napi_value guarded_hot(napi_env env, napi_callback_info info) {
  try {
    Arguments<N> arguments{env, {}};
    size_t count = N;  // missing ones are undefined
    if (napi_get_cb_info(env, info, &count, arguments.values, nullptr, nullptr) != napi_ok) throw Napi::Error::New(env);
    Body(arguments);
  } catch (const Napi::Error& error) {
    error.ThrowAsJavaScriptException();
  } catch (...) {
    js_error(env, std::current_exception()).ThrowAsJavaScriptException();
  }
  return nullptr;
}
/// A hot function: N arguments, returns nothing.
template <size_t N, void (*Body)(const Arguments<N>&)>
void define_hot(Napi::Object& target, const char* name) {
  napi_value function = nullptr;
  if (napi_create_function(target.Env(), name, NAPI_AUTO_LENGTH, guarded_hot<N, Body>, nullptr, &function) != napi_ok) {
    throw Napi::Error::New(target.Env());
  }
  target.Set(name, function);
}

// ---- handles
// ----------------------------------------------------------------------------------------------------------

enum class Kind : uint8_t {
  kStream,
  kEvent,
  kBuffer,
  kLayer,
  kEnergyMonitor,
  kGraph,
  kPartition,
  kLaneSet,
  kCountRing,
  kLayerPlan,
  kLayerGraph,
};

/// What an external points to. The external keeps the object alive; release() drops it before the collector does.
struct Handle {
  explicit Handle(Kind kind) : kind(kind) {}
  virtual ~Handle() = default;
  virtual void drop() = 0;
  const Kind kind;
  int64_t host_bytes = 0;  ///< of which V8 was told
};
template <class T, Kind K>
struct HandleOf : Handle {
  static constexpr Kind kKind = K;
  explicit HandleOf(std::shared_ptr<T> object) : Handle(K), object(std::move(object)) {}
  void drop() override { object.reset(); }
  std::shared_ptr<T> object;  ///< null once released
};
struct StreamHandle : HandleOf<Stream, Kind::kStream> {
  explicit StreamHandle(std::shared_ptr<Stream> stream);
  const uint64_t id;  ///< never reused, unlike an address
};
using EventHandle = HandleOf<Event, Kind::kEvent>;
struct BufferHandle : HandleOf<Buffer, Kind::kBuffer> {
  BufferHandle(std::shared_ptr<Buffer> buffer, uint64_t owner) : HandleOf(std::move(buffer)), owner(owner) {}
  const uint64_t owner;   ///< id of the stream that it was allocated on
  uint64_t recorded = 0;  ///< id of the last other stream that record_use was told of
};
using LayerHandle = HandleOf<Layer, Kind::kLayer>;

/// Takes ownership.
Napi::Value wrap(Napi::Env env, std::unique_ptr<Handle> handle);
/// The handle itself, released or not; TypeError when `value` is not a handle of this copy of the addon.
Handle& any_handle(const Napi::Value& value, const char* name);
[[noreturn]] void throw_kind(const Handle& handle, Kind expected, const char* name);
[[noreturn]] void throw_released(Kind kind, const char* name);

template <class T>
T& unwrap(const Napi::Value& value, const char* name) {
  Handle& handle = any_handle(value, name);
  if (handle.kind != T::kKind) throw_kind(handle, T::kKind, name);
  T& typed = static_cast<T&>(handle);
  if (!typed.object) throw_released(T::kKind, name);
  return typed;
}
inline StreamHandle& stream_of(const Napi::Value& value) { return unwrap<StreamHandle>(value, "stream"); }

/// Tells the buffer of a stream that it was not made on.
inline void record_use(BufferHandle& buffer, const StreamHandle& stream) {
  if (buffer.owner == stream.id || buffer.recorded == stream.id) return;
  buffer.object->record_use(stream.object);
  buffer.recorded = stream.id;
}

// ---- arguments
// --------------------------------------------------------------------------------------------------------

constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

double number(const Napi::Value& value, const char* name);
int64_t integer(const Napi::Value& value, const char* name, int64_t min = 0, int64_t max = kMaxSafeInteger);
inline int32_t integer32(const Napi::Value& value, const char* name, int32_t min = 0, int32_t max = INT32_MAX) {
  return static_cast<int32_t>(integer(value, name, min, max));
}
DeviceId device_of(const Napi::Value& value);
DType dtype_of(const Napi::Value& value, const char* name);
DType float_dtype_of(const Napi::Value& value, const char* name);  ///< f32, bf16 or f16
inline bool absent(const Napi::Value& value) {
  const auto type = value.Type();
  return type == napi_null || type == napi_undefined;
}

/// The product of sizes; kInvalidArgument naming `name` when it is beyond what a buffer can have.
int64_t product(const char* name, std::initializer_list<int64_t> factors);

/// The `bytes` bytes at `offset` of a buffer, for use on `stream`: checks kind, device, extent and alignment, records
/// the use.
void* view_bytes(const StreamHandle& stream, const Napi::Value& value, const char* name, int64_t bytes, int64_t offset,
                 int64_t alignment);
template <class T>
T* view(const StreamHandle& stream, const Napi::Value& value, const char* name, int64_t elements, int64_t first = 0) {
  constexpr int64_t size = sizeof(T);
  return static_cast<T*>(
      view_bytes(stream, value, name, product(name, {elements, size}), product(name, {first, size}), size));
}
inline void* view(const StreamHandle& stream, const Napi::Value& value, const char* name, DType dtype, int64_t elements,
                  int64_t first = 0) {
  const auto size = static_cast<int64_t>(size_of(dtype));
  return view_bytes(stream, value, name, product(name, {elements, size}), product(name, {first, size}), size);
}
/// null stays null.
template <class T>
T* optional_view(const StreamHandle& stream, const Napi::Value& value, const char* name, int64_t elements,
                 int64_t first = 0) {
  return absent(value) ? nullptr : view<T>(stream, value, name, elements, first);
}

// ---- descriptors
// ------------------------------------------------------------------------------------------------------

RouterDesc router_desc(const Napi::Value& value);
MlpDesc mlp_desc(const Napi::Value& value, const char* name);

// ---- one installer per package
// ------------------------------------------------------------------------------------------

Napi::Object native_functions(Napi::Env env);
Napi::Object router_kernels_functions(Napi::Env env);
void define_variants(Napi::Object& router_kernels);
Napi::Object core_functions(Napi::Env env);
Napi::Object slices_functions(Napi::Env env);
Napi::Object profiler_functions(Napi::Env env);
Napi::Object energy_functions(Napi::Env env);

}  // namespace nexus::addon
