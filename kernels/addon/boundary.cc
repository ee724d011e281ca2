#include "boundary.h"

#include <atomic>
#include <cmath>
#include <new>
#include <unordered_set>

#include "capture.h"

namespace nexus::addon {
namespace {

const char* code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "ERR_NEXUS_INVALID_ARGUMENT";
    case ErrorCode::kOutOfMemory:
      return "ERR_NEXUS_OUT_OF_MEMORY";
    case ErrorCode::kDevice:
      return "ERR_NEXUS_DEVICE";
    case ErrorCode::kUnsupported:
      return "ERR_NEXUS_UNSUPPORTED";
    case ErrorCode::kDisposed:
      return "ERR_NEXUS_DISPOSED";
    case ErrorCode::kGraphCapture:
      return "ERR_NEXUS_GRAPH_CAPTURE";
    case ErrorCode::kInternal:
      break;
  }
  return "ERR_NEXUS_INTERNAL";
}

Napi::Error make_error(Napi::Env env, const Error& error) {
  Napi::Error made = error.code == ErrorCode::kInvalidArgument ? Napi::RangeError::New(env, error.what())
                                                               : Napi::Error::New(env, error.what());
  auto object = made.Value();
  object.Set("code", code_of(error.code));
  if (!error.native.empty()) object.Set("nativeError", error.native);
  if (error.requested >= 0) object.Set("requested", static_cast<double>(error.requested));
  if (error.available >= 0) object.Set("available", static_cast<double>(error.available));
  return made;
}

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::kStream:
      return "stream";
    case Kind::kEvent:
      return "event";
    case Kind::kBuffer:
      return "buffer";
    case Kind::kLayer:
      return "layer";
    case Kind::kEnergyMonitor:
      return "energy monitor";
    case Kind::kGraph:
      return "graph";
    case Kind::kPartition:
      return "partition";
    case Kind::kLaneSet:
      return "lane set";
    case Kind::kCountRing:
      return "count ring";
    case Kind::kLayerPlan:
      return "layer plan";
    case Kind::kLayerGraph:
      return "layer graph";
  }
  return "unknown";
}

/// The handles of this environment, whose thread this is: what an external of another addon (or of another copy of this
/// one) points to is not among them. A look-up costs a tenth of the check of a type tag, and a step has five handles.
/// Lives as long as there is a handle, since those of a worker may be finalised after its cleanup hooks.
thread_local std::unordered_set<const void*>* handles = nullptr;

void remember(const Handle* handle) {
  if (handles == nullptr) handles = new std::unordered_set<const void*>;
  handles->insert(handle);
}
void forget(const Handle* handle) {
  if (handles == nullptr) return;
  handles->erase(handle);
  if (!handles->empty()) return;
  delete handles;
  handles = nullptr;
}

void tell_v8(napi_env env, Handle& handle, int64_t bytes) {
  int64_t now = 0;
  if (bytes != 0) napi_adjust_external_memory(env, bytes, &now);
  handle.host_bytes += bytes;
}

}  // namespace

Napi::Error js_error(Napi::Env env, const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Napi::Error& e) {
    return e;
  } catch (const Error& e) {
    return make_error(env, e);
  } catch (const std::bad_alloc&) {
    return make_error(env, Error(ErrorCode::kOutOfMemory, "out of host memory"));
  } catch (const std::exception& e) {
    return make_error(env, Error(ErrorCode::kInternal, e.what()));
  } catch (...) {
    return make_error(env, Error(ErrorCode::kInternal, "unknown C++ exception"));
  }
}

StreamHandle::StreamHandle(std::shared_ptr<Stream> stream)
    : HandleOf(std::move(stream)), id([] {
        static std::atomic<uint64_t> next{1};
        return next.fetch_add(1, std::memory_order_relaxed);
      }()) {}

Napi::Value wrap(Napi::Env env, std::unique_ptr<Handle> handle) {
  Handle* raw = handle.get();
  napi_value value = nullptr;
  const auto finalize = [](napi_env env, void* data, void*) {
    auto* handle = static_cast<Handle*>(data);
    tell_v8(env, *handle, -handle->host_bytes);
    forget(handle);
    delete handle;
  };
  remember(raw);
  if (napi_create_external(env, raw, finalize, nullptr, &value) != napi_ok) {
    forget(raw);
    throw Napi::Error::New(env);
  }
  handle.release();  // the external owns it from here
  if (raw->kind == Kind::kBuffer) {
    const auto& buffer = static_cast<BufferHandle*>(raw)->object;
    if (buffer->device().is_cpu()) tell_v8(env, *raw, static_cast<int64_t>(buffer->bytes()));
  }
  return {env, value};
}

Handle& any_handle(const Napi::Value& value, const char* name) {
  void* data = nullptr;
  if (napi_get_value_external(value.Env(), value, &data) != napi_ok || handles == nullptr || !handles->contains(data)) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + ": expected a handle of this addon");
  }
  return *static_cast<Handle*>(data);
}

void throw_kind(const Handle& handle, Kind expected, const char* name) {
  throw_invalid(std::string(name) + ": expected a " + name_of(expected) + " handle, got a " + name_of(handle.kind) +
                " handle");
}

void throw_released(Kind kind, const char* name) {
  throw Error(ErrorCode::kDisposed, std::string(name) + ": this " + name_of(kind) + " was released");
}

double number(const Napi::Value& value, const char* name) {
  double result = 0;
  if (napi_get_value_double(value.Env(), value, &result) != napi_ok) {
    throw Napi::TypeError::New(value.Env(), std::string(name) + ": expected a number");
  }
  return result;
}

