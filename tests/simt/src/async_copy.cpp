// cp.async: the destination is in flight, and holds garbage, until the thread has waited for it.
#include <algorithm>
#include <cstring>

#include "access.h"
#include "report.h"

namespace simt {
namespace {

// Marks the destination as written by the current thread just now.
void mark(const PendingCopy& copy, unsigned flags) {
  const auto address = reinterpret_cast<std::uintptr_t>(copy.shared);
  Region* region = machine.memory.find(address, copy.site);
  std::size_t count = 0;
  Cell* cell = region->shadow(address - region->begin, copy.bytes, &count);
  for (std::size_t i = 0; i < count; ++i) cell[i].write = access_now(copy.site, flags);
}

void complete(const PendingCopy& copy) {
  if (copy.valid) {
    std::memcpy(copy.shared, copy.global, copy.bytes);
  } else {
    std::memset(copy.shared, 0, copy.bytes);
  }
  mark(copy, 0);
}

}  // namespace

void cp_async(void* shared, const void* global, int bytes, bool valid) {
  const std::uint32_t site = site_of(__builtin_return_address(0));
  const auto to = reinterpret_cast<std::uintptr_t>(shared);
  if (!machine.memory.in_shared(to)) {
    stop("out of bounds", place(site),
         "cp.async to " + machine.memory.describe(to) + ", which is not shared memory, by " +
             thread_name(machine.current->id));
  }
  access<Touch::kWrite>(to, bytes, true, site);
  if (valid) access<Touch::kRead>(reinterpret_cast<std::uintptr_t>(global), bytes, true, site);
  Thread& thread = *machine.current;
  const PendingCopy copy{static_cast<unsigned char*>(shared),
                         static_cast<const unsigned char*>(global),
                         bytes,
                         valid,
                         thread.copy_group,
                         site};
  mark(copy, Access::kInFlight);
  std::memset(shared, 0xff, bytes);
  thread.copies.push_back(copy);
}

void cp_async_commit() { ++machine.current->copy_group; }

void cp_async_wait(int pending) {
  Thread& thread = *machine.current;
  const auto arrived = [&](const PendingCopy& copy) {
    return copy.group + static_cast<unsigned>(pending) < thread.copy_group;
  };
  for (const PendingCopy& copy : thread.copies) {
    if (arrived(copy)) complete(copy);
  }
  std::erase_if(thread.copies, arrived);
}

// Nobody can use such a copy: a wait is missing, or the copy is one too many.
void check_copies_at_exit(const Thread& thread) {
  if (thread.copies.empty()) return;
  const PendingCopy& copy = thread.copies.front();
  if (!first_report("copy not waited for", copy.site)) return;
  report("copy not waited for", place(copy.site),
         thread_name(thread.id) + " exits with " + std::to_string(thread.copies.size()) +
             " copies in flight");
}

}  // namespace simt
