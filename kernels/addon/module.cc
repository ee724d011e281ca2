// The addon's entry: run once in every environment that loads it.
#include <dlfcn.h>

#include "boundary.h"

namespace nexus::addon {
namespace {

/// Node unloads an addon when the last environment that loaded it ends (a worker, where the main thread never did); the
/// library's threads and thread-local destructors still run then. So it stays mapped until the process ends.
void pin_library() {
  static const bool pinned = [] {
    Dl_info self{};
    if (dladdr(reinterpret_cast<void*>(&pin_library), &self) == 0) return false;
    return dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE) != nullptr;
  }();
  if (!pinned) throw Error(ErrorCode::kInternal, "the addon cannot be kept loaded");
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  try {
    pin_library();
    Environment::install(env);
    exports.Set("native", native_functions(env));
    exports.Set("routerKernels", router_kernels_functions(env));
    exports.Set("core", core_functions(env));
    exports.Set("slices", slices_functions(env));
    exports.Set("profiler", profiler_functions(env));
    exports.Set("energy", energy_functions(env));
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    throw js_error(env, std::current_exception());
  }
  return exports;
}

}  // namespace
}  // namespace nexus::addon

static Napi::Object init_module(Napi::Env env, Napi::Object exports) { return nexus::addon::Init(env, exports); }
NODE_API_MODULE(nexus, init_module)
