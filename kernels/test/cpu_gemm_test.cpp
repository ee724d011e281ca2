// The CPU's grouped product (data/cpu/gemm.cpp) on its own: a row's bits depend on k and on the order of sums alone,
// through every block of rows and of k, on any number of threads; and nothing outside of weights and rows is read.
#include <sys/mman.h>
#include <unistd.h>

#include "data_plane.h"

namespace {
using namespace nexus;
using namespace nexus::test;

const DeviceId kCpu{-1};

/// One expert with `rows` rows of k.
struct Dense {
  GroupedLinearDesc desc;
  HostArray weight, input;

  Dense(Random& random, DType t, int64_t k, int64_t n, int64_t rows)
      : desc{t, 1, k, n, Epilogue::kIdentity, {}},
        weight(HostArray::rounded(t, random.normals(static_cast<size_t>(n * k), 0.05f))),
        input(HostArray::rounded(t, random.normals(static_cast<size_t>(rows * k)))) {}

  /// Rows first … first + rows as all that the expert has.
  std::vector<uint8_t> run(Bench& bench, int64_t first, int64_t rows, const VariantChoice& choice) const {
    const size_t row = static_cast<size_t>(desc.k) * size_of(desc.dtype);
    GroupedLinearArgs a;
    a.weight = bench.upload(weight);
    a.input = bench.upload(input.bytes.data() + static_cast<size_t>(first) * row, static_cast<size_t>(rows) * row);
    const size_t count = static_cast<size_t>(rows * desc.n);
    a.output = bench.poisoned(desc.dtype, count);
    a.max_rows = rows;
    a.choice = choice;
    grouped_linear(*bench.stream, desc, a);
    return bench.read(a.output, count * size_of(desc.dtype));
  }
};

/// Memory that ends where nothing may be touched any more.
class Fenced {
 public:
  explicit Fenced(const HostArray& a) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), size = a.bytes.size();
    bytes_ = (size + page - 1) / page * page + page;
    base_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw Failure("mmap failed");
    char* fence = static_cast<char*>(base_) + bytes_ - page;
    if (mprotect(fence, page, PROT_NONE) != 0) throw Failure("mprotect failed");
    data_ = fence - size;
    std::memcpy(data_, a.data(), size);
  }
  ~Fenced() { munmap(base_, bytes_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  const void* data() const { return data_; }

 private:
  void* base_ = nullptr;
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace

TEST("cpu product: in one order of sums a row has the same bits in every batch, through all blocks of rows and k") {
  Random random(91);
  constexpr int64_t kMost = 200, kColumns = 40;
  const std::vector<int64_t> counts{1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,  13,  15, 16,
                                    17, 18, 19, 20, 23, 24, 25, 31, 33, 36, 64, 100, 191, 193};
  for (const DType t : kFloatTypes)
    for (const int64_t k : {37, 512, 1024, 1040, 1559}) {
      const Dense dense(random, t, k, kColumns, kMost);
      for_each_isa(kCpu, [&](const std::string& where) {
        Bench bench(kCpu);
        int orders = 0;
        for (const VariantCandidate& candidate : grouped_linear_candidates(kCpu, dense.desc, kMost)) {
          if (candidate.order.empty()) continue;  // chosen by the rows of an expert
          ++orders;
          const VariantChoice choice{.variant = candidate.name};
          const std::vector<uint8_t> all = dense.run(bench, 0, kMost, choice);
          const size_t row = kColumns * size_of(t);
          for (const int64_t count : counts) {
            const int64_t first = (count * 7) % (kMost - count + 1);
            if (std::memcmp(dense.run(bench, first, count, choice).data(),
                            all.data() + static_cast<size_t>(first) * row, static_cast<size_t>(count) * row) != 0)
              throw Failure(where + " " + candidate.name + ", k " + show(k) + ": " + show(count) + " rows from " +
                            show(first) + " on have other bits than among " + show(kMost));
          }
        }
        CHECK_EQ(orders, 2);
      });
    }
}

TEST("cpu product: any number of threads gives the same bits, through all blocks of rows and k") {
  Random random(92);
  for (const DType t : {DType::kF32, DType::kBF16})
    for (const int64_t rows : {1, 7, 16, 40}) {
      const Dense dense(random, t, 1111, 330, rows);
      for_each_isa(kCpu, [&](const std::string& where) {
        Bench bench(kCpu);
        const std::vector<uint8_t> one = [&] {
          Threads scope(1);
          return dense.run(bench, 0, rows, {});
        }();
        for (const int threads : {2, 3, 16}) {
          Threads scope(threads);
          if (dense.run(bench, 0, rows, {}) != one)
            throw Failure(where + ": " + show(threads) + " threads and " + show(rows) + " rows give other bits");
        }
      });
    }
}

TEST("cpu product: reads nothing behind its weights and its rows, and matches float64") {
  Random random(93);
  for (const DType t : kFloatTypes)
    for (const auto& [k, n] : {std::pair<int64_t, int64_t>{1, 1}, {131, 37}, {1100, 70}, {2049, 5}, {30, 330}})
      for (const int64_t rows : {1, 3, 6, 17, 50}) {
        const Dense dense(random, t, k, n, rows);
        const Fenced weight(dense.weight), input(dense.input);
        GroupedLinearArgs host;
        host.weight = dense.weight.data();
        host.input = dense.input.data();
        host.max_rows = rows;
        std::vector<double> want(static_cast<size_t>(rows * n));
        grouped_linear_reference(dense.desc, host, want.data());
        for_each_isa(kCpu, [&](const std::string& where) {
          Bench bench(kCpu);
          GroupedLinearArgs a = host;
          a.weight = weight.data();
          a.input = input.data();
          a.output = bench.poisoned(t, want.size());
          grouped_linear(*bench.stream, dense.desc, a);
          check_close(bench.read(t, a.output, want.size()), want, tolerance(t),
                      where + " " + name_of(t) + ", " + show(rows) + " rows, k " + show(k) + ", n " + show(n));
        });
      }
}
