// Chooses the instruction set once; see isa.h.
#include "data/cpu/isa.h"

#include <atomic>
#include <cstdlib>

#include "nexus/error.h"

namespace nexus::cpu {
namespace {

bool machine_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}
bool machine_has_avx512() {
#if defined(__x86_64__)
  return machine_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

/// Best first.
std::vector<const Isa*> available() {
  std::vector<const Isa*> found;
  if (isa_avx512() && machine_has_avx512()) found.push_back(isa_avx512());
  if (isa_avx2() && machine_has_avx2()) found.push_back(isa_avx2());
  found.push_back(isa_portable());
  return found;
}

const Isa* by_name(const std::string& name, const char* argument) {
  if (name != "scalar" && name != "avx2" && name != "avx512")
    throw_invalid(std::string(argument) + ": expected scalar, avx2 or avx512, got '" + name + "'");
  std::string have;
  for (const Isa* candidate : available()) {
    if (name == candidate->name) return candidate;
    have += (have.empty() ? "" : ", ") + std::string(candidate->name);
  }
  throw_unsupported(std::string(argument) + ": this machine or build cannot run '" + name + "'; it runs " + have);
}

std::atomic<const Isa*> chosen{nullptr};

}  // namespace

const Isa& isa() {
  const Isa* table = chosen.load(std::memory_order_acquire);
  if (!table) {
    const char* wanted = std::getenv("NEXUS_CPU_ISA");
    table = wanted && *wanted ? by_name(wanted, "NEXUS_CPU_ISA") : available().front();
    chosen.store(table, std::memory_order_release);  // racing threads store the same value
  }
  return *table;
}

const char* cpu_isa() { return isa().name; }

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Isa* table : available()) names.push_back(table->name);
  return names;
}

void set_cpu_isa(const std::string& name) { chosen.store(by_name(name, "set_cpu_isa"), std::memory_order_release); }

}  // namespace nexus::cpu
