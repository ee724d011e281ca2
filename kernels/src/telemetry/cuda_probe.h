// The CUDA part of system_info().
#pragma once
#include "nexus/runtime.h"

namespace nexus::telemetry {
/// Fills the cuda_* fields, green_contexts, tensor_maps and devices.
void probe_cuda(SystemInfo& info);
}  // namespace nexus::telemetry
