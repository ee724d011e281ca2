// The whole layer as one enqueue: router product → route → experts → shared expert → combine.
// Composes the data plane; owns weights and a workspace that grows to the largest batch seen.
#pragma once
#include <memory>

#include "nexus/combine.h"
#include "nexus/experts.h"
#include "nexus/router.h"

namespace nexus {

struct LayerDesc {
  RouterDesc router;
  DType router_dtype = DType::kF32;  ///< of the router's weight: f32, or the layer's dtype
  bool scale_input = false;  ///< Llama-4: the routing weight scales the expert's input, combine sums with weight 1
  MlpDesc experts;           ///< dtype, input and output are the layer's
  CombineMode combine = CombineMode::kWeightedSum;
  bool has_shared = false;
  MlpDesc shared;  ///< experts = 1
  bool shared_gate = false;
};

struct LayerWeights {
  std::shared_ptr<Buffer> router_weight;  ///< [experts, input] of router_dtype; null when logits are always given
  std::shared_ptr<Buffer> router_bias;    ///< f32 [experts] or null: added to the router's own product
  std::shared_ptr<Buffer> select_bias;    ///< f32 [experts] or null
  std::array<std::shared_ptr<Buffer>, 3> expert_weight, expert_bias;
  std::array<std::shared_ptr<Buffer>, 3> shared_weight, shared_bias;
  std::shared_ptr<Buffer> shared_gate;  ///< [input] of dtype
};

/// What one step did, filled in without a synchronisation: the counts are copied to pinned memory behind the step.
struct StepRecord {
  std::shared_ptr<HostBuffer> counts;           ///< int32 [experts]
  std::array<std::shared_ptr<Event>, 5> marks;  ///< start, after router, after experts, after shared, after combine
  int64_t tokens = 0;
};

class Layer {
 public:
  /// Validates descriptor and sizes of weights: kInvalidArgument names what is wrong.
  static std::shared_ptr<Layer> create(const LayerDesc& desc, LayerWeights weights, DeviceId device);
  virtual ~Layer() = default;

  /// One step, stream-ordered. x: [tokens, input] of dtype; logits: f32 [tokens, experts] or null; out: [tokens, output
  /// or top_k*output]. `record` may be null. `ids_out`/`weights_out` ([tokens, top_k], device) may be null.
  virtual void enqueue(const std::shared_ptr<Stream>& stream, const void* x, int64_t tokens, const float* logits,
                       void* out, StepRecord* record, int32_t* ids_out, float* weights_out) = 0;
  virtual const LayerDesc& desc() const = 0;
  virtual size_t weight_bytes() const = 0;
  virtual size_t workspace_bytes() const = 0;  ///< held now
  virtual void release() = 0;                  ///< drops weights and workspace; later calls throw kDisposed
};

}  // namespace nexus
