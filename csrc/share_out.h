// Shares out the units of a kernel on the CPU among threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "cpu/scratch.h"

namespace imgfast {

// Multiply-adds below which a thread does not pay.
inline constexpr int64_t kWorthAThread = 1 << 18;

// run(begin, end, scratch) for all units, of `work` multiply-adds each. Every thread has a scratch
// of its own, that many bytes, which it keeps for the next such call.
template <class Run>
void share_out(int64_t units, int64_t work, int64_t scratch_bytes, const Run& run) {
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(1, work));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    thread_local cpu::Scratch buffer;
    run(begin, end, buffer.reserve(scratch_bytes));
  });
}

}  // namespace imgfast
