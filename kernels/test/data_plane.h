// What the data-plane tests share: arrays of any dtype on any device, moved through Stream::copy and pinned memory;
// outputs poisoned with 0xFF (a NaN in every dtype) and followed by a guard, so that an element left unwritten or a
// write past the end fails the test.
#pragma once
#include <algorithm>
#include <numeric>

#include "data/cpu/isa.h"
#ifdef NEXUS_HAS_CUDA
#include "data/cuda/arch.h"
#endif
#include "harness.h"
#include "nexus/experts.h"

namespace nexus::test {

constexpr DType kFloatTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
/// Against float64 of the rounded inputs; 16-bit outputs are themselves rounded.
inline double tolerance(DType t) { return t == DType::kF32 ? 1e-5 : 4e-3; }

/// Host elements of a dtype.
struct HostArray {
  DType dtype = DType::kF32;
  std::vector<uint8_t> bytes;

  size_t size() const { return bytes.size() / size_of(dtype); }
  const void* data() const { return bytes.data(); }
  double operator[](size_t i) const {
    if (dtype == DType::kF32) {
      float v;
      std::memcpy(&v, bytes.data() + 4 * i, 4);
      return v;
    }
    uint16_t v;
    std::memcpy(&v, bytes.data() + 2 * i, 2);
    return dtype == DType::kBF16 ? bf16_to_f32(v) : f16_to_f32(v);
  }
  /// By the scalar conversions, which dtype_test.cpp holds to their definition.
  static HostArray rounded(DType t, const std::vector<float>& values) {
    HostArray a{t, std::vector<uint8_t>(values.size() * size_of(t))};
    for (size_t i = 0; i < values.size(); ++i) {
      if (t == DType::kF32) {
        std::memcpy(a.bytes.data() + 4 * i, &values[i], 4);
      } else {
        const uint16_t v = t == DType::kBF16 ? f32_to_bf16(values[i]) : f32_to_f16(values[i]);
        std::memcpy(a.bytes.data() + 2 * i, &v, 2);
      }
    }
    return a;
  }
};

/// Weights [experts, n, k] in panels, by the definition (nexus/weight_panels.h).
inline HostArray laid(const WeightMatrices& m, const HostArray& rows) {
  if (!fit_panels(m)) throw Failure("these weights cannot lie in panels");
  HostArray out = rows;
  for (int64_t e = 0; e < m.experts; ++e)
    for (int64_t row = 0; row < m.n; ++row)
      for (int64_t column = 0; column < m.k; ++column)
        std::memcpy(out.bytes.data() + 2 * (e * m.n * m.k + panel_element(row, column, m.n, m.gated)),
                    rows.bytes.data() + 2 * ((e * m.n + row) * m.k + column), 2);
  return out;
}

/// A stream and the memory that one test uses on it.
class Bench {
 public:
  explicit Bench(DeviceId device) : device(device), stream(Stream::create(device)) {}

  void* upload(const void* host, size_t bytes) {
    if (bytes == 0) return allocate(0);
    auto staging = HostBuffer::allocate(device, bytes);
    std::memcpy(staging->data(), host, bytes);
    void* p = allocate(bytes);
    stream->copy(p, staging->data(), bytes);
    stream->synchronize();
    return p;
  }
  template <class T>
  T* upload(const std::vector<T>& v) {
    return static_cast<T*>(upload(v.data(), v.size() * sizeof(T)));
  }
  void* upload(const HostArray& a) { return upload(a.data(), a.bytes.size()); }

  /// `count` elements of 0xFF bytes with a guard behind them.
  template <class T>
  T* poisoned(size_t count) {
    return static_cast<T*>(poisoned_bytes(count * sizeof(T)));
  }
  void* poisoned(DType t, size_t count) { return poisoned_bytes(count * size_of(t)); }

