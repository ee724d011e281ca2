// What functions that take weights in panels check of them.
#pragma once
#include "nexus/weight_panels.h"

namespace nexus {

/// kInvalidArgument names the size that does not fit.
void check_panels(const WeightMatrices& matrices);

}  // namespace nexus
