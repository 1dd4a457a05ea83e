// Numbers as types: how a loop's length at run time chooses a kernel unrolled for it.
#pragma once

#include <cstdint>

namespace imgfast::cpu::IMGFAST_ISA {

template <int N>
struct Count {
  static constexpr int kValue = N;
};

// function(Count<n>), for n from 1 to kMost; kMost from there on.
template <int kMost, class Function>
static inline auto with_count(int64_t n, Function function) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_count<kMost - 1>(n, function);
  }
  return function(Count<kMost>{});
}

}  // namespace imgfast::cpu::IMGFAST_ISA
