#include "transfer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "capture.h"

namespace nexus::addon {
namespace {

/// Staging is cut into pieces of this size: the pool recycles them, and a huge upload never pins its whole size.
constexpr size_t kChunkBytes = size_t{8} << 20;
/// Below this a conversion costs less than handing it to another thread.
constexpr size_t kInlineBytes = size_t{256} << 10;
/// Chunks of one upload that wait for the stream at a time: one is copied while the next is converted.
constexpr int kMaxStaged = 2;

bool is_float(DType t) { return t != DType::kI32; }

void convert_elements(const void* src, DType from, void* dst, DType to, size_t n) {
  if (n == 0) return;
  if (from == to) {
    std::memcpy(dst, src, n * size_of(from));
  } else if (from == DType::kI32) {
    const auto* in = static_cast<const int32_t*>(src);
    auto* out = static_cast<float*>(dst);
    for (size_t i = 0; i < n; ++i) out[i] = static_cast<float>(in[i]);
  } else {
    convert(src, from, dst, to, n);
  }
}

/// The checked arguments that both uploads share.
struct Upload {
  std::shared_ptr<Stream> stream;
  std::shared_ptr<Buffer> buffer;
  char* target;
  const char* source;
  size_t elements;
  DType from, to;
};

Upload upload_arguments(const Napi::CallbackInfo& info) {
  const auto& stream = stream_of(info[0]);
  refuse_capture(stream, "data of the host cannot be part of a graph: write it before a launch");
  const int64_t offset = integer(info[2], "byteOffset");
  const DType from = dtype_of(info[4], "fromDtype");
  const DType to = dtype_of(info[5], "toDtype");
  if (from != to && !(is_float(from) && is_float(to))) {
    throw_invalid(std::string("fromDtype: no conversion from ") + name_of(from) + " to " + name_of(to));
  }
  if (!info[3].IsTypedArray()) throw Napi::TypeError::New(info.Env(), "source: expected a typed array");
  const auto array = info[3].As<Napi::TypedArray>();
  const size_t bytes = array.ByteLength();
  const auto size = size_of(from);
  const char* source = static_cast<const char*>(array.ArrayBuffer().Data()) + array.ByteOffset();
  if (bytes % size != 0) {
    throw_invalid("source: expected a multiple of " + std::to_string(size) + " bytes, got " + std::to_string(bytes));
  }
  if (from != to && reinterpret_cast<uintptr_t>(source) % size != 0) {
    throw_invalid("source: expected an array aligned to " + std::to_string(size) + " bytes, since it is converted");
  }
  const auto elements = static_cast<int64_t>(bytes / size);
  const auto to_size = static_cast<int64_t>(size_of(to));
  void* target = view_bytes(stream, info[1], "buffer", product("source", {elements, to_size}), offset, to_size);
  return {stream.object,
          unwrap<BufferHandle>(info[1], "buffer").object,
          static_cast<char*>(target),
          source,
          bytes / size,
          from,
          to};
}

/// Queues the copy of a staged chunk and keeps it until the copy is done.
void copy_staged(const std::shared_ptr<Stream>& stream, void* target, std::shared_ptr<HostBuffer> host, size_t bytes) {
  if (stream->device().is_cpu()) {
    stream->enqueue([target, host = std::move(host), bytes] { std::memcpy(target, host->data(), bytes); });
  } else {
    stream->copy(target, host->data(), bytes);
    on_complete(stream, [host = std::move(host)](const std::exception_ptr&) {});  // the stream reports its own errors
  }
}

void upload_snapshot(const Upload& u) {
  const size_t chunk = kChunkBytes / size_of(u.to);
  for (size_t first = 0; first < u.elements; first += chunk) {
    const size_t n = std::min(chunk, u.elements - first);
    const size_t bytes = n * size_of(u.to);
    auto host = HostBuffer::allocate(u.stream->device(), bytes);
    convert_elements(u.source + first * size_of(u.from), u.from, host->data(), u.to, n);
    copy_staged(u.stream, u.target + first * size_of(u.to), std::move(host), bytes);
  }
}

/// An upload converted off the JS thread, chunk by chunk. Everything but stage() runs on the one completion thread,
/// after the first advance() that starts it: no lock is needed.
class UploadJob : public std::enable_shared_from_this<UploadJob> {
 public:
  UploadJob(Upload upload, std::shared_ptr<Environment> environment, uint64_t promise)
      : upload_(std::move(upload)), environment_(std::move(environment)), promise_(promise) {}

  void advance() {
    if (converting_) return;
    if (error_ || next_ == upload_.elements) {
      if (staged_ == 0) environment_->settle(promise_, error_);
      return;
    }
    if (staged_ == kMaxStaged) return;
    converting_ = true;
    run_in_background([self = shared_from_this()] { self->stage(); },
                      [self = shared_from_this()](std::exception_ptr error) { self->staged(std::move(error)); });
  }

