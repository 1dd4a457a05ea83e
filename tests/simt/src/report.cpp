#include "report.h"

#include <cstdio>
#include <cstdlib>
#include <set>
#include <tuple>
#include <vector>

#include "module.h"

namespace simt {
namespace {

std::vector<std::string> reports;
std::set<std::tuple<std::string, std::uint32_t, std::uint32_t>> seen;
std::string kernel_in_reports;

std::string triple(const Index3& index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
         std::to_string(index.z) + ")";
}

}  // namespace

std::string place(std::uint32_t site) {
  char text[24];
  std::snprintf(text, sizeof text, "<pc:%x>", site);
  return text;
}

std::string place(const char* file, int line) {
  const std::string path = file;
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(line);
}

std::string place(const Call& call) {
  return call.site != 0 ? place(call.site) : place(call.file, call.line);
}

std::string thread_name(unsigned thread) {
  return "thread " + triple(machine.threads[thread].index);
}

bool first_report(const char* kind, std::uint32_t site, std::uint32_t other) {
  return seen.emplace(kind, site, other).second;
}

void report(const char* kind, const std::string& where, const std::string& text) {
  if (reports.size() >= kMaxReports) return;
  reports.push_back(std::string(kind) + "\t" + where + "\t" + text + ", in " + kernel_in_reports +
                    " block " + triple(simt_blockIdx));
}

void stop(const char* kind, const std::string& where, const std::string& text) {
  report(kind, where, text);
  machine.stopped = true;
  yield();
  std::abort();  // a stopped launch resumes no thread
}

std::size_t report_count() { return reports.size(); }

void clear_reports() {
  reports.clear();
  seen.clear();
}

std::string all_reports() {
  std::string text;
  for (const std::string& line : reports) text += line + "\n";
  return text;
}

void set_kernel(const void* kernel) { kernel_in_reports = kernel_name(kernel); }

}  // namespace simt
