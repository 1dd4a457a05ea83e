// The shared library that holds the kernels and this runtime: its addresses and its symbols.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace simt {

struct StaticVariable {
  std::string name;
  std::size_t offset;  // in the thread-local segment
  std::size_t bytes;
};

struct Module {
  std::string path;
  std::uintptr_t base = 0;
  std::uintptr_t end = 0;
  std::unordered_map<std::uintptr_t, std::string> functions;  // by address, mangled
  // What the compiler puts beside a static variable of class type to construct it once.
  std::vector<StaticVariable> guards;
  std::vector<StaticVariable> variables;  // __shared__ outside of dynamic memory
};

const Module& module();

// The function at an address, with template arguments, without parameters.
std::string kernel_name(const void* kernel);

// The thread-local segment, where __shared__ variables lie, of the calling thread of the system.
struct Segment {
  std::uintptr_t begin;
  std::size_t bytes;
};
Segment shared_segment();

}  // namespace simt
