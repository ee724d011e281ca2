// Which kernel variant runs a grouped linear layer: by a heuristic, by a table of measured choices, or by name.
//
// A variant belongs to an *order of sums*: variants of one order give a row the same bits whatever their tile shapes,
// so a layer that keeps to one order for all numbers of rows is batch-invariant. A choice depends on dtype, shape, rows
// of the token bucket and kind of device alone. The table in force when a layer is made is the layer's for life:
// loading another one later never changes its bits.
#pragma once
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nexus/dtype.h"
#include "nexus/runtime.h"

namespace nexus {

struct GroupedLinearDesc;

/// A grouped linear layer, as far as the speed of variants depends on it.
struct VariantKey {
  DType dtype = DType::kF32;
  int experts = 1;
  int64_t k = 0, n = 0;
  bool gated = false;
  auto operator<=>(const VariantKey&) const = default;
};
VariantKey variant_key(const GroupedLinearDesc& desc);

/// Immutable. Names that a device does not have are passed over when it chooses.
class VariantTable {
 public:
  /// For the layer at so many rows (tokens of a bucket times top_k), the fastest first.
  struct Choice {
    VariantKey key;
    int64_t rows = 0;
    std::vector<std::string> variants;
  };
  /// The order of sums in which the layer is fastest over all its buckets, for batch invariance.
  struct Order {
    VariantKey key;
    std::string order;
  };
  /// Throws kInvalidArgument for rows below 1, an empty list or name, and a second entry for one layer and rows.
  VariantTable(std::vector<Choice> choices, std::vector<Order> orders);
  /// null: none.
  const std::vector<std::string>* choice(const VariantKey& key, int64_t rows) const;
  const std::string* order(const VariantKey& key) const;

 private:
  std::map<std::pair<VariantKey, int64_t>, std::vector<std::string>> choices_;
  std::map<VariantKey, std::string> orders_;
};

/// What a table is made for: 'cpu/avx2', or 'sm_90/132' (architecture of the kernels in use, multiprocessors).
std::string device_class(DeviceId device);
/// The table of a class of devices for layers made from now on; null: none.
void set_variant_table(const std::string& device_class, std::shared_ptr<const VariantTable> table);
std::shared_ptr<const VariantTable> variant_table(DeviceId device);

/// How a variant is chosen. What it points to must live as long as the call.
struct VariantChoice {
  const VariantTable* table = nullptr;  ///< null: by the heuristic
  bool batch_invariant = false;         ///< only variants of one order of sums, the same for all numbers of rows
  std::string_view variant{};  ///< this one, before all else: kInvalidArgument where it is no candidate. Empty: none
};

struct VariantCandidate {
  std::string name;
  std::string order;       ///< of its sums; empty: it changes with the rows of an expert
  bool heuristic = false;  ///< what runs without a table
  bool invariant = false;  ///< what runs without a table when batch-invariant
  /// Where all linear layers of the experts have it, a step of so few rows is other kernels with the same bits, made
  /// for the step as a whole: timing one layer says too little of it.
  bool fused_step = false;
};
/// Every variant that computes the layer correctly for so many rows with aligned memory, on this device.
std::vector<VariantCandidate> grouped_linear_candidates(DeviceId device, const GroupedLinearDesc& desc, int64_t rows);

}  // namespace nexus
