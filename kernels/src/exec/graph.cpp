// The public entry points of graphs: check arguments, then hand over to the device's backend.
#include "exec/backend.h"

namespace nexus {
namespace {

/// Whatever went wrong in `body`, the caller's question was whether it can be recorded.
[[noreturn]] void rethrow_as_capture_error(std::exception_ptr error) {
  try {
    std::rethrow_exception(std::move(error));
  } catch (const Error& e) {
    if (e.code == ErrorCode::kGraphCapture) throw;
    Error wrapped(ErrorCode::kGraphCapture, std::string("Graph::capture: body threw: ") + e.what());
    wrapped.native = e.native;
    wrapped.requested = e.requested;
    wrapped.available = e.available;
    throw wrapped;
  } catch (const std::exception& e) {
    throw Error(ErrorCode::kGraphCapture, std::string("Graph::capture: body threw: ") + e.what());
  } catch (...) {
    throw Error(ErrorCode::kGraphCapture, "Graph::capture: body threw what is no std::exception");
  }
}

}  // namespace

std::shared_ptr<Graph> Graph::capture(const std::shared_ptr<Stream>& stream, const std::function<void()>& body) {
  if (!body) throw_invalid("Graph::capture: body must be callable");
  begin(stream);
  try {
    body();
  } catch (...) {
    abort(stream);
    rethrow_as_capture_error(std::current_exception());
  }
  return end(stream);
}

void Graph::begin(const std::shared_ptr<Stream>& stream) {
  if (!stream) throw_invalid("Graph::begin: stream is null");
  stream->device().is_cpu() ? cpu::graph_begin(stream) : cuda::graph_begin(stream);
}

std::shared_ptr<Graph> Graph::end(const std::shared_ptr<Stream>& stream) {
  if (!stream) throw_invalid("Graph::end: stream is null");
  return stream->device().is_cpu() ? cpu::graph_end(stream) : cuda::graph_end(stream);
}

void Graph::abort(const std::shared_ptr<Stream>& stream) noexcept {
  if (stream) stream->device().is_cpu() ? cpu::graph_abort(stream) : cuda::graph_abort(stream);
}

std::shared_ptr<void> kept_by_capture(const std::shared_ptr<Stream>& stream, uint64_t key,
                                      const std::function<std::shared_ptr<void>()>& make) {
  return stream->device().is_cpu() ? cpu::kept_by_capture(stream, key, make) : cuda::kept_by_capture(stream, key, make);
}

void fail_capture(const std::shared_ptr<Stream>& stream, const std::string& why) noexcept {
  stream->device().is_cpu() ? cpu::fail_capture(stream, why) : cuda::fail_capture(stream, why);
}

}  // namespace nexus
