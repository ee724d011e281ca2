// Copies between JavaScript's typed arrays and buffers, with conversion of element types. Nothing but the snapshot of
// `upload` runs on the JS thread; arrays that native threads read or write are kept by their promise, and
// touched only inside Environment::access, since a worker may be terminated in the middle.
#pragma once
#include "boundary.h"

namespace nexus::addon {

/// binding.ts: upload, uploadAsync, download.
Napi::Value upload(const Napi::CallbackInfo& info);
Napi::Value upload_async(const Napi::CallbackInfo& info);
Napi::Value download(const Napi::CallbackInfo& info);

}  // namespace nexus::addon