 private:
  void stage() {
    const size_t n = std::min(kChunkBytes / size_of(upload_.to), upload_.elements - next_);
    const size_t bytes = n * size_of(upload_.to);
    chunk_ = HostBuffer::allocate(upload_.stream->device(), bytes);
    const bool open = environment_->access([&] {
      convert_elements(upload_.source + next_ * size_of(upload_.from), upload_.from, chunk_->data(), upload_.to, n);
    });
    if (!open) throw Error(ErrorCode::kDisposed, "the JavaScript environment has closed");
    upload_.stream->copy(upload_.target + next_ * size_of(upload_.to), chunk_->data(), bytes);
    next_ += n;
  }

  void staged(std::exception_ptr error) {
    converting_ = false;
    if (error) {
      error_ = std::move(error);
    } else {
      try {
        on_complete(upload_.stream, [self = shared_from_this(), chunk = std::move(chunk_)](std::exception_ptr error) {
          --self->staged_;
          if (error) self->error_ = std::move(error);
          self->advance();
        });
        ++staged_;
      } catch (...) {
        error_ = std::current_exception();
      }
    }
    advance();
  }

  const Upload upload_;
  const std::shared_ptr<Environment> environment_;
  const uint64_t promise_;
  std::shared_ptr<HostBuffer> chunk_;
  size_t next_ = 0;
  int staged_ = 0;
  bool converting_ = false;
  std::exception_ptr error_;
};

/// A typed array of `elements` for a download, in memory of V8.
Napi::TypedArray result_array(Napi::Env env, DType type, size_t elements, void** data) {
  auto memory = Napi::ArrayBuffer::New(env, elements * size_of(type));
  *data = memory.Data();
  switch (type) {
    case DType::kF32:
      return Napi::Float32Array::New(env, elements, memory, 0);
    case DType::kI32:
      return Napi::Int32Array::New(env, elements, memory, 0);
    default:
      return Napi::Uint16Array::New(env, elements, memory, 0);
  }
}

}  // namespace

Napi::Value upload(const Napi::CallbackInfo& info) {
  upload_snapshot(upload_arguments(info));
  return info.Env().Undefined();
}

Napi::Value upload_async(const Napi::CallbackInfo& info) {
  Upload u = upload_arguments(info);
  const auto environment = Environment::of(info.Env());
  const auto started = environment->start(info.Env(), info[3]);
  try {
    if (u.elements * size_of(u.to) <= kInlineBytes) {
      upload_snapshot(u);
      on_complete(u.stream, [environment, id = started.id, buffer = u.buffer](std::exception_ptr error) {
        environment->settle(id, std::move(error));
      });
    } else {
      std::make_shared<UploadJob>(std::move(u), environment, started.id)->advance();
    }
  } catch (...) {
    environment->abandon(info.Env(), started.id);
    throw;
  }
  return started.promise;
}

Napi::Value download(const Napi::CallbackInfo& info) {
  const auto& stream_handle = stream_of(info[0]);
  refuse_capture(stream_handle, "nothing of that runs: read the result after a launch");
  const std::shared_ptr<Stream> stream = stream_handle.object;
  const int64_t offset = integer(info[2], "byteOffset");
  const auto elements = static_cast<size_t>(integer(info[3], "elements"));
  const DType from = dtype_of(info[4], "dtype");
  if (!info[5].IsString()) throw Napi::TypeError::New(info.Env(), "as: expected 'f32' or 'raw'");
  const auto as = info[5].As<Napi::String>().Utf8Value();
  if (as != "f32" && as != "raw") throw_invalid("as: expected 'f32' or 'raw', got '" + as + "'");
  const DType to = as == "f32" ? DType::kF32 : from;
  const auto size = static_cast<int64_t>(size_of(from));
  const int64_t bytes = product("elements", {static_cast<int64_t>(elements), size});
  const void* source = view_bytes(stream_handle, info[1], "buffer", bytes, offset, size);
  const auto buffer = unwrap<BufferHandle>(info[1], "buffer").object;

  // The result is allocated now and written by native threads: resolving costs the JS thread no copy.
  void* target = nullptr;
  auto array = result_array(info.Env(), to, elements, &target);
  const auto environment = Environment::of(info.Env());
  const auto started = environment->start(info.Env(), array);
  const auto id = started.id;
  const auto deliver = [environment, id](std::exception_ptr error) {
    environment->settle(id, std::move(error), [](Napi::Env, Napi::Value kept) { return kept; });
  };
  try {
    if (stream->device().is_cpu()) {
      stream->enqueue([=] { environment->access([&] { convert_elements(source, from, target, to, elements); }); });
      on_complete(stream, [deliver, buffer](std::exception_ptr error) { deliver(std::move(error)); });
    } else {
      auto host = HostBuffer::allocate(stream->device(), static_cast<size_t>(bytes));
      if (bytes > 0) stream->copy(host->data(), source, static_cast<size_t>(bytes));
      const auto finish = [=] {
        environment->access([&] { convert_elements(host->data(), from, target, to, elements); });
      };
      on_complete(stream, [=](std::exception_ptr error) {
        if (error) return deliver(std::move(error));
        if (static_cast<size_t>(bytes) > kInlineBytes) return run_in_background(finish, deliver);
        finish();
        deliver(nullptr);
      });
    }
  } catch (...) {
    environment->abandon(info.Env(), id);
    throw;
  }
  return started.promise;
}

}  // namespace nexus::addon
