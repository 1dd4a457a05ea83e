// Accesses that end a launch, and accesses that the emulator's headers declare, not the compiler.
#include "access.h"

#include <cstring>

#include "report.h"

namespace simt {

void stop_at_bounds(std::uintptr_t address, std::size_t bytes, Touch touch, std::uint32_t site) {
  const char* verb = touch == Touch::kRead ? "read" : "write";
  const char* redzone = machine.memory.in_redzone(address, bytes) ? ", in no carved array," : "";
  stop("out of bounds", place(site),
       std::string(verb) + " of " + std::to_string(bytes) + " bytes at " +
           machine.memory.describe(address) + redzone + " by " + thread_name(machine.current->id));
}

void stop_at_write(std::uintptr_t address, std::uint32_t site) {
  stop("read-only write", place(site),
       "write of the input " + machine.memory.describe(address) + " by " +
           thread_name(machine.current->id));
}

void stop_at_alignment(std::uintptr_t address, std::size_t bytes, std::uint32_t site) {
  stop("misaligned", place(site),
       "access of " + std::to_string(bytes) + " bytes at " + machine.memory.describe(address) +
           " by " + thread_name(machine.current->id));
}

void stop_at_limit(std::uint32_t site) {
  stop("endless", place(site),
       std::to_string(machine.options.limit) + " accesses and no end, the last one by " +
           thread_name(machine.current->id));
}

void read(void* to, const void* from, std::size_t bytes, Cache cache) {
  access<Touch::kRead>(reinterpret_cast<std::uintptr_t>(from), bytes, true,
                       site_of(__builtin_return_address(0)), cache == Cache::kReadOnly);
  std::memcpy(to, from, bytes);
}

void write(void* to, const void* from, std::size_t bytes) {
  access<Touch::kWrite>(reinterpret_cast<std::uintptr_t>(to), bytes, true,
                        site_of(__builtin_return_address(0)));
  std::memcpy(to, from, bytes);
}

void touch_atomic(void* p, int bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  access<Touch::kAtomic>(address, bytes, true, site_of(__builtin_return_address(0)));
  if (!machine.memory.in_shared(address)) order_by_atomic(address);
}

void* carve(std::size_t offset, std::size_t bytes) { return machine.memory.carve(offset, bytes); }

void fail(const char* what, const char* file, int line) {
  stop("assertion", place(file, line),
       std::string(what) + " by " + thread_name(machine.current->id));
}

}  // namespace simt
