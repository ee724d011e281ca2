#include "telemetry/cuda_probe.h"

namespace nexus::telemetry {

void probe_cuda(SystemInfo& info) {
  info.cuda_compiled = false;
  info.cuda_status = "this build has no CUDA: it was compiled without nvcc, or with NEXUS_CUDA=OFF";
}

}  // namespace nexus::telemetry
