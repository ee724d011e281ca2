// A step's block as the CPU's closures read it: when they run, never when they are queued.
#pragma once
#include <string>

#include "nexus/error.h"
#include "nexus/step.h"

namespace nexus::cpu {

/// The true number of tokens. `bound` is what workspace and outputs were laid out for.
inline int64_t step_tokens(const StepBlock& step, int64_t bound) {
  if (step.tokens < 0 || step.tokens > bound)
    throw Error(ErrorCode::kInternal, "step->tokens is " + std::to_string(step.tokens) + "; expected 0.." +
                                          std::to_string(bound) + ", the bound that the operation was queued with");
  return step.tokens;
}

/// A pointer out of the block. Only a step with tokens needs it.
template <class T>
T* step_memory(const char* name, T* memory, int64_t tokens) {
  if (memory == nullptr && tokens > 0)
    throw Error(ErrorCode::kInternal,
                "step->" + std::string(name) + " is null; expected memory of " + std::to_string(tokens) + " tokens");
  return memory;
}

}  // namespace nexus::cpu
