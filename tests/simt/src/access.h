// What happens at every access of a kernel to memory.
#pragma once

#include "machine.h"
#include "race.h"

namespace simt {

// Out-of-line parts: reports that end the launch, and what few accesses need.
[[noreturn]] void stop_at_bounds(std::uintptr_t address, std::size_t bytes, Touch touch,
                                 std::uint32_t site);
[[noreturn]] void stop_at_write(std::uintptr_t address, std::uint32_t site);
[[noreturn]] void stop_at_alignment(std::uintptr_t address, std::size_t bytes, std::uint32_t site);
[[noreturn]] void stop_at_limit(std::uint32_t site);
void profile_access(const Region& region, std::uintptr_t address, std::size_t bytes, bool write,
                    std::uint32_t site);

// bytes is at most 16, and a power of two where aligned is asked for.
template <Touch kTouch>
inline __attribute__((always_inline)) void access(std::uintptr_t address, std::size_t bytes,
                                                  bool aligned, std::uint32_t site,
                                                  bool read_only_cache = false) {
  if (address - machine.stack < machine.stack_bytes) return;
  Region* region = machine.memory.find(address, site);
  if (region == nullptr) [[unlikely]] {
    if (machine.memory.is_compilers(address, kTouch != Touch::kRead)) return;
    stop_at_bounds(address, bytes, kTouch, site);
  }
  const std::size_t offset = address - region->begin;
  if (offset + bytes > region->bytes) [[unlikely]]
    stop_at_bounds(address, bytes, kTouch, site);
  if (aligned && (address & (bytes - 1)) != 0) [[unlikely]] {
    stop_at_alignment(address, bytes, site);
  }
  if (++machine.accesses == static_cast<std::uint64_t>(machine.options.limit)) [[unlikely]] {
    stop_at_limit(site);
  }
  if (machine.options.profile != 0) [[unlikely]] {
    profile_access(*region, address, bytes, kTouch != Touch::kRead, site);
  }
  if (region->shared()) {
    if (machine.memory.in_redzone(address, bytes)) [[unlikely]] {
      stop_at_bounds(address, bytes, kTouch, site);
    }
    std::size_t count = 0;
    Cell* cell = region->shadow(offset, bytes, &count);
    check_race<true, kTouch>(cell, count, *region, address, site, false);
  } else if (region->writable()) {
    if (kTouch == Touch::kWrite) machine.current->fenced = false;
    std::size_t count = 0;
    Cell* cell = region->shadow(offset, bytes, &count);
    check_race<false, kTouch>(cell, count, *region, address, site, read_only_cache);
  } else if (kTouch != Touch::kRead) {
    stop_at_write(address, site);
  }
  if (machine.options.preempt != 0) [[unlikely]] {
    if (draw() % static_cast<std::uint64_t>(machine.options.preempt) == 0) yield();
  }
}

}  // namespace simt
