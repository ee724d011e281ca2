// Tables of measured choices, and the public functions about variants. See nexus/variants.h.
#include "nexus/variants.h"

#include <mutex>

#include "data/backend.h"
#include "data/validate.h"

namespace nexus {
namespace {

std::string show(const VariantKey& key) {
  return std::string(name_of(key.dtype)) + " [" + std::to_string(key.experts) + ", " + std::to_string(key.n) + ", " +
         std::to_string(key.k) + "]" + (key.gated ? " gated" : "");
}

struct Tables {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<const VariantTable>> of;
};
Tables& tables() {
  static Tables* const all = new Tables;  // never destroyed: layers may be made while the process ends
  return *all;
}

}  // namespace

VariantKey variant_key(const GroupedLinearDesc& desc) {
  return {desc.dtype, desc.experts, desc.k, desc.n, is_gated(desc.epilogue)};
}

VariantTable::VariantTable(std::vector<Choice> choices, std::vector<Order> orders) {
  for (Choice& c : choices) {
    validate::at_least("rows", c.rows, 1);
    const std::string what = show(c.key) + " at " + std::to_string(c.rows) + " rows";
    if (c.variants.empty()) throw_invalid("variants: expected at least one for " + what + ", got none");
    for (const std::string& name : c.variants)
      if (name.empty()) throw_invalid("variants: expected names for " + what + ", got an empty one");
    if (!choices_.emplace(std::pair{c.key, c.rows}, std::move(c.variants)).second)
      throw_invalid("rows: expected one entry for " + what + ", got two");
  }
  for (Order& o : orders) {
    if (o.order.empty()) throw_invalid("order: expected a name for " + show(o.key) + ", got an empty one");
    if (!orders_.emplace(o.key, std::move(o.order)).second)
      throw_invalid("order: expected one entry for " + show(o.key) + ", got two");
  }
}

const std::vector<std::string>* VariantTable::choice(const VariantKey& key, int64_t rows) const {
  const auto found = choices_.find({key, rows});
  return found == choices_.end() ? nullptr : &found->second;
}

const std::string* VariantTable::order(const VariantKey& key) const {
  const auto found = orders_.find(key);
  return found == orders_.end() ? nullptr : &found->second;
}

std::string device_class(DeviceId device) {
  return device.is_cpu() ? cpu::device_class(device) : cuda::device_class(device);
}

void set_variant_table(const std::string& device_class, std::shared_ptr<const VariantTable> table) {
  if (device_class.empty()) throw_invalid("device_class: expected a name, got an empty one");
  Tables& all = tables();
  const std::lock_guard lock(all.mutex);
  all.of[device_class] = std::move(table);
}

std::shared_ptr<const VariantTable> variant_table(DeviceId device) {
  Tables& all = tables();
  {
    // Without tables nobody needs to ask what the device is.
    const std::lock_guard lock(all.mutex);
    if (all.of.empty()) return nullptr;
  }
  const std::string name = device_class(device);
  const std::lock_guard lock(all.mutex);
  const auto found = all.of.find(name);
  return found == all.of.end() ? nullptr : found->second;
}

}  // namespace nexus
