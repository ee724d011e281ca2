// See variants.h. Both kernels give a row the same bits whatever its neighbours, but not the same as one another. So
// three variants are correct: each of them for all rows, and the choice by an expert's rows, which is the fastest where
// nothing was measured but whose sums change order with the batch.
#include "data/cpu/variants.h"

#include "data/backend.h"
#include "data/cpu/isa.h"

namespace nexus::cpu {
namespace {

constexpr RowKernel kAll[] = {RowKernel::kByRows, RowKernel::kDot, RowKernel::kPanel};

std::string name(const GroupedLinearDesc& desc, RowKernel kernel) {
  const Isa& table = isa();
  const std::string prefix = std::string("cpu-") + table.name + "-" + name_of(desc.dtype) + "-";
  const std::string panel = "panel" + std::to_string(table.panel_columns);
  if (kernel == RowKernel::kDot) return prefix + "dot";
  if (kernel == RowKernel::kPanel) return prefix + panel;
  return prefix + "dot<=" + std::to_string(table.dot_rows[static_cast<int>(desc.dtype)]) + "-" + panel;
}

const char* order(RowKernel kernel) {
  switch (kernel) {
    case RowKernel::kDot:
      return "dot";
    case RowKernel::kPanel:
      return "panel";
    case RowKernel::kByRows:
      return "";  // by the rows of an expert, per expert and on the device
  }
  return "";
}

/// What the choice by rows comes to: where dot takes every expert's rows anyway, it is dot by another name.
RowKernel heuristic(const GroupedLinearDesc& desc, int64_t rows) {
  return uses_dot_kernel(desc.dtype, rows, desc.n) ? RowKernel::kDot : RowKernel::kByRows;
}

bool fits(const GroupedLinearDesc& desc, int64_t rows, RowKernel kernel) {
  return kernel != RowKernel::kByRows || heuristic(desc, rows) == RowKernel::kByRows;
}

const RowKernel* find(const GroupedLinearDesc& desc, int64_t rows, std::string_view wanted) {
  for (const RowKernel& kernel : kAll)
    if (fits(desc, rows, kernel) && name(desc, kernel) == wanted) return &kernel;
  return nullptr;
}

RowKernel invariant(const GroupedLinearDesc& desc, const VariantTable* table) {
  const std::string* measured = table ? table->order(variant_key(desc)) : nullptr;
  for (const RowKernel kernel : {RowKernel::kDot, RowKernel::kPanel})
    if (measured && *measured == order(kernel)) return kernel;
  return kInvariantKernel;
}

}  // namespace

RowKernel choose(const GroupedLinearDesc& desc, int64_t rows, const VariantChoice& choice) {
  if (!choice.variant.empty()) {
    if (const RowKernel* named = find(desc, rows, choice.variant)) return *named;
    throw_invalid("variant: expected a candidate for this layer and " + std::to_string(rows) + " rows, got '" +
                  std::string(choice.variant) + "'");
  }
  if (choice.batch_invariant) return invariant(desc, choice.table);
  const auto* measured = choice.table ? choice.table->choice(variant_key(desc), rows) : nullptr;
  if (measured != nullptr)
    for (const std::string& wanted : *measured)
      if (const RowKernel* known = find(desc, rows, wanted)) return *known;
  return RowKernel::kByRows;
}

std::string grouped_linear_variant(const GroupedLinearDesc& desc, int64_t max_rows, bool, const VariantChoice& choice) {
  const RowKernel chosen = choose(desc, max_rows, choice);
  return name(desc, chosen == RowKernel::kByRows ? heuristic(desc, max_rows) : chosen);
}

std::vector<VariantCandidate> grouped_linear_candidates(DeviceId, const GroupedLinearDesc& desc, int64_t rows) {
  std::vector<VariantCandidate> all;
  for (const RowKernel kernel : kAll) {
    if (!fits(desc, rows, kernel)) continue;
    all.push_back({name(desc, kernel), order(kernel), kernel == heuristic(desc, rows), kernel == kInvariantKernel});
  }
  return all;
}

std::string device_class(DeviceId) { return std::string("cpu/") + cpu_isa(); }

}  // namespace nexus::cpu
