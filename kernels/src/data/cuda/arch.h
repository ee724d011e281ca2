// Run-time choice between the kernels of compute capability 8.0 (they run on every later GPU too) and 9.0a.
// No CUDA header: tests include it.
#pragma once
#include <string>
#include <vector>

namespace nexus::cuda {

/// Whether `device` runs the kernels of compute capability 9.0a: it is one, this library's code for it is what the
/// driver loaded (not PTX of 8.0), and neither NEXUS_CUDA_ARCH nor set_cuda_arch() says 80. Throws kInvalidArgument
/// for another value of NEXUS_CUDA_ARCH than 80 or 90, kUnsupported for 90 where the device is not one.
bool hopper_path(int device);
/// All that `device` can run: "80", and "90" where it is one.
std::vector<std::string> cuda_archs(int device);
/// Test seam: "80" or "90" for every later operation, "" for the environment's choice; same errors.
void set_cuda_arch(const std::string& arch);

}  // namespace nexus::cuda
