// Two kinds of tiles in one sequence, spread evenly: tiles of experts with several row tiles (hot: bound by arithmetic)
// among those of the others (bound by memory), so that at any time some of the blocks do the one and some the other.
// Within a kind the order stays. Pure: the kernels and the host's tests call it alike.
#pragma once
#include <cstdint>

namespace nexus::cuda {

struct MixedIndex {
  bool hot;
  int index;  // within its kind
};

/// Item `index` of `hot` + `cold` in sequence; hot item i is at floor(((i + 1)·all - 1) / hot), so of any first items
/// the hot ones are floor(items·hot / all).
constexpr MixedIndex mixed(int index, int hot, int cold) {
  const int64_t all = static_cast<int64_t>(hot) + cold;
  const auto before = static_cast<int>(index * static_cast<int64_t>(hot) / all);
  const auto through = static_cast<int>((index + int64_t{1}) * hot / all);
  return through > before ? MixedIndex{true, before} : MixedIndex{false, index - before};
}

}  // namespace nexus::cuda
