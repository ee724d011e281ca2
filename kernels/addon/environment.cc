#include "environment.h"

#include "boundary.h"
#include "capture.h"

namespace nexus::addon {
namespace {

using Slot = std::shared_ptr<Environment>;

void check(napi_env env, napi_status status) {
  if (status != napi_ok) throw Napi::Error::New(env);
}

}  // namespace

void Environment::install(Napi::Env env) {
  auto self = std::make_shared<Environment>();
  check(env, napi_create_threadsafe_function(
                 env, nullptr, nullptr, Napi::String::New(env, "nexus"), 0, 1, nullptr, nullptr, self.get(),
                 [](napi_env env, napi_value, void* context, void*) {
                   // No environment: it is being torn down and the queue is dropped.
                   if (env != nullptr) static_cast<Environment*>(context)->drain(env);
                 },
                 &self->wake_));
  check(env, napi_unref_threadsafe_function(env, self->wake_));
  env.SetInstanceData<Slot>(new Slot(self));
  // Cleanup hooks run last in, first out: ours comes before the function's own, so no thread calls it afterwards.
  check(env, napi_add_env_cleanup_hook(env, [](void* self) { static_cast<Environment*>(self)->close(); }, self.get()));
}

std::shared_ptr<Environment> Environment::of(Napi::Env env) { return *env.GetInstanceData<Slot>(); }

Environment::Started Environment::start(Napi::Env env, Napi::Value keep) {
  Pending pending{nullptr, keep.IsEmpty() ? Napi::ObjectReference() : Napi::Persistent(keep.As<Napi::Object>())};
  napi_value promise = nullptr;
  check(env, napi_create_promise(env, &pending.deferred, &promise));
  if (pending_.empty()) check(env, napi_ref_threadsafe_function(env, wake_));
  const uint64_t id = next_id_++;
  pending_.emplace(id, std::move(pending));
  return {id, Napi::Promise(env, promise)};
}

void Environment::forget(Napi::Env env, uint64_t id) {
  pending_.erase(id);
  if (pending_.empty()) check(env, napi_unref_threadsafe_function(env, wake_));
}

void Environment::abandon(Napi::Env env, uint64_t id) {
  const auto it = pending_.find(id);
  if (it == pending_.end()) return;
  napi_resolve_deferred(env, it->second.deferred, env.Undefined());  // frees it; nobody has its promise
  forget(env, id);
}

void Environment::settle(uint64_t id, std::exception_ptr error, Make make) {
  std::lock_guard lock(mutex_);
  if (closing_) return;
  const bool wake = queue_.empty();  // one call drains all that has gathered by then
  queue_.push_back({id, std::move(error), std::move(make)});
  if (wake) napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking);
}

bool Environment::access(const std::function<void()>& body) {
  {
    std::lock_guard lock(mutex_);
    if (closing_) return false;
    ++accessing_;
  }
  struct Leave {
    Environment* self;
    ~Leave() {
      std::lock_guard lock(self->mutex_);
      if (--self->accessing_ == 0) self->idle_.notify_all();
    }
  } leave{this};
  body();
  return true;
}

void Environment::drain(Napi::Env env) {
  std::vector<Settled> batch;
  {
    std::lock_guard lock(mutex_);
    batch.swap(queue_);
  }
  for (auto& settled : batch) {
    Napi::HandleScope scope(env);
    const auto it = pending_.find(settled.id);
    if (it == pending_.end()) continue;
    const Napi::ObjectReference& keep = it->second.keep;
    Napi::Value value = env.Undefined();
    bool failed = true;
    try {
      if (settled.error) {
        value = js_error(env, settled.error).Value();
      } else {
        if (settled.make) value = settled.make(env, keep.IsEmpty() ? Napi::Value() : keep.Value());
        failed = false;
      }
    } catch (...) {
      value = js_error(env, std::current_exception()).Value();
    }
    // The status is ignored on purpose: in a worker that is being terminated nothing can be settled any more.
    const auto conclude = failed ? napi_reject_deferred : napi_resolve_deferred;
    conclude(env, it->second.deferred, value);
    forget(env, settled.id);
  }
}

void Environment::close() {
  abort_captures();
  std::unique_lock lock(mutex_);
  closing_ = true;
  queue_.clear();
  idle_.wait(lock, [&] { return accessing_ == 0; });
  lock.unlock();
  pending_.clear();
}

}  // namespace nexus::addon
