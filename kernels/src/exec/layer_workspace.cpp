// The layout of a workspace, and how memory is let go of while steps are queued.
#include "exec/layer_workspace.h"

#include "exec/backend.h"

namespace nexus {
namespace {

constexpr size_t kAlign = 256;

}  // namespace

size_t Layout::take(size_t bytes) {
  const size_t at = bytes_;
  bytes_ += (bytes + kAlign - 1) / kAlign * kAlign;
  return at;
}

Layout::Layout(const LayerDesc& desc, DeviceId device, int64_t bucket) {
  const RouterDesc& r = desc.router;
  const MlpDesc& m = desc.experts;
  const size_t route_bytes = route_workspace_bytes(device, r, bucket);  // also: bucket * top_k is in range
  const size_t t = static_cast<size_t>(bucket), slots = t * static_cast<size_t>(r.top_k);
  const size_t e = static_cast<size_t>(r.experts);
  const size_t row = static_cast<size_t>(m.output) * size_of(m.dtype);
  const size_t counter_bytes = mlp_counter_bytes(device, m);
  counters_ = counter_bytes > 0;
  for (int copy = 0; copy < 2; ++copy) take(counter_bytes);
  ready_ = take(2 * kAlign);
  zeroed_ = counters_ ? ready_ : 0;
  step_ = take(sizeof(StepBlock));
  logits_ = take(t * e * sizeof(float));
  for (int copy = 0; copy < 2; ++copy) {
    counts_[copy] = take(e * sizeof(int32_t));
    offsets_[copy] = take((e + 1) * sizeof(int32_t));
    expert_ids_[copy] = take(slots * sizeof(int32_t));
    weights_[copy] = take(slots * sizeof(float));
    order_[copy] = take(slots * sizeof(int32_t));
  }
  route_ = take(route_bytes);
  rows_ = take(slots * row);
  mlp_ = take(mlp_workspace_bytes(device, m, bucket * r.top_k));
  if (desc.has_shared) {
    shared_rows_ = take(t * row);
    shared_mlp_ = take(mlp_workspace_bytes(device, desc.shared, bucket));
    shared_scale_ = take(t * sizeof(float));
  }
}

Scratch Layout::at(void* base, int copy) const {
  char* const p = static_cast<char*>(base);
  Scratch s{};
  s.step = reinterpret_cast<StepBlock*>(p + step_);
  s.logits = reinterpret_cast<float*>(p + logits_);
  s.expert_ids = reinterpret_cast<int32_t*>(p + expert_ids_[copy]);
  s.counts = reinterpret_cast<int32_t*>(p + counts_[copy]);
  s.offsets = reinterpret_cast<int32_t*>(p + offsets_[copy]);
  s.order = reinterpret_cast<int32_t*>(p + order_[copy]);
  s.weights = reinterpret_cast<float*>(p + weights_[copy]);
  s.route = p + route_;
  s.rows = p + rows_;
  s.mlp = p + mlp_;
  s.mlp_counters = counters_ ? p + copy * (zeroed_ / 2) : nullptr;
  s.ready = reinterpret_cast<int32_t*>(p + ready_ + copy * kAlign);
  s.shared_rows = p + shared_rows_;
  s.shared_mlp = p + shared_mlp_;
  s.shared_scale = reinterpret_cast<float*>(p + shared_scale_);
  return s;
}

Workspace::~Workspace() { drop_behind(last_, std::move(buffer_)); }

void drop_behind(const std::shared_ptr<Stream>& stream, std::shared_ptr<Buffer> buffer) noexcept {
  if (buffer == nullptr || stream == nullptr) return;
  try {
    buffer->record_use(stream);
  } catch (...) {
    // No memory to note the stream. This path may wait for it; a stream that has failed runs nothing more.
    try {
      stream->synchronize();
    } catch (...) {
    }
  }
}

void keep_until_reached(const std::shared_ptr<Stream>& stream, std::shared_ptr<void> held) noexcept {
  if (held == nullptr || stream == nullptr) return;
  try {
    // How far it has come cannot be asked of a stream that somebody captures, and asking would fail the capture. The
    // key is an address, which is no layer's number.
    if (stream->capturing() &&
        kept_by_capture(stream, reinterpret_cast<uintptr_t>(held.get()), [&held] { return held; }) != nullptr)
      return;
    const auto reached = Event::create(stream->device());
    reached->record(*stream);
    if (reached->ready()) return;
    on_complete(stream, [held](std::exception_ptr) {
      // Taking a slice apart takes milliseconds: not on the thread that reports completions.
      run_in_background([held] {}, [](std::exception_ptr) {});
    });
  } catch (...) {
    // The stream has failed, and runs nothing that would use it.
  }
}

}  // namespace nexus
