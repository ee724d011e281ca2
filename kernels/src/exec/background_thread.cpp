#include "exec/background_thread.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

#include <string>
#include <system_error>
#include <thread>

#include "nexus/error.h"

namespace nexus {

void pin_library() {
  static const bool pinned = [] {
    Dl_info info{};
    if (dladdr(reinterpret_cast<const void*>(&pin_library), &info) == 0 || info.dli_fname == nullptr) return false;
    // In a test program this names the executable, which cannot be opened and need not be.
    return dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE) != nullptr;
  }();
  (void)pinned;
}

namespace {
thread_local bool background = false;
}
bool on_background_thread() { return background; }

void start_background_thread(const char* name, std::function<void()> body) {
  pin_library();
  sigset_t all, before;
  sigfillset(&all);
  for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP})
    sigdelset(&all, fault);                     // a crash is reported where it happens
  pthread_sigmask(SIG_SETMASK, &all, &before);  // a new thread inherits the mask
  try {
    std::thread thread([body = std::move(body)] {
      background = true;
      body();
    });
    // From here and not from within, so that whoever counts threads by their names finds it as soon as this returns.
    pthread_setname_np(thread.native_handle(), name);
    thread.detach();
  } catch (const std::system_error& e) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw Error(ErrorCode::kInternal, std::string("cannot start the thread '") + name + "': " + e.what());
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace nexus
