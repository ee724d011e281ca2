// The whole layer as one enqueue: router product → route → experts → shared expert → combine.
// Composes the data plane; owns weights and a workspace that grows to the largest batch seen.
#pragma once
#include <memory>

#include "nexus/combine.h"
#include "nexus/experts.h"
#include "nexus/router.h"
#include "nexus/step.h"

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
  bool batch_invariant = false;  ///< a token's output does not depend on how many others there are, nor on which
};

struct LayerWeights {
  std::shared_ptr<Buffer> router_weight;  ///< [experts, input] of router_dtype; null when logits are always given
  std::shared_ptr<Buffer> router_bias;    ///< f32 [experts] or null: added to the router's own product
  std::shared_ptr<Buffer> select_bias;    ///< f32 [experts] or null
  std::array<std::shared_ptr<Buffer>, 3> expert_weight, expert_bias;
  std::array<std::shared_ptr<Buffer>, 3> shared_weight, shared_bias;
  std::shared_ptr<Buffer> shared_gate;  ///< [input] of dtype
};

/// The number of tokens for which a step is laid out and its kernel variants are chosen, eager or recorded: the least
/// bucket of at least `tokens`. 0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, then two a doubling (1.5 and 2).
int64_t token_bucket(int64_t tokens);

/// What one step did, filled in without a synchronisation: the counts are copied to pinned memory behind the step.
struct StepRecord {
  std::shared_ptr<HostBuffer> counts;           ///< int32 [experts]
  std::array<std::shared_ptr<Event>, 5> marks;  ///< start, after router, after experts, after shared, after combine
  bool phases = true;  ///< false after a replay: only the first and the last mark were recorded
  int64_t tokens = 0;
};

enum class Strategy : int32_t {
  kFused = 0,        ///< one grouped launch over the step's stream
  kTiered = 1,       ///< a launch per lane, each on a stream of its own slice, together
  kStreams = 2,      ///< a launch per lane, each on a plain stream
  kCooperative = 3,  ///< one grouped launch whose blocks are divided among the lanes
};
/// How a layer's experts are run. The same plan may serve many steps; its lane set may be updated between them.
struct ExecPlan {
  Strategy strategy = Strategy::kFused;
  std::shared_ptr<LaneSet> lanes;                ///< null with kFused
  std::vector<std::shared_ptr<Stream>> streams;  ///< by lane with kTiered and kStreams, else empty
  std::shared_ptr<Stream> shared_stream;         ///< where the shared expert runs beside the others; null: after them
};

/// One step's arguments. x: [tokens, input] of dtype; logits: f32 [tokens, experts] or null; out: [tokens, output or
/// top_k*output].
struct StepArgs {
  const void* x = nullptr;
  int64_t tokens = 0;
  const float* logits = nullptr;
  void* out = nullptr;
  StepRecord* record = nullptr;
  int32_t* ids_out = nullptr;      ///< [tokens, top_k], device, or null
  float* weights_out = nullptr;    ///< [tokens, top_k], device, or null
  const ExecPlan* plan = nullptr;  ///< null: fused
  CountRing* ring = nullptr;       ///< of as many experts, or null
};

class Layer;
/// A recorded step of a layer for up to `bucket` tokens. Holds the workspace it was recorded with.
class LayerGraph {
 public:
  virtual ~LayerGraph() = default;
  virtual int64_t bucket() const = 0;
  virtual bool with_logits() const = 0;
  virtual int nodes() const = 0;
  virtual int64_t bytes()
      const = 0;  ///< of the executable graph, and of its workspace where the layer has let go of that
  virtual bool bytes_estimated() const = 0;  ///< as Graph's
  virtual double capture_ms() const = 0;
};

class Layer {
 public:
  /// Validates descriptor and sizes of weights: kInvalidArgument names what is wrong.
  static std::shared_ptr<Layer> create(const LayerDesc& desc, LayerWeights weights, DeviceId device);
  virtual ~Layer() = default;

  /// One step, stream-ordered, launched one operation at a time. Arguments are checked before anything is queued; when
  /// an operation cannot be queued half way, `out` is undefined, lanes are joined, and the layer serves on.
  ///
  /// On a stream that is being captured (Graph::capture), the step becomes part of that graph as it is: this number of
  /// tokens, these pointers, this plan with the lanes that its table has now. Several steps, of several layers, may be
  /// part of one graph; those of one layer keep their order in it. The graph holds the weights and a workspace of its
  /// own, also when the layer is released, and its launches have no order with the layer's other steps. What is
  /// pointed to is the caller's to keep. kGraphCapture: `record` or `ring` was given (launches are not counted).
  virtual void enqueue(const std::shared_ptr<Stream>& stream, const StepArgs& args) = 0;
  /// Records a step for up to `bucket` tokens (a value of token_bucket()), with given logits or the layer's own
  /// product. Whatever the first eager step on this stream and plan would set up must have happened: one such step
  /// comes first.
  virtual std::shared_ptr<LayerGraph> capture(const std::shared_ptr<Stream>& stream, int64_t bucket, bool with_logits,
                                              const ExecPlan* plan, CountRing* ring) = 0;
  /// One step by a graph of this layer: 0 <= tokens <= bucket, logits given exactly when it was recorded with them.
  /// args.plan and args.ring are the graph's and ignored. Same bits as enqueue() where token_bucket(tokens) is the
  /// graph's bucket; in a larger one those of a step of that bucket.
  virtual void replay(const std::shared_ptr<Stream>& stream, LayerGraph& graph, const StepArgs& args) = 0;
  virtual const LayerDesc& desc() const = 0;
  /// How kernel variants are chosen: by the table that was in force when the layer was made, which the layer keeps.
  virtual VariantChoice choice() const = 0;
  virtual size_t weight_bytes() const = 0;
  virtual size_t workspace_bytes() const = 0;  ///< held now
  virtual void release() = 0;                  ///< drops weights and workspace; later calls throw kDisposed
};

}  // namespace nexus
