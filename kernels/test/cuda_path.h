// For tests of two ways that give the same bits (data/cuda/decode_path.h, mlp_path.h), on a GPU of compute
// capability 9.0.
#pragma once
#include <algorithm>

#include "data_plane.h"

#ifdef NEXUS_HAS_CUDA
#include "data/cuda/arch.h"
#include "data/cuda/decode_path.h"
#include "data/cuda/mlp_path.h"
#endif

namespace nexus::test {

inline void require_hopper() {
  require_cuda();
#ifdef NEXUS_HAS_CUDA
  const auto archs = cuda::cuda_archs(0);
  if (std::find(archs.begin(), archs.end(), "90") == archs.end()) throw Skipped("needs compute capability 9.0");
#endif
}

inline void set_decode_path([[maybe_unused]] const char* path) {
#ifdef NEXUS_HAS_CUDA
  cuda::set_decode_path(path);
#endif
}

inline void set_mlp_path([[maybe_unused]] const char* path) {
#ifdef NEXUS_HAS_CUDA
  cuda::set_mlp_path(path);
#endif
}

/// The way `path`, until the end of the scope.
struct Path {
  Path(void (*set)(const char*), const char* path) : set_(set) { set_(path); }
  ~Path() { set_(""); }
  Path(const Path&) = delete;
  Path& operator=(const Path&) = delete;

 private:
  void (*set_)(const char*);
};

}  // namespace nexus::test
