// Which kernel runs where nothing was measured: choose() is a function of the problem alone, so the host can ask it.
// Needs no GPU, but a build with CUDA.
#include "harness.h"

#ifdef NEXUS_HAS_CUDA
#include "data/cuda/grouped.h"

using namespace nexus;
using namespace nexus::test;
using namespace nexus::cuda;

namespace {

constexpr size_t kHopperShared = 227 << 10, kShared80 = 163 << 10;

/// The two linear layers of a gated MLP.
struct Layers {
  int64_t hidden, inter;
  int experts;
  Problem problem(int layer, int64_t rows, DType dtype, bool hopper) const {
    const size_t shared = hopper ? kHopperShared : kShared80;
    return layer == 0 ? Problem{dtype, hidden, 2 * inter, experts, rows, true, shared, hopper, true}
                      : Problem{dtype, inter, hidden, experts, rows, true, shared, hopper, false};
  }
  Kernel chosen(int layer, int64_t rows, DType dtype = DType::kBF16, bool hopper = true) const {
    return choose(problem(layer, rows, dtype, hopper)).kernel;
  }
  bool as_gemv(int64_t rows, DType dtype = DType::kBF16, bool hopper = true) const {
    const bool first = chosen(0, rows, dtype, hopper) == Kernel::kGemv;
    CHECK_EQ(chosen(1, rows, dtype, hopper) == Kernel::kGemv, first);
    return first;
  }
};

}  // namespace

TEST("choice: a handful of rows that read little of their experts' weights is multiplied as vectors") {
  const Layers small{512, 1024, 8}, medium{1024, 2048, 16}, dense{1024, 2048, 8}, wide{2048, 1024, 16};
  for (const int64_t rows : {1, 2, 16}) CHECK(small.as_gemv(rows));
  CHECK(medium.as_gemv(8));
  CHECK(dense.as_gemv(8));
  CHECK(wide.as_gemv(4));
  CHECK((Layers{768, 1536, 16}.as_gemv(16)));           // 38 MB
  CHECK((Layers{768, 3072, 8}.as_gemv(8)));             // 38 MB
  for (const Layers& layers : {medium, dense, wide}) {  // 67 MB
    CHECK_EQ(layers.chosen(0, 16), Kernel::kWgmma);
    CHECK_EQ(layers.chosen(1, 16), Kernel::kWgmma);
    CHECK(layers.as_gemv(16, DType::kBF16, false));  // the kernels of 8.0 do not read faster
  }
  for (const bool hopper : {false, true}) CHECK((Layers{512, 2048, 8}.as_gemv(16, DType::kF32, hopper)));  // 67 MB
}

TEST("choice: one row is, and so are rows over many experts, up to where the deep pipelines read faster") {
  const Layers qwen3{2048, 768, 128}, mixtral{4096, 14336, 8}, gpt_oss{2880, 2880, 32};
  CHECK(mixtral.as_gemv(1));
  CHECK(mixtral.as_gemv(2));
  CHECK(!mixtral.as_gemv(4));
  CHECK(gpt_oss.as_gemv(8));
  CHECK(qwen3.as_gemv(8));
  CHECK(qwen3.as_gemv(16));
  CHECK(!qwen3.as_gemv(17));
}

TEST("choice: both layers of an MLP are multiplied alike, and no row count goes back to vectors") {
  Random random(91);
  for (int i = 0; i < 2000; ++i) {
    const Layers layers{64 * random.integer(1, 80), 64 * random.integer(1, 80),
                        static_cast<int>(random.integer(1, 300))};
    for (const DType dtype : {DType::kBF16, DType::kF32})
      for (const bool hopper : {false, true}) {
        bool before = true;
        for (int64_t rows = 1; rows <= 20; ++rows) {
          const bool now = layers.as_gemv(rows, dtype, hopper);
          CHECK(before || !now);
          before = now;
        }
      }
  }
}
#endif
