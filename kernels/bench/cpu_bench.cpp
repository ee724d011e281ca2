// Times the CPU's grouped product, the expert GEMM of a layer, on all threads; with --openblas=LIB beside one
// cblas_sgemm per expert of a CBLAS library that is loaded by name, in the same process and turn by turn (A B A B …, so
// that a neighbour's load falls on both).
//
//   cpu_bench [--dtype=f32|bf16|f16] [--rows=1,4,8,…] [--threads=N] [--rounds=31] [--openblas=LIB] [NAME=K,N,EXPERTS …]
//
// `rows` is rows per expert, the same for each. The product is without epilogue, so that both do the same work; weights
// rotate over the experts of a call. GFLOP/s and GB/s of weights are medians; `ratio` is the median of the pairwise
// ratios of rates, ours over theirs.
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "data/backend.h"
#include "data/cpu/isa.h"

namespace {
using namespace nexus;

struct Shape {
  std::string name;
  int64_t k, n;
  int experts;
};

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> list;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) list.push_back(std::stoll(part));
  return list;
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<int64_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

/// A CBLAS library, loaded by name: the build does not need one.
struct Blas {
  using Sgemm = void (*)(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda,
                         const float* b, int ldb, float beta, float* c, int ldc);
  Sgemm sgemm = nullptr;
  explicit Blas(const std::string& path, int threads) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw_invalid("--openblas: " + std::string(dlerror()));
    sgemm = reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm"));
    if (sgemm == nullptr) throw_invalid("--openblas: '" + path + "' has no cblas_sgemm");
    using SetThreads = void (*)(int);
    using Name = const char* (*)();
    if (const auto set = reinterpret_cast<SetThreads>(dlsym(library, "openblas_set_num_threads"))) set(threads);
    const auto core = reinterpret_cast<Name>(dlsym(library, "openblas_get_corename"));
    std::printf("cblas: %s, core %s\n", path.c_str(), core == nullptr ? "unknown" : core());
  }
};

struct Bench {
  const std::shared_ptr<Stream> stream = Stream::create(DeviceId{-1});
  int rounds = 31;
  std::unique_ptr<Blas> blas;

  std::shared_ptr<Buffer> normals(DType dtype, int64_t n, float scale, uint64_t seed) {
    auto buffer = Buffer::allocate(stream, static_cast<size_t>(n) * size_of(dtype));
    fill_normal(*stream, buffer->data(), dtype, n, seed, scale);
    return buffer;
  }

  template <class F>
  static double microseconds(const F& f) {
    const auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  }

