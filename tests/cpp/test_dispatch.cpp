// Choice of the instruction set: best first, the environment's override, and its errors.
//
// The choice is made once a process, so that each case runs in a child of its own.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "cpu/dispatch.h"

namespace {

namespace cpu = imgfast::cpu;

enum Outcome { kAsExpected = 0, kOther = 1, kThrew = 2 };

Outcome outcome(const char* override_name, const char* expected) {
  const pid_t child = fork();
  if (child == 0) {
    if (override_name != nullptr) {
      setenv("IMGFAST_ISA", override_name, 1);
    } else {
      unsetenv("IMGFAST_ISA");
    }
    try {
      cpu::kernels();
      _exit(std::strcmp(cpu::isa_name(cpu::active_isa()), expected) == 0 ? kAsExpected : kOther);
    } catch (const std::runtime_error& error) {
      _exit(std::strstr(error.what(), "IMGFAST_ISA") != nullptr ? kThrew : kOther);
    }
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? static_cast<Outcome>(WEXITSTATUS(status)) : kOther;
}

int failures = 0;

void check(bool passed, const char* what, const char* name) {
  std::printf("%s: %s %s\n", passed ? "ok" : "FAILED", what, name);
  failures += !passed;
}

}  // namespace

int main() {
  check(cpu::isa_supported(cpu::Isa::kGeneric), "every machine runs", "generic");

  const char* best = nullptr;
  for (const cpu::Isa isa : cpu::kIsas) {
    const char* name = cpu::isa_name(isa);
    if (cpu::isa_supported(isa)) {
      if (best == nullptr) best = name;
      check(outcome(name, name) == kAsExpected, "IMGFAST_ISA chooses", name);
    } else {
      check(outcome(name, name) == kThrew, "IMGFAST_ISA refuses what is not there:", name);
    }
  }
  check(outcome(nullptr, best) == kAsExpected, "without an override the best is chosen:", best);
  check(outcome("sse9", "") == kThrew, "IMGFAST_ISA refuses the unknown name", "sse9");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
