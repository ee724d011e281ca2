// What the benchmarks of kernels share: their arguments, and memory to work on.
#pragma once
#include <cstdint>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "data/backend.h"

namespace nexus::bench {

/// '1,8,64' as numbers.
inline std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> list;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) list.push_back(std::stoll(part));
  return list;
}

/// An argument KEY=VALUE; one without '=' has no value.
struct Argument {
  explicit Argument(const std::string& text) : key(text.substr(0, text.find('='))) {
    if (key.size() < text.size()) value = text.substr(key.size() + 1);
  }
  std::string key, value;
};

/// An MoE layer's shape.
struct LayerShape {
  std::string name;
  int64_t hidden, inter;
  int experts, top_k;
};
/// NAME=HIDDEN,INTER,EXPERTS,TOPK; false: it is no shape, and nothing is added.
inline bool add_shape(const Argument& argument, std::vector<LayerShape>& shapes) {
  if (argument.key.rfind("--", 0) == 0) return false;
  const std::vector<int64_t> n = numbers(argument.value);
  if (n.size() != 4) return false;
  shapes.push_back({argument.key, n[0], n[1], static_cast<int>(n[2]), static_cast<int>(n[3])});
  return true;
}

/// A stream, and memory on its device.
struct Memory {
  explicit Memory(std::shared_ptr<Stream> on) : stream(std::move(on)) {}
  std::shared_ptr<Stream> stream;
  uint64_t seed = std::random_device{}();

  std::shared_ptr<Buffer> bytes(int64_t n) { return Buffer::allocate(stream, static_cast<size_t>(n)); }
  std::shared_ptr<Buffer> normals(DType dtype, int64_t n, float scale) {
    auto buffer = bytes(n * static_cast<int64_t>(size_of(dtype)));
    fill_normal(*stream, buffer->data(), dtype, n, seed++, scale);
    return buffer;
  }
};

}  // namespace nexus::bench
