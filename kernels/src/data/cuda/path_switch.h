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
  /// Names for errors.
  constexpr PathSwitch(const char* variable, const char* setter) : variable_(variable), setter_(setter) {}

  /// Unless 'chain' is said.
  bool fused() { return way() != kChain; }
  /// 'fused' is said: also where the chain is faster.
  bool forced() { return way() == kFused; }
  void set(const std::string& way) {
    way_.store(way.empty() ? kUnread : parse(way, setter_), std::memory_order_relaxed);
  }

 private:
  enum Way { kUnread = -1, kUnsaid, kFused, kChain };
  int way() {
    int way = way_.load(std::memory_order_relaxed);
    if (way == kUnread) {
      const char* text = std::getenv(variable_);
      way = parse(text ? text : "", variable_);
      way_.store(way, std::memory_order_relaxed);  // racing threads store the same value
    }
    return way;
  }
  static int parse(const std::string& text, const char* argument) {
    if (text.empty()) return kUnsaid;
    if (text == "fused") return kFused;
    if (text == "chain") return kChain;
    throw_invalid(std::string(argument) + ": got '" + text + "', expected fused or chain");
  }

  const char *variable_, *setter_;
  std::atomic<int> way_{kUnread};
};

}  // namespace nexus::cuda
