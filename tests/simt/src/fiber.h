// Fibers: the stacks of a block's threads and the switch from one to another.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

constexpr unsigned kMaxThreads = 1024;  // a block
constexpr std::size_t kStackBytes = 128 * 1024;

// Uses the stacks of another module if there is one, else makes some. A process may have only so
// many regions of memory, and the guards of one module's stacks are two thousand.
void* share_stacks(void* given);

// Lowest address of thread's stack. Pages are taken when they are touched; the lowest one is a
// guard, so that an overflow ends the process instead of writing into a neighbour.
std::uintptr_t stack_begin(unsigned thread);

// The stack pointer of a fiber that has not run yet: it starts in entry, which never returns.
void* new_fiber(unsigned thread, void (*entry)());

// Saves this fiber's stack pointer in *from and continues the fiber whose saved one is to.
extern "C" void simt_switch_fiber(void** from, void* to);

}  // namespace simt
