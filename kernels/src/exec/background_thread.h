// Threads that belong to the library and outlive whoever caused them.
#pragma once
#include <functional>

namespace nexus {

/// Starts a detached thread (name: at most 15 characters, its own by the time this returns) with asynchronous signals
/// blocked, so that the host program's handlers stay on its own threads. It also pins this library in memory: Node
/// unloads an addon when the worker that loaded it ends, and code under a running thread must not go away. Throws
/// kInternal when the system refuses a thread.
void start_background_thread(const char* name, std::function<void()> body);

/// Whether this is such a thread.
bool on_background_thread();

/// Makes this library impossible to unload. Idempotent; called by the above and before CUDA is first used.
void pin_library();

/// Tells the core that we spin.
inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace nexus
