// What makes a layer, a plan or a step's arguments wrong: kInvalidArgument, naming what, before anything is queued.
#pragma once
#include "nexus/layer.h"

namespace nexus {

void check_layer(const LayerDesc& desc, const LayerWeights& weights, DeviceId device);
/// null: fused.
void check_plan(const ExecPlan* plan, const LayerDesc& desc, DeviceId device);
/// null: none.
void check_ring(const CountRing* ring, const LayerDesc& desc);
void check_stream(const char* name, const std::shared_ptr<Stream>& stream, DeviceId device);
/// `most`: for a recorded step, the number of tokens that it can have, else -1. A step of no tokens needs no memory; a
/// recorded one reads x in words of 16 bytes.
void check_step(const StepArgs& args, int64_t most);

}  // namespace nexus
