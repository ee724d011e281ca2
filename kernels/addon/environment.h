// What one JavaScript environment (the main thread, or a worker) owns: its pending promises and the one
// ThreadSafeFunction through which native threads settle them. The addon is loaded once per environment and the native
// library once per process, so completions may arrive after their environment has gone: they are then dropped.
#pragma once
#ifndef NAPI_CPP_EXCEPTIONS
#define NAPI_CPP_EXCEPTIONS
#endif
// An error that cannot be thrown because its worker is being terminated is dropped instead of ending the process.
#define NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS
#include <napi.h>

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace nexus::addon {

class Environment {
 public:
  /// Makes the value of a settled promise on the JS thread; `kept` is what start() was asked to keep (or empty).
  using Make = std::function<Napi::Value(Napi::Env env, Napi::Value kept)>;
  struct Started {
    uint64_t id;
    Napi::Promise promise;
  };

  static void install(Napi::Env env);
  /// Shared, because native threads hold it beyond the life of the JS environment.
  static std::shared_ptr<Environment> of(Napi::Env env);

  /// JS thread: a promise to be settled by id. `keep` (an object, or empty) is not collected before that. Keeps the
  /// process alive while it is pending.
  Started start(Napi::Env env, Napi::Value keep = Napi::Value());
  /// JS thread: forgets a promise that was never handed out.
  void abandon(Napi::Env env, uint64_t id);
  /// Any thread, never blocks on JavaScript: rejects with `error`, or resolves with make()'s value (undefined without).
  void settle(uint64_t id, std::exception_ptr error, Make make = nullptr);
  /// Any thread: runs `body`, which touches memory of a kept array, unless the environment is closing; its teardown
  /// waits for a body under way. False: not run, the memory may be gone.
  bool access(const std::function<void()>& body);

 private:
  struct Pending {
    napi_deferred deferred;
    Napi::ObjectReference keep;
  };
  struct Settled {
    uint64_t id;
    std::exception_ptr error;
    Make make;
  };

  void drain(Napi::Env env);
  void close();
  void forget(Napi::Env env, uint64_t id);

  // JS thread only.
  std::unordered_map<uint64_t, Pending> pending_;
  uint64_t next_id_ = 1;
  napi_threadsafe_function wake_ = nullptr;

  std::mutex mutex_;
  std::condition_variable idle_;
  std::vector<Settled> queue_;
  int accessing_ = 0;
  bool closing_ = false;
};

}  // namespace nexus::addon
