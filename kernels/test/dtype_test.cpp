// Element types: every conversion to the bit, on every instruction set; and the random fill.
#include <unistd.h>

#include <bit>

#include "data/backend.h"
#include "data/philox.h"
#include "data_plane.h"

using namespace nexus;
using namespace nexus::test;

namespace {

/// Round to nearest even by definition, in float64: `bits` of significand, exponents from `low` (of the least normal)
/// to `high`.
double nearest(double v, int bits, int low, int high) {
  if (v == 0 || !std::isfinite(v)) return v;
  int exponent;
  std::frexp(v, &exponent);
  const int unit = std::max(exponent - 1, low) - (bits - 1);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(v, -unit)), unit);
  return std::fabs(rounded) >= std::ldexp(1.0, high + 1) ? std::copysign(INFINITY, v) : rounded;
}

/// Edge cases of both 16-bit formats, every midpoint between neighbouring f16 values, and random bit patterns.
std::vector<float> interesting_floats() {
  std::vector<float> v{0.f,           -0.f,          1.f,           -1.f,       65504.f,        65519.996f, 65520.f,
                       65536.f,       1e30f,         3.4e38f,       3.3895e38f, 3.4028e38f,     INFINITY,   -INFINITY,
                       5.9604645e-8f, 2.9802322e-8f, 2.9802326e-8f, 1e-45f,     1.1754944e-38f, 6.1e-5f};
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const float a = f16_to_f32(static_cast<uint16_t>(h)), b = f16_to_f32(static_cast<uint16_t>(h + 1));
    v.push_back((a + b) / 2);
    v.push_back(-std::nextafterf((a + b) / 2, 0.f));
    v.push_back(std::nextafterf((a + b) / 2, INFINITY));
  }
  Random random(1);
  for (int i = 0; i < 200000; ++i) v.push_back(std::bit_cast<float>(static_cast<uint32_t>(random.next())));
  for (uint32_t i = 0; i < 20000; ++i)
    v.push_back(std::bit_cast<float>((static_cast<uint32_t>(random.next()) & 0xffff0000u) | 0x8000u));
  return v;
}

}  // namespace

TEST("names and sizes of the element types") {
  CHECK_EQ(std::string(name_of(DType::kF32)), "f32");
  CHECK_EQ(std::string(name_of(DType::kBF16)), "bf16");
  CHECK_EQ(std::string(name_of(DType::kF16)), "f16");
  CHECK_EQ(std::string(name_of(DType::kI32)), "i32");
  CHECK_EQ(size_of(DType::kF32), 4u);
  CHECK_EQ(size_of(DType::kBF16), 2u);
  CHECK_EQ(size_of(DType::kF16), 2u);
  CHECK_EQ(size_of(DType::kI32), 4u);
}

TEST("float32 to bf16 and f16 rounds to nearest even, overflows to infinity, keeps NaN") {
  for (const float v : interesting_floats()) {
    const float b = bf16_to_f32(f32_to_bf16(v)), h = f16_to_f32(f32_to_f16(v));
    if (std::isnan(v)) {
      CHECK(std::isnan(b) && std::isnan(h));
      continue;
    }
    CHECK_EQ(static_cast<double>(b), nearest(v, 8, -126, 127));
    CHECK_EQ(static_cast<double>(h), nearest(v, 11, -14, 15));
    CHECK_EQ(std::signbit(b), std::signbit(v));
    CHECK_EQ(std::signbit(h), std::signbit(v));
  }
}

TEST("every 16-bit value survives the way to float32 and back") {
  for (uint32_t i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    const float b = bf16_to_f32(bits), h = f16_to_f32(bits);
    if (!std::isnan(b)) CHECK_EQ(f32_to_bf16(b), bits);
    if (!std::isnan(h)) CHECK_EQ(f32_to_f16(h), bits);
  }
}

TEST("convert has the scalar conversions' bits on every instruction set") {
  const std::vector<float> floats = interesting_floats();
  std::vector<uint16_t> all(65536);
  std::iota(all.begin(), all.end(), static_cast<uint16_t>(0));
  for_each_isa(DeviceId{-1}, [&](const std::string&) {
    std::vector<uint16_t> half(floats.size());
    convert(floats.data(), DType::kF32, half.data(), DType::kBF16, floats.size());
    for (size_t i = 0; i < floats.size(); ++i) CHECK_EQ(half[i], f32_to_bf16(floats[i]));
    convert(floats.data(), DType::kF32, half.data(), DType::kF16, floats.size());
    for (size_t i = 0; i < floats.size(); ++i) CHECK_EQ(half[i], f32_to_f16(floats[i]));
    std::vector<float> wide(all.size());
    convert(all.data(), DType::kBF16, wide.data(), DType::kF32, all.size());
    for (size_t i = 0; i < all.size(); ++i)
      CHECK_EQ(std::bit_cast<uint32_t>(wide[i]), std::bit_cast<uint32_t>(bf16_to_f32(all[i])));
    convert(all.data(), DType::kF16, wide.data(), DType::kF32, all.size());
    for (size_t i = 0; i < all.size(); ++i)
      CHECK_EQ(std::bit_cast<uint32_t>(wide[i]), std::bit_cast<uint32_t>(f16_to_f32(all[i])));
    std::vector<uint16_t> other(all.size());
    convert(all.data(), DType::kF16, other.data(), DType::kBF16, all.size());
    for (size_t i = 0; i < all.size(); ++i) CHECK_EQ(other[i], f32_to_bf16(f16_to_f32(all[i])));
  });
}