  void run(const Shape& s, DType dtype, int64_t rows) {
    const int64_t total = rows * s.experts;
    const auto weight = normals(dtype, s.experts * s.n * s.k, 1 / std::sqrt(static_cast<float>(s.k)), 1);
    const auto input = normals(dtype, total * s.k, 1, 2);
    const auto output = Buffer::allocate(stream, static_cast<size_t>(total * s.n) * size_of(dtype));
    const auto offsets = Buffer::allocate(stream, static_cast<size_t>(s.experts + 1) * 4);
    stream->synchronize();
    for (int e = 0; e <= s.experts; ++e) static_cast<int32_t*>(offsets->data())[e] = static_cast<int32_t>(e * rows);
    const GroupedLinearDesc desc{dtype, s.experts, s.k, s.n, Epilogue::kIdentity, {}};
    GroupedLinearArgs args;
    args.input = input->data(), args.weight = weight->data(), args.output = output->data();
    args.offsets = static_cast<const int32_t*>(offsets->data()), args.max_rows = total;

    std::vector<float> theirs(blas ? static_cast<size_t>(total * s.n) : 0);
    const auto a = [&] {
      cpu::grouped_linear(*stream, desc, args);
      stream->synchronize();
    };
    const auto b = [&] {
      const auto* x = static_cast<const float*>(input->data());
      const auto* w = static_cast<const float*>(weight->data());
      for (int64_t e = 0; e < s.experts; ++e)
        blas->sgemm(101, 111, 112, static_cast<int>(rows), static_cast<int>(s.n), static_cast<int>(s.k), 1.f,
                    x + e * rows * s.k, static_cast<int>(s.k), w + e * s.n * s.k, static_cast<int>(s.k), 0.f,
                    theirs.data() + e * rows * s.n, static_cast<int>(s.n));
    };
    a();
    double error = 0;
    if (blas) {
      b();
      double difference = 0, norm = 0;
      const auto* ours = static_cast<const float*>(output->data());
      for (size_t i = 0; i < theirs.size(); ++i) {
        difference += std::pow(static_cast<double>(ours[i]) - theirs[i], 2);
        norm += std::pow(static_cast<double>(theirs[i]), 2);
      }
      error = std::sqrt(difference / norm);
      if (!(error < 1e-5))
        throw Error(ErrorCode::kInternal, s.name + ": differs from cblas by " + std::to_string(error));
    }
    std::vector<double> ours, other, ratios;
    const int calls = std::clamp(static_cast<int>(3000 / std::max(1., microseconds(a))), 1, 100);
    for (int i = 0; i < rounds; ++i) {
      ours.push_back(microseconds([&] {
                       for (int c = 0; c < calls; ++c) a();
                     }) /
                     calls);
      if (!blas) continue;
      other.push_back(microseconds([&] {
                        for (int c = 0; c < calls; ++c) b();
                      }) /
                      calls);
      ratios.push_back(other.back() / ours.back());
    }
    const double flop = 2. * static_cast<double>(total) * static_cast<double>(s.n * s.k);
    const double bytes = static_cast<double>(s.experts * s.n * s.k) * static_cast<double>(size_of(dtype));
    const double us = median(ours);
    std::printf("%-12s %5lld %5lld %4d %5lld  %9.1f us %8.1f GFLOP/s %7.1f GB/s", s.name.c_str(),
                static_cast<long long>(s.k), static_cast<long long>(s.n), s.experts, static_cast<long long>(rows), us,
                flop / us * 1e-3, bytes / us * 1e-3);
    if (blas)
      std::printf("   cblas %9.1f us %8.1f GFLOP/s  ratio %.2f  error %.0e", median(other), flop / median(other) * 1e-3,
                  median(ratios), error);
    std::printf("\n");
    std::fflush(stdout);
  }
};

}  // namespace

int main(int argc, char** argv) try {
  std::vector<Shape> shapes;
  std::vector<int64_t> rows{1, 4, 8, 16, 32, 64, 128, 256};
  DType dtype = DType::kF32;
  std::string blas;
  Bench bench;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t equals = arg.find('=');
    const std::string key = arg.substr(0, equals), value = equals == std::string::npos ? "" : arg.substr(equals + 1);
    if (key == "--rows") {
      rows = numbers(value);
    } else if (key == "--threads") {
      set_cpu_threads(std::stoi(value));
    } else if (key == "--rounds") {
      bench.rounds = std::max(1, std::stoi(value));
    } else if (key == "--openblas") {
      blas = value;
    } else if (key == "--dtype" && (value == "bf16" || value == "f16" || value == "f32")) {
      dtype = value == "f32" ? DType::kF32 : value == "f16" ? DType::kF16 : DType::kBF16;
    } else {
      const std::vector<int64_t> n = key.rfind("--", 0) == 0 ? std::vector<int64_t>{} : numbers(value);
      if (n.size() != 3) {
        std::fprintf(stderr,
                     "usage: cpu_bench [--dtype=f32|bf16|f16] [--rows=1,4,...] [--threads=N] [--rounds=31] "
                     "[--openblas=LIB] [NAME=K,N,EXPERTS ...]\n");
        return 2;
      }
      shapes.push_back({key, n[0], n[1], static_cast<int>(n[2])});
    }
  }
  if (!blas.empty() && dtype != DType::kF32) throw_invalid("--openblas: compares f32 only");
  if (!blas.empty()) bench.blas = std::make_unique<Blas>(blas, cpu_threads());
  if (shapes.empty()) shapes = {{"small-1", 512, 2048, 8}, {"medium-1", 1024, 4096, 16}, {"olmoe-2", 1024, 2048, 64}};
  std::printf("%s, %d threads, %s\n", cpu::cpu_isa(), cpu_threads(), name_of(dtype));
  for (const Shape& shape : shapes)
    for (const int64_t r : rows) bench.run(shape, dtype, r);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "cpu_bench: %s\n", e.what());
  return 1;
}
