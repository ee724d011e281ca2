// What functions that take weights in panels check of them.
#pragma once
#include "nexus/weight_panels.h"

namespace nexus {

/// kInvalidArgument names the size that does not fit.
void check_panels(const WeightMatrices& matrices);
/// kUnsupported where field `name` asks the CPU for panels, which are the CUDA kernels'.
void check_panels(bool in_panels, DeviceId device, const char* name = "in_panels");

}  // namespace nexus
