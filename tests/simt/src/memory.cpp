#include "memory.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>

#include "module.h"

namespace simt {
namespace {

Region nowhere{0, 0, Role::kIn, "", {}};

alignas(1024) unsigned char dynamic_buffer[Memory::kDynamicBytes];

}  // namespace

// Cells for bytes of whose numbers multiple is one: each old one is split.
void Region::refine(std::size_t multiple) {
  const unsigned finer = std::min<unsigned>(shift, std::countr_zero(multiple));
  const std::size_t count = ((bytes - 1) >> finer) + 1;
  std::vector<Cell> split(count, Cell{});
  if (!cells.empty()) {
    for (std::size_t i = 0; i < count; ++i) split[i] = cells[i >> (shift - finer)];
  }
  cells = std::move(split);
  shift = finer;
}

// --- what there is -------------------------------------------------------------------------------

void Memory::forget_recent() { recent_.fill(&nowhere); }

Region* Memory::insert(Region region) {
  auto* added = new Region(std::move(region));
  const auto place = std::lower_bound(
      regions_.begin(), regions_.end(), added->begin,
      [](const Region* other, std::uintptr_t begin) { return other->begin < begin; });
  regions_.insert(place, added);
  return added;
}

void Memory::erase_if(bool (*drop)(const Region&)) {
  forget_recent();
  std::erase_if(regions_, [drop](Region* region) {
    if (!drop(*region)) return false;
    delete region;
    return true;
  });
}

void Memory::add_buffer(const char* name, void* p, std::size_t bytes, Role role) {
  forget_recent();
  if (bytes > 0) insert({reinterpret_cast<std::uintptr_t>(p), bytes, role, name, {}});
}

void Memory::clear_buffers() {
  erase_if([](const Region& region) { return !region.shared(); });
}

void Memory::begin_launch(std::size_t dynamic_bytes) {
  erase_if([](const Region& region) { return region.shared(); });
  dynamic_ = reinterpret_cast<std::uintptr_t>(dynamic_buffer);
  dynamic_bytes_ = dynamic_bytes;
  carved_.clear();
  in_array_.assign(dynamic_bytes, false);
  if (dynamic_bytes > 0) {
    insert({dynamic_, dynamic_bytes, Role::kShared, "dynamic shared memory", {}});
  }
  const Segment segment = shared_segment();
  static_ = segment.begin;
  static_bytes_ = segment.bytes;
  for (const StaticVariable& variable : module().variables) {
    insert({static_ + variable.offset,
            variable.bytes,
            Role::kShared,
            "shared '" + variable.name + "'",
            {}});
  }
}

void Memory::poison_shared() {
  std::memset(dynamic_buffer, 0xff, dynamic_bytes_);
  for (const Region* region : regions_) {
    if (region->shared()) std::memset(reinterpret_cast<void*>(region->begin), 0xff, region->bytes);
  }
}

// Every thread carves the same few arrays.
void* Memory::carve(std::size_t offset, std::size_t bytes) {
  const std::pair<std::size_t, std::size_t> array{offset, bytes};
  if (std::find(carved_.begin(), carved_.end(), array) == carved_.end()) {
    carved_.push_back(array);
    const std::size_t end = std::min(offset + bytes, dynamic_bytes_);
    if (offset < end) std::fill(in_array_.begin() + offset, in_array_.begin() + end, true);
  }
  return reinterpret_cast<void*>(dynamic_ + offset);
}

// --- where an address lies -----------------------------------------------------------------------

Region* Memory::search(std::uintptr_t address) const {
  const auto next = std::upper_bound(
      regions_.begin(), regions_.end(), address,
      [](std::uintptr_t value, const Region* region) { return value < region->begin; });
  if (next == regions_.begin()) return nullptr;
  Region* region = *(next - 1);
  return address - region->begin < region->bytes ? region : nullptr;
}

bool Memory::in_shared(std::uintptr_t address) const {
  return address - dynamic_ < kDynamicBytes || address - static_ < static_bytes_;
}

bool Memory::is_compilers(std::uintptr_t address, bool write) const {
  for (const StaticVariable& guard : module().guards) {
    if (address - static_ - guard.offset < guard.bytes) return true;
  }
  return !write && address >= module().base && address < module().end && !in_shared(address);
}

std::string Memory::describe(std::uintptr_t address) const {
  if (const Region* region = search(address)) {
    return region->name + " byte " + std::to_string(address - region->begin) + " of " +
           std::to_string(region->bytes);
  }
  if (address - dynamic_ < kDynamicBytes) {
    return "dynamic shared memory byte " + std::to_string(address - dynamic_) + " of " +
           std::to_string(dynamic_bytes_);
  }
  if (address - static_ < static_bytes_) return "static shared memory between two variables";
  const Region* nearest = nullptr;
  std::uintptr_t distance = 1 << 20;  // further away, a buffer's name would only mislead
  for (const Region* region : regions_) {
    if (region->shared()) continue;
    const std::uintptr_t off =
        address < region->begin ? region->begin - address : address - region->begin - region->bytes;
    if (off < distance) {
      distance = off;
      nearest = region;
    }
  }
  if (nearest == nullptr) return "an address in no buffer";
  const auto byte = static_cast<std::intptr_t>(address - nearest->begin);
  return nearest->name + " byte " + std::to_string(byte) + " of " + std::to_string(nearest->bytes);
}

std::vector<std::string> Memory::unwritten() const {
  std::vector<std::string> found;
  for (const Region* region : regions_) {
    if (region->role != Role::kOut) continue;
    std::size_t missing = region->cells.empty() ? region->bytes : 0;
    std::size_t first = 0;
    for (std::size_t i = region->cells.size(); i-- > 0;) {
      if (region->cells[i].write.block != 0) continue;
      first = i << region->shift;
      missing += std::min<std::size_t>(std::size_t{1} << region->shift, region->bytes - first);
    }
    if (missing > 0) {
      found.push_back(region->name + ": " + std::to_string(missing) + " of " +
                      std::to_string(region->bytes) + " bytes, the first of them byte " +
                      std::to_string(first));
    }
  }
  return found;
}

}  // namespace simt
