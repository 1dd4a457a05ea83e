#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) || !defined(__linux__)
#error "simt: the switch of fibers is written for x86-64 and Linux"
#endif

// Registers that a callee must keep, by the System V ABI. What is left is saved by the caller.
asm(R"(
.text
.globl simt_switch_fiber
.hidden simt_switch_fiber
.type simt_switch_fiber, @function
simt_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_fiber, . - simt_switch_fiber
)");

namespace simt {
namespace {

constexpr int kSavedRegisters = 6;

char* stacks_in_use = nullptr;

char* allocate_stacks() {
  void* stacks = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) {
    std::perror("simt: no memory for the stacks of threads");
    std::abort();
  }
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  for (unsigned thread = 0; thread < kMaxThreads; ++thread) {
    mprotect(static_cast<char*>(stacks) + thread * kStackBytes, page, PROT_NONE);
  }
  return static_cast<char*>(stacks);
}

}  // namespace

void* share_stacks(void* given) {
  if (given != nullptr) stacks_in_use = static_cast<char*>(given);
  if (stacks_in_use == nullptr) stacks_in_use = allocate_stacks();
  return stacks_in_use;
}

std::uintptr_t stack_begin(unsigned thread) {
  return reinterpret_cast<std::uintptr_t>(stacks_in_use) + thread * kStackBytes;
}

void* new_fiber(unsigned thread, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack_begin(thread) + kStackBytes);
  *--top = nullptr;  // in place of a return address: entry finds the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  return top;
}

}  // namespace simt
