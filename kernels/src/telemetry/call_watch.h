// Which call the sampler thread is in, for those who must not wait for it: written by that thread, read by any.
#pragma once
#include "nexus/telemetry.h"
#include "telemetry/nvml.h"

namespace nexus::telemetry {

/// Marks a call for as long as it lives. `name` must live for ever. Sampler thread only; not nested.
class CallWatch {
 public:
  explicit CallWatch(const char* name);
  ~CallWatch();
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;
};

/// Calls an NVML function under watch; one that the library lacks answers kNvmlFunctionNotFound.
template <class Function, class... Arguments>
int watched(const char* name, Function function, Arguments... arguments) {
  if (function == nullptr) return kNvmlFunctionNotFound;
  const CallWatch watch(name);
  return function(arguments...);
}

}  // namespace nexus::telemetry
