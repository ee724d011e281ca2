// Whether steps of a handful of rows take the two decode kernels (decode.h) or the chain that gives the same bits.
// No CUDA header: tests include it.
#pragma once
#include <string>

namespace nexus::cuda {

/// Unless NEXUS_DECODE or set_decode_path() says 'chain'. Throws kInvalidArgument for another value of
/// NEXUS_DECODE than chain or fused.
bool decode_path();
/// For tests and comparisons: 'chain' or 'fused' for every later step, '' for the environment's choice; same error.
void set_decode_path(const std::string& path);

}  // namespace nexus::cuda
