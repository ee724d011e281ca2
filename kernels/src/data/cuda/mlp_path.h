// Whether the two layers of an MLP may share a launch (hopper_mlp.h), which gives the same bits as two. No CUDA header:
// tests include it.
#pragma once
#include <string>

namespace nexus::cuda {

/// Unless NEXUS_MLP or set_mlp_path() says 'chain'; where neither says 'fused', only where it is faster. Throws
/// kInvalidArgument for another value of NEXUS_MLP than chain or fused.
bool mlp_path();
/// For tests and comparisons: 'chain' or 'fused' for every later step, '' for the environment's choice; same error.
void set_mlp_path(const std::string& path);

}  // namespace nexus::cuda
