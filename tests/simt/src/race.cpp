#include "race.h"

#include <algorithm>
#include <bitset>
#include <deque>
#include <unordered_map>

#include "report.h"

namespace simt {
namespace {

// What a block published by an atomic: what its threads wrote before their fences. A fence also
// covers what the block's other threads wrote before the last barrier ahead of it.
struct Release {
  std::uint32_t block;
  std::uint32_t fence_barrier;      // of the thread that did the atomic
  std::bitset<kMaxThreads> fenced;  // threads all of whose writes are covered
};

// A release that an atomic of the running block has seen, and the first fence behind it.
struct Acquire {
  Release release;
  unsigned thread;
  std::uint32_t barrier;
  std::uint64_t time;
  std::uint32_t fence_barrier = UINT32_MAX;
};

std::unordered_map<std::uintptr_t, std::deque<Release>> releases;  // of this launch
std::uint32_t releases_of = 0;
std::unordered_map<std::uint32_t, Acquire> acquires;  // of this block, by the other block
std::uint32_t acquires_of = 0;
std::uint64_t clock = 0;

void forget_older() {
  if (releases_of != machine.first_block) releases.clear();
  if (acquires_of != machine.block) acquires.clear();
  releases_of = machine.first_block;
  acquires_of = machine.block;
}

Release release_now() {
  const Thread& thread = *machine.current;
  Release release{machine.block, thread.fenced ? thread.fence_barrier : 0, {}};
  for (unsigned i = 0; i < machine.thread_count; ++i) {
    const Thread& other = machine.threads[i];
    const bool before = other.id == thread.id || other.fence_barrier < machine.barrier;
    if (other.fenced && before) release.fenced.set(i);
  }
  return release;
}

}  // namespace

void order_by_atomic(std::uintptr_t address) {
  forget_older();
  ++clock;
  auto& here = releases[address];
  for (const Release& release : here) {
    if (release.block == machine.block) continue;
    acquires.insert_or_assign(release.block,
                              Acquire{release, machine.current->id, machine.barrier, clock});
  }
  here.push_back(release_now());
}

void fence() {
  forget_older();
  Thread& thread = *machine.current;
  thread.fenced = true;
  thread.fence_barrier = machine.barrier;
  thread.fence_time = ++clock;
  for (auto& [block, acquire] : acquires) {
    if (acquire.thread == thread.id && acquire.fence_barrier == UINT32_MAX) {
      acquire.fence_barrier = machine.barrier;
    }
  }
}

bool ordered_across_blocks(const Access& earlier) {
  if (earlier.block < machine.first_block) return true;
  forget_older();
  const auto found = acquires.find(earlier.block);
  if (found == acquires.end() || (earlier.flags & Access::kManyBlocks) != 0) return false;
  const Acquire& acquire = found->second;
  const bool many = (earlier.flags & (Access::kManyThreads | Access::kManyWarps)) != 0;
  const bool released = earlier.barrier < acquire.release.fence_barrier ||
                        (!many && acquire.release.fenced[earlier.thread]);
  const Thread& thread = *machine.current;
  const bool own_fence = thread.fence_time > acquire.time &&
                         (thread.id == acquire.thread || thread.fence_barrier > acquire.barrier);
  return released && (own_fence || acquire.fence_barrier < machine.barrier);
}

// --- reports -------------------------------------------------------------------------------------

namespace {

std::string who(const Access& access) {
  return access.block == machine.block ? thread_name(access.thread) : "a thread of another block";
}

}  // namespace

void report_race(const Access& earlier, bool earlier_wrote, Touch now, std::uintptr_t address,
                 std::uint32_t site) {
  const auto sites = std::minmax(earlier.site, site);
  if (!first_report("data race", sites.first, sites.second)) return;
  const char* verb = now == Touch::kRead ? "read" : now == Touch::kWrite ? "write" : "atomic";
  report("data race", place(site),
         std::string(verb) + " of " + machine.memory.describe(address) + " by " +
             thread_name(machine.current->id) + " against " +
             (earlier_wrote ? "the write by " : "the read by ") + who(earlier) + " at " +
             place(earlier.site) + " with nothing that orders them");
}

void report_in_flight(const Access& earlier, std::uintptr_t address, std::uint32_t site) {
  if (!first_report("copy in flight", earlier.site, site)) return;
  report("copy in flight", place(site),
         machine.memory.describe(address) + " is touched by " + thread_name(machine.current->id) +
             " before " + thread_name(earlier.thread) + " has waited for its copy at " +
             place(earlier.site));
}

void report_uninitialised(std::uintptr_t address, std::uint32_t site) {
  if (!first_report("uninitialised read", site)) return;
  report("uninitialised read", place(site),
         machine.memory.describe(address) + " is read by " + thread_name(machine.current->id) +
             " before it is written");
}

void report_stale(const Access& earlier, std::uintptr_t address, std::uint32_t site) {
  if (!first_report("stale read", earlier.site, site)) return;
  report("stale read", place(site),
         machine.memory.describe(address) + " is read through the read-only cache by " +
             thread_name(machine.current->id) + ", after the write at " + place(earlier.site) +
             " in the same launch");
}

}  // namespace simt
