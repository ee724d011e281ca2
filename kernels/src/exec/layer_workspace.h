// What a layer's steps work in: one piece of device memory, laid out by token bucket, so that a recorded step and an
// eager one of the same bucket find everything in the same place.
#pragma once
#include <atomic>

#include "nexus/layer.h"

namespace nexus {

/// The pieces of a workspace.
struct Scratch {
  StepBlock* step;
  float* logits;
  int32_t *expert_ids, *counts, *offsets, *order;
  float* weights;
  void* route;
  void* rows;
  void* mlp;
  void* mlp_counters;
  int32_t* ready;  // RouteArgs', or null
  void* shared_rows;
  void* shared_mlp;
  float* shared_scale;
};

/// Where the pieces lie for steps of up to `bucket` tokens.
class Layout {
 public:
  Layout(const LayerDesc& desc, DeviceId device, int64_t bucket);
  size_t bytes() const { return bytes_; }
  /// So many of the first bytes are zero before a layer's first step and between steps, whatever their buckets.
  size_t zeroed() const { return zeroed_; }
  /// With one of two copies of what a step's routing writes and of the counters, by which steps take turns: one's may
  /// be written while the one before is at work.
  Scratch at(void* base, int copy) const;

 private:
  size_t take(size_t bytes);

  size_t bytes_ = 0, zeroed_ = 0, ready_;
  bool counters_;
  size_t step_, logits_, expert_ids_[2], counts_[2], offsets_[2], order_[2], weights_[2], route_, rows_, mlp_;
  size_t shared_rows_ = 0, shared_mlp_ = 0, shared_scale_ = 0;
};

/// Held by the layer that steps in it, and by the graphs that were recorded with it.
class Workspace {
 public:
  Workspace(const std::shared_ptr<Stream>& stream, const Layout& layout)
      : buffer_(Buffer::allocate(stream, layout.bytes())), last_(stream) {
    if (layout.zeroed() > 0) stream->fill(buffer_->data(), 0, layout.zeroed());
  }
  /// Given back behind the last step that used it.
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// The pieces for the step that is queued next. `ready` only where the step before is known to have had the other
  /// copies, at the same places.
  Scratch next(const Layout& layout) {
    Scratch scratch = layout.at(buffer_->data(), turn_ ^= 1);
    if (last_layout_ != &layout) scratch.ready = nullptr;
    last_layout_ = nullptr;
    return scratch;
  }
  /// All of that step is queued. Null: something else is.
  void queued(const Layout* layout) { last_layout_ = layout; }
  size_t bytes() const { return buffer_->bytes(); }
  /// Steps are in one order over all streams (the layer sees to it), so the last one stands for all.
  void used_on(const std::shared_ptr<Stream>& stream) {
    if (last_ != stream) last_ = stream;
  }
  /// The layer has another one now, or none: who still holds this one pays for it.
  void retire() { retired_ = true; }
  bool retired() const { return retired_; }

 private:
  std::shared_ptr<Buffer> buffer_;
  std::shared_ptr<Stream> last_;
  int turn_ = 0;
  const Layout* last_layout_ = nullptr;  // not looked into
  std::atomic<bool> retired_{false};
};

/// Lets go of device memory behind what is queued on `stream` now. Saying so only here, and not at every step, is what
/// keeps memory that lives long from holding every stream (and every slice of one) that ever used it.
void drop_behind(const std::shared_ptr<Stream>& stream, std::shared_ptr<Buffer> buffer) noexcept;
/// Lets go of anything else that queued work uses: at once when the stream has come that far, else when it has; with
/// the graph, or the capture when it is undone, where the stream is being captured.
void keep_until_reached(const std::shared_ptr<Stream>& stream, std::shared_ptr<void> held) noexcept;

}  // namespace nexus
