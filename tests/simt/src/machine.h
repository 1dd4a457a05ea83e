// The state of the emulated machine: options, the block that runs, its threads. Blocks run one at a
// time, and of their threads one at a time, so none of this is guarded.
#pragma once

#include <simt/simt.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fiber.h"
#include "memory.h"

namespace simt {

constexpr unsigned kWarpThreads = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Options {
  long long seed = 0;           // 0: blocks and threads in order; else an order drawn from it
  long long preempt = 0;        // n: also switch threads at one access in n, about
  long long profile = 0;        // count sectors and bank passes
  long long limit = 500000000;  // accesses of a launch, after which it is taken for endless
  long long left_out = 0;       // the number of a mutant's synchronisation point
};

// A copy from global to shared memory that this thread has not waited for.
struct PendingCopy {
  unsigned char* shared;
  const unsigned char* global;
  int bytes;
  bool valid;
  unsigned group;
  std::uint32_t site;
};

// A call that threads make together. They match by file and line: an optimiser may have made
// several instructions of one line. Where a wrapper's line is all that these tell, site tells the
// kernel's.
struct Call {
  const char* what;
  const char* file;
  int line;
  std::uint32_t site = 0;
};

using Act = void (*)(void** requests, unsigned lanes);

struct Thread {
  enum class State : std::uint8_t { kReady, kInWarp, kInBlock, kDone };

  void* stack_pointer;
  unsigned id;
  Index3 index;
  State state;

  // What it waits for: a collective of its warp or a barrier of its block.
  Call call;
  unsigned mask;
  void* request;
  Act act;
  Vote vote;
  int predicate;
  int vote_result;

  // Since its last fence it has written nothing to global memory.
  bool fenced;
  std::uint32_t fence_barrier;  // the block's barriers before that fence
  std::uint64_t fence_time;

  std::vector<PendingCopy> copies;
  unsigned copy_group;

  unsigned lane() const { return id % kWarpThreads; }
  unsigned warp() const { return id / kWarpThreads; }
};

struct Machine {
  Options options;
  Memory memory;
  std::uintptr_t code = 0;  // where the module of the kernels is loaded

  Thread threads[kMaxThreads];
  unsigned thread_count = 0;
  unsigned warp_count = 0;
  unsigned done_count = 0;
  Thread* current = nullptr;
  // Accesses to [stack, stack + stack_bytes) are a thread's own business. While no thread runs,
  // that is all memory: the launcher's code is compiled with the kernel's.
  std::uintptr_t stack = 0;
  std::size_t stack_bytes = SIZE_MAX;
  bool stopped = false;  // by an error after which the launch cannot go on

  std::uint32_t block = 0;        // number of the block that runs, over all launches
  std::uint32_t first_block = 1;  // of this launch
  std::uint32_t barrier = 0;
  std::uint16_t warp_sync[kMaxThreads / kWarpThreads];

  std::uint64_t accesses = 0;  // of this launch
  std::uint64_t total_accesses = 0;
  std::uint64_t total_threads = 0;

  bool running() const { return stack_bytes != SIZE_MAX; }
};

extern Machine machine;

// A place of access: the return address of the call that reported it, from the module's start on.
inline std::uint32_t site_of(const void* return_address) {
  return static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(return_address) -
                                    machine.code);
}

// --- scheduler.cpp -------------------------------------------------------------------------------

// Leaves the current thread to let others run.
void yield();
std::uint64_t draw();

// The threads of mask that have not exited.
unsigned live_lanes(unsigned warp);

// --- collectives.cpp -----------------------------------------------------------------------------

// Completes what lane 0 of thread's warp, or another one, waits for if all that it needs wait too.
bool complete_warp(const Thread& thread);
// Lets the block's threads pass a barrier if all of them are there.
bool complete_block();
// Waits for the lanes of mask that have not exited to call the same; then act sees the requests.
// Returns with all of them served.
void meet(const Call& call, unsigned mask, void* request, Act act);

// --- async_copy.cpp ------------------------------------------------------------------------------

void check_copies_at_exit(const Thread& thread);

}  // namespace simt