int64_t integer(const Napi::Value& value, const char* name, int64_t min, int64_t max) {
  const double d = number(value, name);
  if (!(d >= static_cast<double>(min) && d <= static_cast<double>(max)) || d != std::floor(d)) {
    throw_invalid(std::string(name) + ": expected an integer from " + std::to_string(min) + " to " +
                  std::to_string(max) + ", got " + value.ToString().Utf8Value());
  }
  return static_cast<int64_t>(d);
}

DeviceId device_of(const Napi::Value& value) { return {integer32(value, "device", -1, 1023)}; }

DType dtype_of(const Napi::Value& value, const char* name) {
  return static_cast<DType>(integer32(value, name, 0, static_cast<int32_t>(DType::kI32)));
}

DType float_dtype_of(const Napi::Value& value, const char* name) {
  return static_cast<DType>(integer32(value, name, 0, static_cast<int32_t>(DType::kF16)));
}

int64_t product(const char* name, std::initializer_list<int64_t> factors) {
  int64_t result = 1;
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(result, factor, &result) || result > kMaxSafeInteger) {
      throw_invalid(std::string(name) + ": its size is beyond 2^53 bytes");
    }
  }
  return result;
}

void* view_bytes(const StreamHandle& stream, const Napi::Value& value, const char* name, int64_t bytes, int64_t offset,
                 int64_t alignment) {
  auto& handle = unwrap<BufferHandle>(value, name);
  const Buffer& buffer = *handle.object;
  if (buffer.device() != stream.object->device()) {
    throw_invalid(std::string(name) + ": is on " + buffer.device().name() + ", the stream is on " +
                  stream.object->device().name());
  }
  if (offset % alignment != 0) {
    throw_invalid(std::string(name) + ": expected a byte offset that is a multiple of " + std::to_string(alignment) +
                  ", got " + std::to_string(offset));
  }
  // Both are below 2^53: the sum cannot overflow.
  if (offset + bytes > static_cast<int64_t>(buffer.bytes())) {
    throw_invalid(std::string(name) + ": needs " + std::to_string(bytes) + " bytes at offset " +
                  std::to_string(offset) + ", the buffer has " + std::to_string(buffer.bytes()));
  }
  record_use(handle, stream);
  if (any_capture()) keep(handle.object);
  return buffer.data() == nullptr ? nullptr : static_cast<char*>(buffer.data()) + offset;
}

namespace {

/// Reads fields of a plain object; errors name them `desc.field`.
class Fields {
 public:
  Fields(const Napi::Value& value, const char* name) : name_(name) {
    if (!value.IsObject()) throw Napi::TypeError::New(value.Env(), name_ + ": expected an object");
    object_ = value.As<Napi::Object>();
  }
  int64_t integer(const char* field, int64_t min, int64_t max) const {
    return addon::integer(object_.Get(field), (name_ + "." + field).c_str(), min, max);
  }
  float number(const char* field) const {
    return static_cast<float>(addon::number(object_.Get(field), (name_ + "." + field).c_str()));
  }
  bool flag(const char* field) const { return object_.Get(field).ToBoolean(); }
  template <class E>
  E choice(const char* field, E last) const {
    return static_cast<E>(integer(field, 0, static_cast<int64_t>(last)));
  }

 private:
  std::string name_;
  Napi::Object object_;
};

}  // namespace

RouterDesc router_desc(const Napi::Value& value) {
  const Fields fields(value, "desc");
  RouterDesc desc;
  desc.experts = static_cast<int>(fields.integer("experts", 1, kMaxExperts));
  desc.top_k = static_cast<int>(fields.integer("topK", 1, std::min(kMaxTopK, desc.experts)));
  desc.score = fields.choice("score", Score::kIdentity);
  desc.groups = static_cast<int>(fields.integer("groups", 1, desc.experts));
  desc.keep_groups = static_cast<int>(fields.integer("keepGroups", 1, desc.groups));
  desc.group_value = fields.choice("groupValue", GroupValue::kTopTwoSum);
  desc.weigh = fields.choice("weigh", Weigh::kSparsemixer);
  desc.jitter = fields.number("jitter");
  desc.normalize = fields.choice("normalize", Normalize::kMaxEpsilon);
  desc.epsilon = fields.number("epsilon");
  desc.scale = fields.number("scale");
  return desc;
}

MlpDesc mlp_desc(const Napi::Value& value, const char* name) {
  const Fields fields(value, name);
  MlpDesc desc;
  desc.dtype = fields.choice("dtype", DType::kF16);
  desc.kind = fields.choice("kind", MlpKind::kGated);
  const int64_t activation = fields.integer("activation", 0, static_cast<int64_t>(Epilogue::kClampedSwiglu));
  desc.activation = static_cast<Epilogue>(activation);
  const bool gated = desc.kind == MlpKind::kGated;
  if (is_gated(desc.activation) != gated || (!gated && activation > static_cast<int64_t>(Epilogue::kSilu))) {
    throw_invalid(std::string(name) + ".activation: " + std::to_string(activation) + " does not belong to kind " +
                  std::to_string(static_cast<int>(desc.kind)));
  }
  desc.params.limit = fields.number("limit");
  desc.params.alpha = fields.number("alpha");
  desc.experts = static_cast<int>(fields.integer("experts", 1, kMaxExperts));
  desc.input = fields.integer("input", 1, INT32_MAX);
  desc.hidden = fields.integer("hidden", 1, INT32_MAX / 2);
  desc.output = fields.integer("output", 1, INT32_MAX);
  desc.in_panels = fields.flag("inPanels");
  return desc;
}

}  // namespace nexus::addon
