// Happens-before: which accesses are ordered by barriers, and what to say of those that are not.
//
// Threads of a block are ordered by its barriers, threads of a warp also by __syncwarp of all its
// lanes. Shuffles and votes order nothing. Blocks of a launch are ordered only by a release and an
// acquire: write, fence, atomic; atomic on the same address, fence, read. Launches follow each
// other.
#pragma once

#include "machine.h"

namespace simt {

enum class Touch { kRead, kWrite, kAtomic };

// An atomic by the current thread: releases what the block's fences cover, acquires what others
// did.
void order_by_atomic(std::uintptr_t address);
bool ordered_across_blocks(const Access& earlier);

void report_race(const Access& earlier, bool earlier_wrote, Touch now, std::uintptr_t address,
                 std::uint32_t site);
void report_in_flight(const Access& earlier, std::uintptr_t address, std::uint32_t site);
void report_uninitialised(std::uintptr_t address, std::uint32_t site);
void report_stale(const Access& earlier, std::uintptr_t address, std::uint32_t site);

// Whether an access belongs to the memory's present life: a block's for shared memory, a launch's
// for global memory.
inline bool current(const Access& earlier, bool shared) {
  return shared ? earlier.block == machine.block : earlier.block >= machine.first_block;
}

inline bool ordered(const Access& earlier) {
  if (earlier.block != machine.block) return ordered_across_blocks(earlier);
  if ((earlier.flags & Access::kManyBlocks) != 0) return false;
  if (earlier.barrier != machine.barrier) return true;
  const Thread& thread = *machine.current;
  const bool one_thread = (earlier.flags & (Access::kManyThreads | Access::kManyWarps)) == 0;
  if (one_thread && earlier.thread == thread.id) return true;
  if ((earlier.flags & Access::kManyWarps) != 0) return false;
  const unsigned warp = thread.warp();
  return earlier.thread / kWarpThreads == warp && earlier.warp_sync < machine.warp_sync[warp];
}

inline Access access_now(std::uint32_t site, unsigned flags) {
  const Thread& thread = *machine.current;
  return {machine.block,
          machine.barrier,
          site,
          machine.warp_sync[thread.warp()],
          static_cast<std::uint16_t>(thread.id),
          static_cast<std::uint16_t>(flags)};
}

// Remembers a read beside earlier ones that it is not ordered with. The merged read stands for all
// of them, so it is ordered before a later access only if every one is.
inline void merge_read(Access& read, const Access& now) {
  if (read.block != now.block || (read.flags & Access::kManyBlocks) != 0) {
    read = now;
    read.flags = Access::kManyBlocks;
    return;
  }
  const bool same_warp = read.thread / kWarpThreads == now.thread / kWarpThreads;
  read.flags |= same_warp ? Access::kManyThreads : Access::kManyThreads | Access::kManyWarps;
  if (read.warp_sync < now.warp_sync) read.warp_sync = now.warp_sync;
}

// One access to the bytes of count cells, from cell on.
template <bool kShared, Touch kTouch>
inline void check_race(Cell* cell, std::size_t count, const Region& region, std::uintptr_t address,
                       std::uint32_t site, bool read_only_cache) {
  constexpr bool kAtomic = kTouch == Touch::kAtomic;
  const Access now = access_now(site, kAtomic ? Access::kAtomic : 0);
  const auto both_atomic = [](const Access& earlier) {
    return kAtomic && (earlier.flags & Access::kAtomic) != 0;
  };
  for (const Cell* end = cell + count; cell != end; ++cell, address += 1u << region.shift) {
    if (current(cell->write, kShared)) {
      if ((cell->write.flags & Access::kInFlight) != 0) {
        report_in_flight(cell->write, address, site);
      } else if (!ordered(cell->write) && !both_atomic(cell->write)) {
        report_race(cell->write, true, kTouch, address, site);
      } else if (read_only_cache) {
        report_stale(cell->write, address, site);
      }
    } else if (kTouch != Touch::kWrite &&
               (kShared || (region.role == Role::kOut && cell->write.block == 0))) {
      report_uninitialised(address, site);
    }
    if (kTouch == Touch::kRead) {
      if (!current(cell->read, kShared) || ordered(cell->read)) {
        cell->read = now;
      } else {
        merge_read(cell->read, now);
      }
    } else {
      if (current(cell->read, kShared) && !ordered(cell->read)) {
        report_race(cell->read, false, kTouch, address, site);
      }
      cell->write = now;
    }
  }
}

}  // namespace simt
