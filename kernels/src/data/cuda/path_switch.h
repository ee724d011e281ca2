// A choice between two ways that give the same bits, 'chain' and 'fused': an environment variable's, unless a test has
// made one.
#pragma once
#include <atomic>
#include <cstdlib>
#include <string>

#include "nexus/error.h"

namespace nexus::cuda {

class PathSwitch {
 public:
  /// `variable`, `setter`: names for errors. `fused`: the way where nothing is said.
  constexpr PathSwitch(const char* variable, const char* setter, bool fused)
      : variable_(variable), setter_(setter), default_(fused ? kFused : kChain) {}

  bool fused() {
    int way = way_.load(std::memory_order_relaxed);
    if (way == kUnread) {
      const char* text = std::getenv(variable_);
      way = parse(text ? text : "", variable_);
      way_.store(way, std::memory_order_relaxed);  // racing threads store the same value
    }
    return way == kFused;
  }
  void set(const std::string& way) {
    way_.store(way.empty() ? kUnread : parse(way, setter_), std::memory_order_relaxed);
  }

 private:
  enum Way { kUnread = -1, kFused, kChain };
  int parse(const std::string& text, const char* argument) const {
    if (text.empty()) return default_;
    if (text == "fused") return kFused;
    if (text == "chain") return kChain;
    throw_invalid(std::string(argument) + ": got '" + text + "', expected fused or chain");
  }

  const char *variable_, *setter_;
  Way default_;
  std::atomic<int> way_{kUnread};
};

}  // namespace nexus::cuda
