// Large pages for large results. Memory that is new to the process costs a page fault for every
// 4 KB, which for the gradient of a large input is as much as a third of its arithmetic; where the
// system grants pages of 2 MB on request, there are 512 times fewer.
#pragma once

#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace imgfast::cpu {

inline constexpr int64_t kHugePage = 2 << 20;
inline constexpr int64_t kWorthHugePages = 4 << 20;  // below, faults are few or allocators reuse

// A hint: contents and ownership stay as they are, and a system that does not know it ignores it.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  if (bytes < kWorthHugePages) return;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace imgfast::cpu
