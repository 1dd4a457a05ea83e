// What the caller of kernels sees: options, buffers, reports, the profile. C functions, for ctypes.
#include <simt/export.h>

#include <cstring>
#include <string>

#include "fiber.h"
#include "machine.h"
#include "profile.h"
#include "report.h"

using simt::machine;

// Before the first run: with null, or with what another module returned.
SIMT_EXPORT void* simt_share_stacks(void* given) { return simt::share_stacks(given); }

// Starts anew: no buffers, no reports, the default options.
SIMT_EXPORT void simt_reset() {
  machine.memory.clear_buffers();
  machine.options = {};
  machine.total_accesses = 0;
  machine.total_threads = 0;
  simt::clear_reports();
  simt::clear_profile();
}

// False if there is no such option.
SIMT_EXPORT bool simt_set_option(const char* name, long long value) {
  const struct {
    const char* name;
    long long& value;
  } options[] = {{"seed", machine.options.seed},
                 {"preempt", machine.options.preempt},
                 {"profile", machine.options.profile},
                 {"limit", machine.options.limit},
                 {"left_out", machine.options.left_out}};
  for (const auto& option : options) {
    if (std::strcmp(option.name, name) != 0) continue;
    option.value = value;
    return true;
  }
  return false;
}

// role: 0 input, 1 output that holds nothing yet, 2 both.
SIMT_EXPORT void simt_add_buffer(const char* name, void* p, std::size_t bytes, int role) {
  constexpr simt::Role kRoles[] = {simt::Role::kIn, simt::Role::kOut, simt::Role::kInOut};
  machine.memory.add_buffer(name, p, bytes, kRoles[role]);
}

// Kernels may touch none of the memory any more.
SIMT_EXPORT void simt_clear_buffers() { machine.memory.clear_buffers(); }

SIMT_EXPORT const char* simt_reports() {
  static std::string text;
  text = simt::all_reports();
  return text.c_str();
}

// Outputs with bytes that no thread wrote, one a line.
SIMT_EXPORT const char* simt_unwritten() {
  static std::string text;
  text.clear();
  for (const std::string& line : machine.memory.unwritten()) text += line + "\n";
  return text.c_str();
}

SIMT_EXPORT const char* simt_profile() {
  static std::string text;
  text = simt::profile_rows();
  return text.c_str();
}

SIMT_EXPORT unsigned long long simt_access_count() { return machine.total_accesses; }
SIMT_EXPORT unsigned long long simt_thread_count() { return machine.total_threads; }
