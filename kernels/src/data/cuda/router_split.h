// Router logits of some hundred to some thousand tokens, with k split among the blocks of a cluster: see
// router_split.cu.
#pragma once
#include "data/cuda/grouped.h"
#include "nexus/router.h"

namespace nexus::cuda {

/// How many tokens (of the bucket) take this way, when x and the weight have one half-precision type and aligned rows.
/// Faster than plain tiles at 512 and 4096 (docs/kernels/log.md, entry 6); the ends themselves were not measured.
constexpr int64_t kSplitFrom = 129, kSplitTo = 4096;
constexpr int64_t kSplitFewRows = 512;  // up to here, tiles of 32 tokens

/// `choice`: the number of tokens that decides the shape. `clusters`: the stream may have them; the bits are the same.
void launch_router_split(const RouterLogitsArgs& args, int64_t choice, bool clusters, const Target& target);

}  // namespace nexus::cuda
