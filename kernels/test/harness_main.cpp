// main() of every C++ test program: `PROGRAM [FILTER]` runs the tests whose name contains FILTER, `PROGRAM --list`
// prints the names, `PROGRAM --list-in-parts` those of tests that NEXUS_TEST_PART divides.
#include <chrono>
#include <random>

#include "harness.h"

uint64_t nexus::test::Random::seed() {
  static const uint64_t value = [] {
    if (const char* v = std::getenv("NEXUS_TEST_SEED")) return static_cast<uint64_t>(std::strtoull(v, nullptr, 10));
    return static_cast<uint64_t>(std::random_device{}());
  }();
  return value;
}

int main(int argc, char** argv) {
  using namespace nexus::test;
  const std::string filter = argc > 1 ? argv[1] : "";
  if (filter == "--list" || filter == "--list-in-parts") {
    for (const auto& c : cases())
      if (filter == "--list" || c.in_parts) std::printf("%s\n", c.name.c_str());
    return 0;
  }
  Part part;
  try {
    part = Part::from_environment();
  } catch (const std::invalid_argument& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 2;
  }
  std::printf("seed %llu (NEXUS_TEST_SEED repeats it)\n", static_cast<unsigned long long>(Random::seed()));
  int passed = 0, failed = 0, skipped = 0;
  for (const auto& c : cases()) {
    if (c.name.find(filter) == std::string::npos) continue;
    const auto start = std::chrono::steady_clock::now();
    std::string verdict = "ok  ", detail;
    try {
      if (!c.in_parts && !part.first()) throw Skipped("all of it is in the first part");
      c.body(part);
      ++passed;
    } catch (const Skipped& e) {
      ++skipped;
      verdict = "skip", detail = e.what();
    } catch (const std::exception& e) {
      ++failed;
      verdict = "FAIL", detail = e.what();
    }
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s %s (%.0f ms)%s%s\n", verdict.c_str(), c.name.c_str(), ms, detail.empty() ? "" : ": ",
                detail.c_str());
    std::fflush(stdout);
  }
  std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
  return failed == 0 && passed + skipped > 0 ? 0 : 1;
}