TEST("convert writes n elements and no more, at any n") {
  for_each_isa(DeviceId{-1}, [&](const std::string&) {
    const std::vector<float> ones(64, 1.f);
    for (size_t n = 0; n <= 40; ++n) {
      std::vector<uint16_t> out(64, 0xFFFF);
      convert(ones.data(), DType::kF32, out.data(), DType::kBF16, n);
      for (size_t i = 0; i < out.size(); ++i) CHECK_EQ(out[i], i < n ? 0x3f80 : 0xFFFF);
    }
  });
}

TEST("convert refuses i32 and names it") {
  float x = 0;
  const std::string message =
      expect_error(ErrorCode::kInvalidArgument, [&] { convert(&x, DType::kF32, &x, DType::kI32, 1); });
  CHECK(message.find("i32") != std::string::npos);
}

TEST("the CPU instruction set is one of those available") {
  const auto list = cpu::cpu_isas();
  CHECK(std::find(list.begin(), list.end(), cpu::cpu_isa()) != list.end());
  CHECK_EQ(list.back(), "scalar");
}

TEST("an unknown instruction set is refused by name, in the call and in NEXUS_CPU_ISA") {
  const std::string message = expect_error(ErrorCode::kInvalidArgument, [] { cpu::set_cpu_isa("sse9"); });
  CHECK(message.find("sse9") != std::string::npos);
  // The variable is read once: ask a fresh process.
  char self[4096];
  const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
  CHECK(length > 0);
  self[length] = 0;
  const std::string command = "NEXUS_CPU_ISA=sse9 '" + std::string(self) + "' 'is one of those available'";
  FILE* pipe = popen(command.c_str(), "r");
  CHECK(pipe != nullptr);
  std::string output;
  char buffer[256];
  while (fgets(buffer, sizeof buffer, pipe)) output += buffer;
  CHECK(pclose(pipe) != 0);
  CHECK(output.find("NEXUS_CPU_ISA: expected scalar, avx2 or avx512, got 'sse9'") != std::string::npos);
}

TEST("Philox4x32-10 gives the published known answer") {  // Random123's kat_vectors
  const Philox4 r = philox4x32(0, 0);
  CHECK_EQ(r.v[0], 0x6627e8d5u);
  CHECK_EQ(r.v[1], 0xe169c58du);
  CHECK_EQ(r.v[2], 0xbc57ac4cu);
  CHECK_EQ(r.v[3], 0x9b00dbd8u);
}

TEST("fill_normal: moments, prefix property, every dtype, any thread count") {
  constexpr int64_t kCount = 100003;
  for (const DeviceId device : devices()) {
    Bench bench(device);
    float* p = bench.poisoned<float>(kCount);
    fill_normal(*bench.stream, p, DType::kF32, kCount, 42, 1.f);
    const std::vector<float> v = bench.read(p, kCount);
    double m1 = 0, m2 = 0, m4 = 0;
    for (const float x : v) m1 += x, m2 += double{x} * x, m4 += double{x} * x * x * x;
    CHECK_LE(std::fabs(m1 / kCount), 0.02);
    CHECK_LE(std::fabs(m2 / kCount - 1), 0.03);
    CHECK_LE(std::fabs(m4 / kCount - 3), 0.3);
    for (size_t i = 0; i < 64; ++i) {  // the definition, element by element
      float four[4];
      philox_normal4(42, i / 4, 1.0, four);
      CHECK_LE(std::fabs(v[i] - four[i % 4]), 1e-6f * std::fabs(four[i % 4]));
    }
    for (const DType t : kFloatTypes) {
      for (const int64_t n : {int64_t{0}, int64_t{1}, int64_t{5}, int64_t{4099}}) {
        void* q = bench.poisoned(t, static_cast<size_t>(n));
        fill_normal(*bench.stream, q, t, n, 42, 0.5f);
        const HostArray got = bench.read(t, q, static_cast<size_t>(n));
        std::vector<float> half(v.begin(), v.begin() + n);
        for (float& x : half) x *= 0.5f;
        CHECK(got.bytes == HostArray::rounded(t, half).bytes);
      }
    }
    float* other = bench.poisoned<float>(kCount);
    fill_normal(*bench.stream, other, DType::kF32, kCount, 43, 1.f);
    CHECK(bench.read(other, kCount) != v);
    if (device.is_cpu()) {
      for (const int threads : {1, 3}) {
        Threads scope(threads);
        float* again = bench.poisoned<float>(kCount);
        fill_normal(*bench.stream, again, DType::kF32, kCount, 42, 1.f);
        CHECK(bench.read(again, kCount) == v);
      }
    }
    expect_error(ErrorCode::kInvalidArgument, [&] { fill_normal(*bench.stream, p, DType::kI32, 1, 0, 1.f); });
    expect_error(ErrorCode::kInvalidArgument, [&] { fill_normal(*bench.stream, nullptr, DType::kF32, 1, 0, 1.f); });
  }
}
