// Where tests break things. Only a build with NEXUS_FAULTS (test builds: nexus_engine_faults, nexus_faults.node) knows
// these points; in every other one they are nothing, and leave no trace.
//
// There, the environment's NEXUS_FAULT="name[:nth[:kind]]" makes the nth pass (from 1, the default) of the point fail:
//   error   throws kInternal (the default)
//   oom     throws kOutOfMemory
//   device  the device breaks for good: kDevice, here and at every later point of it (CUDA: by a real fault, which
//           every later CUDA call reports)
//   hang    the stream's next work does not end (a point without a stream: this thread does not return)
#pragma once
#include "nexus/runtime.h"

namespace nexus {

#ifdef NEXUS_FAULTS
void fault_point(const char* name, DeviceId device);
void fault_point(const char* name, Stream& stream);
#else
inline void fault_point(const char*, DeviceId) {}
inline void fault_point(const char*, Stream&) {}
#endif

}  // namespace nexus