  /// Waits, checks the guard of a poisoned array, and copies it to the host.
  std::vector<uint8_t> read(const void* p, size_t bytes) {
    auto staging = HostBuffer::allocate(device, bytes + kGuard);
    stream->copy(staging->data(), p, bytes + kGuard);
    stream->synchronize();
    const auto* from = static_cast<const uint8_t*>(staging->data());
    for (size_t i = 0; i < kGuard; ++i)
      if (from[bytes + i] != 0xFF) throw Failure("wrote past the end of an output, at byte +" + std::to_string(i));
    return std::vector<uint8_t>(from, from + bytes);
  }
  template <class T>
  std::vector<T> read(const T* p, size_t count) {
    const std::vector<uint8_t> bytes = read(static_cast<const void*>(p), count * sizeof(T));
    std::vector<T> out(count);
    if (count) std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  HostArray read(DType t, const void* p, size_t count) { return HostArray{t, read(p, count * size_of(t))}; }

  DeviceId device;
  std::shared_ptr<Stream> stream;

 private:
  static constexpr size_t kGuard = 64;
  void* allocate(size_t bytes) {
    buffers_.push_back(Buffer::allocate(stream, bytes + kGuard));
    return buffers_.back()->data();
  }
  void* poisoned_bytes(size_t bytes) {
    void* p = allocate(bytes);
    stream->fill(p, 0xFF, bytes + kGuard);
    return p;
  }
  std::vector<std::shared_ptr<Buffer>> buffers_;
};

/// Slots sorted by (expert, slot), as `route` leaves them.
struct Buckets {
  std::vector<int32_t> offsets, order;
  int64_t slots() const { return static_cast<int64_t>(order.size()); }
};
inline Buckets bucket(int experts, const std::vector<int32_t>& expert_of_slot) {
  Buckets b;
  b.offsets.assign(static_cast<size_t>(experts) + 1, 0);
  for (int32_t e = 0; e < experts; ++e) {
    for (size_t s = 0; s < expert_of_slot.size(); ++s)
      if (expert_of_slot[s] == e) b.order.push_back(static_cast<int32_t>(s));
    b.offsets[static_cast<size_t>(e) + 1] = static_cast<int32_t>(b.order.size());
  }
  return b;
}

enum class Spread { kUniform, kOneExpert, kSkewed };
/// Skewed: half of the slots on expert 0, the last expert has none.
inline Buckets random_buckets(Random& random, int experts, int64_t slots, Spread spread) {
  std::vector<int32_t> expert(static_cast<size_t>(slots));
  for (auto& e : expert) {
    if (spread == Spread::kOneExpert)
      e = experts - 1;
    else if (spread == Spread::kSkewed && experts > 1)
      e = random.uniform() < 0.5 ? 0 : static_cast<int32_t>(random.integer(0, experts - 2));
    else
      e = static_cast<int32_t>(random.integer(0, experts - 1));
  }
  return bucket(experts, expert);
}

/// Runs `body(name)` once per way to run on `device`: every instruction set on the CPU, the kernels of every
/// architecture that a CUDA device can run. Restores the choice.
inline void for_each_isa(DeviceId device, const std::function<void(const std::string&)>& body) {
  if (device.is_cuda()) {
#ifdef NEXUS_HAS_CUDA
    struct Restore {
      ~Restore() { cuda::set_cuda_arch(""); }
    } restore;
    for (const std::string& arch : cuda::cuda_archs(device.index)) {
      cuda::set_cuda_arch(arch);
      body(device.name() + "/" + arch);
    }
#endif
    return;
  }
  const std::string before = cpu::cpu_isa();
  struct Restore {
    const std::string& name;
    ~Restore() { cpu::set_cpu_isa(name); }
  } restore{before};
  for (const std::string& name : cpu::cpu_isas()) {
    cpu::set_cpu_isa(name);
    body("cpu/" + name);
  }
}

/// Sets the thread count for a scope.
struct Threads {
  explicit Threads(int n) : before(cpu_threads()) { set_cpu_threads(n); }
  ~Threads() { set_cpu_threads(before); }
  int before;
};

/// ‖got − want‖ ≤ tolerance · ‖want‖. The data is unit-scale, but the few elements of a small output can cancel to
/// nearly nothing, beside which the rounding of their terms looks large: the norm counts as at least that of elements
/// of 0.5.
template <class A, class B>
void check_close(const A& got, const B& want, double tolerance, const std::string& what) {
  double error = relative_error(got, want), norm = 0;
  for (size_t i = 0; i < want.size(); ++i) norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  const double least = 0.25 * static_cast<double>(want.size());
  if (norm > 0 && norm < least) error *= std::sqrt(norm / least);
  if (!(error <= tolerance)) throw Failure(what + ": relative error " + show(error) + ", allowed " + show(tolerance));
}

/// Rows in slot order, in float64, intermediates rounded to the dtype as the contract says they are stored.
inline std::vector<double> mlp_oracle(const MlpDesc& d, const MlpWeights& w, const MlpArgs& host) {
  const int64_t rows = host.tokens * host.top_k;
  HostArray input;
  std::vector<double> out;
  for (int i = 0; i < mlp_layers(d.kind); ++i) {
    const GroupedLinearDesc linear = mlp_layer(d, i);
    const bool first = i == 0, last = i + 1 == mlp_layers(d.kind);
    GroupedLinearArgs a;
    a.input = first ? host.x : input.data();
    a.weight = w.weight[static_cast<size_t>(i)];
    a.bias = w.bias[static_cast<size_t>(i)];
    a.offsets = host.offsets;
    a.order = host.order;
    a.rows_per_input = first ? host.top_k : 1;
    a.gather = first && host.order;
    a.scatter = last && host.order;
    a.row_scale = first ? host.input_scale : nullptr;
    a.max_rows = rows;
    out.assign(static_cast<size_t>(rows * (is_gated(linear.epilogue) ? linear.n / 2 : linear.n)), 0.0);
    grouped_linear_reference(linear, a, out.data());
    input = HostArray::rounded(d.dtype, std::vector<float>(out.begin(), out.end()));
  }
  return out;
}

}  // namespace nexus::test
