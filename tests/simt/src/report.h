// Findings: a kind, a place, a sentence. Places of access are written <pc:hex>, which the caller
// turns into file and line, for it has the tools for that.
#pragma once

#include <cstdint>
#include <string>

#include "machine.h"

namespace simt {

constexpr std::size_t kMaxReports = 20;

std::string place(std::uint32_t site);
std::string place(const char* file, int line);
std::string place(const Call& call);
std::string thread_name(unsigned thread);

// Adds a finding of the running kernel and block, once for each kind and pair of sites.
void report(const char* kind, const std::string& where, const std::string& text);
bool first_report(const char* kind, std::uint32_t site, std::uint32_t other = 0);

// The same, and ends the launch: what follows would make no sense. Never returns to the thread.
[[noreturn]] void stop(const char* kind, const std::string& where, const std::string& text);

std::size_t report_count();
void clear_reports();
// One a line: kind, place, text, separated by tabs.
std::string all_reports();
void set_kernel(const void* kernel);

}  // namespace simt
