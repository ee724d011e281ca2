// Test seam: which of the router's ways a call takes. All give the same bits. No CUDA header: tests include it.
#pragma once

namespace nexus::cuda {

enum class RoutePath {
  kAuto,
  kBlock,    ///< one launch of one block
  kCluster,  ///< one launch of one cluster of eight blocks
  kGrid,     ///< as many blocks as there are chunks of tokens, then a second launch (a third for many experts)
};
/// For every later call of route() and route_workspace_bytes() of this process, where that way takes the descriptor and
/// the number of tokens; elsewhere, and with kAuto, the rule of route.h decides.
void set_route_path(RoutePath path);
/// Whether a warp may route four tokens at once (route_quad.cuh), which is so unless a test says otherwise.
void set_route_quads(bool on);

}  // namespace nexus::cuda
