// The launch of a tiled grouped kernel: its plain instance with a block for every tile, or the one that takes part in
// lanes. With a table, or where the kernel's blocks stay anyway, it gets as many blocks as fit at once on what the
// stream may use, and each walks its tiles.
#pragma once
#include <algorithm>
#include <string>

#include "data/cuda/check.h"
#include "data/cuda/grouped.h"
#include "data/cuda/launch.h"

namespace nexus::cuda {

using GroupedKernel = void (*)(GroupedParams);

/// S: the kernel's shape, with BM, BN, THREADS, SHARED_BYTES and STAYS: its blocks always walk.
template <class S>
void launch_tiles(const Variant& variant, GroupedParams params, const Target& target, GroupedKernel plain,
                  GroupedKernel lanes) {
  if (variant.bm != S::BM || variant.bn != S::BN || variant.shared_bytes != S::SHARED_BYTES)
    throw Error(ErrorCode::kInternal,
                std::string("grouped_linear: variant ") + variant.name + " does not match its kernel");
  static KernelFacts facts[2];
  const bool with = with_lanes(params);
  const GroupedKernel kernel = with ? lanes : plain;
  unsigned blocks = plan_grid(variant, params);
  const int at_once = facts[with].blocks_per_multiprocessor(reinterpret_cast<const void*>(kernel), target.device,
                                                            S::THREADS, S::SHARED_BYTES, variant.share_sm);
  if (S::STAYS || walks(params)) blocks = std::min(blocks, static_cast<unsigned>(std::max(1, target.width) * at_once));
  launch(variant.name, kernel, blocks, S::THREADS, S::SHARED_BYTES, target.device, target.stream, params);
}

}  // namespace nexus::cuda
