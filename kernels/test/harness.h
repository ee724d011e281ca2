// A test runner in one header: tests register themselves, run in order, and end with one plain line of totals. Small on
// purpose: the tests are the specification, and the binary must run on a GPU host with nothing installed.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "nexus/runtime.h"

namespace nexus::test {

/// Which of the cases of a test in parts are run: all, or every n-th from the i-th on (NEXUS_TEST_PART=i/n, from 1), so
/// that its parts can run beside one another where a tool makes it slow.
class Part {
 public:
  constexpr Part() = default;
  /// @throws std::invalid_argument unless `text` is i/n with 1 <= i <= n; empty is all
  static Part parse(const std::string& text) {
    if (text.empty()) return {};
    Part part;
    int end = 0;
    if (std::sscanf(text.c_str(), "%d/%d%n", &part.index_, &part.of_, &end) != 2 || text[static_cast<size_t>(end)] ||
        part.index_ < 1 || part.index_ > part.of_)
      throw std::invalid_argument("NEXUS_TEST_PART: got '" + text + "', expected i/n with 1 <= i <= n");
    return part;
  }
  static Part from_environment() {
    const char* text = std::getenv("NEXUS_TEST_PART");
    return parse(text ? text : "");
  }
  bool first() const { return index_ == 1; }
  /// Asked once for each case, in the same order in every part: whether it is this part's.
  bool mine() { return asked_++ % of_ == index_ - 1; }

 private:
  int index_ = 1, of_ = 1, asked_ = 0;
};

struct Case {
  std::string name;
  std::function<void(Part)> body;
  bool in_parts;  // else all of it is the first part
};
inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}
struct Registrar {
  Registrar(std::string name, void (*body)()) {
    cases().push_back({std::move(name), [body](Part) { body(); }, false});
  }
  Registrar(std::string name, void (*body)(Part)) { cases().push_back({std::move(name), body, true}); }
};

struct Failure : std::runtime_error {
  using runtime_error::runtime_error;
};
struct Skipped : std::runtime_error {
  using runtime_error::runtime_error;
};

template <class T>
std::string show(const T& v) {
  if constexpr (std::is_enum_v<T>)
    return std::to_string(static_cast<long long>(v));
  else if constexpr (std::is_arithmetic_v<T>) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, "%.9g", static_cast<double>(v));
    return buffer;
  } else if constexpr (std::is_convertible_v<T, std::string>)
    return v;
  else
    return "<value>";
}

inline bool cuda_available() {
  static const bool found = !system_info().devices.empty();
  return found;
}
/// cpu, and cuda:0 where there is one. With NEXUS_REQUIRE_GPU=1 a missing GPU is a failure, not a shorter list.
inline std::vector<DeviceId> devices() {
  std::vector<DeviceId> list{DeviceId{-1}};
  if (cuda_available())
    list.push_back(DeviceId{0});
  else if (const char* v = std::getenv("NEXUS_REQUIRE_GPU"); v && std::strcmp(v, "1") == 0)
    throw Failure("NEXUS_REQUIRE_GPU=1, but: " + system_info().cuda_status);
  return list;
}
inline void require_cuda() {
  if (cuda_available()) return;
  const char* v = std::getenv("NEXUS_REQUIRE_GPU");
  if (v && std::strcmp(v, "1") == 0) throw Failure("NEXUS_REQUIRE_GPU=1, but: " + system_info().cuda_status);
  throw Skipped(system_info().cuda_status);
}

/// ‖got − want‖ / ‖want‖ (Frobenius); NaN anywhere gives infinity; two empty or all-zero arrays give 0 when equal.
template <class A, class B>
double relative_error(const A& got, const B& want) {
  if (got.size() != want.size()) return INFINITY;
  double diff = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double g = static_cast<double>(got[i]), w = static_cast<double>(want[i]);
    if (std::isnan(g) || std::isnan(w)) return INFINITY;
    diff += (g - w) * (g - w);
    norm += w * w;
  }
  if (norm == 0) return diff == 0 ? 0 : INFINITY;
  return std::sqrt(diff / norm);
}

/// SplitMix64: fresh unit-scale data. NEXUS_TEST_SEED repeats a run; the seed is printed at the start.
class Random {
 public:
  explicit Random(uint64_t stream = 0) : state_(seed() ^ (stream * 0x9E3779B97F4A7C15ull)) {}
  static uint64_t seed();
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  float normal() {
    return static_cast<float>(std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()));
  }
  std::vector<float> normals(size_t n, float scale = 1.f) {
    std::vector<float> v(n);
    for (auto& x : v) x = scale * normal();
    return v;
  }

 private:
  uint64_t state_;
};

/// Runs `f` and checks that it throws nexus::Error with this code; returns the message.
inline std::string expect_error(ErrorCode code, const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    if (e.code != code) throw Failure("threw another code: " + std::string(e.what()));
    return e.what();
  }
  throw Failure("did not throw");
}

}  // namespace nexus::test

#define NEXUS_CONCAT2(a, b) a##b
#define NEXUS_CONCAT(a, b) NEXUS_CONCAT2(a, b)
#define TEST(name)                                                                                                   \
  static void NEXUS_CONCAT(test_body_, __LINE__)();                                                                  \
  static const ::nexus::test::Registrar NEXUS_CONCAT(test_reg_, __LINE__)(name, NEXUS_CONCAT(test_body_, __LINE__)); \
  static void NEXUS_CONCAT(test_body_, __LINE__)()
/// A test of many cases, each behind `if (part.mine())`.
#define TEST_IN_PARTS(name)                                                                                          \
  static void NEXUS_CONCAT(test_body_, __LINE__)(::nexus::test::Part part);                                          \
  static const ::nexus::test::Registrar NEXUS_CONCAT(test_reg_, __LINE__)(name, NEXUS_CONCAT(test_body_, __LINE__)); \
  static void NEXUS_CONCAT(test_body_, __LINE__)(::nexus::test::Part part)
#define NEXUS_FAIL(message) \
  throw ::nexus::test::Failure(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " + (message))
#define CHECK(condition)                      \
  do {                                        \
    if (!(condition)) NEXUS_FAIL(#condition); \
  } while (0)
#define CHECK_EQ(a, b)                                                                                           \
  do {                                                                                                           \
    const auto va_ = (a);                                                                                        \
    const auto vb_ = (b);                                                                                        \
    if (!(va_ == vb_))                                                                                           \
      NEXUS_FAIL(std::string(#a " == " #b ": ") + ::nexus::test::show(va_) + " vs " + ::nexus::test::show(vb_)); \
  } while (0)
#define CHECK_LE(a, b)                                                                                           \
  do {                                                                                                           \
    const auto va_ = (a);                                                                                        \
    const auto vb_ = (b);                                                                                        \
    if (!(va_ <= vb_))                                                                                           \
      NEXUS_FAIL(std::string(#a " <= " #b ": ") + ::nexus::test::show(va_) + " vs " + ::nexus::test::show(vb_)); \
  } while (0)
