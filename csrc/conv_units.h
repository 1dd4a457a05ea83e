// A convolution on the CPU: its tensors as the kernels see them, and its work in units for threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "cpu/conv_relu_pool.h"
#include "cpu/scratch.h"
#include "tensor_dtype.h"

namespace imgfast {

inline constexpr int64_t kUnitBytes = 128 << 10;  // input rows that one unit of forward work stages
inline constexpr int64_t kWorthAThread = 1
                                         << 16;  // multiply-adds below which a thread does not pay

// Buffers of the calling thread; each worker has its own for the kernel it runs.
inline thread_local cpu::Scratch shared_buffer, thread_buffer;

inline cpu::View4 view(const torch::stable::Tensor& t) {
  const auto strides = t.strides();
  return {t.data_ptr(),
          {strides[0], strides[1], strides[2], strides[3]},
          dtype_of(t, "convolution", "a tensor")};
}

inline int64_t work_per_row(const ConvReLUPoolParams& p) {
  return std::max<int64_t>(
      1, p.K * p.PW * p.pool_stride_h * p.pool_stride_w * p.R * p.S * (p.C / p.groups));
}

inline int64_t threads_for(int64_t work) {
  return std::clamp<int64_t>(work / kWorthAThread, 1, torch::stable::get_num_threads());
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Packs the weight of a call, by all threads. A byte takes about as long as a multiply-add.
template <class Kernel, class Args>
void pack(const Kernel& kernel, const Args& args) {
  const int64_t units = kernel.pack_units(args);
  const int64_t grain = std::max<int64_t>(1, kWorthAThread * units / (kernel.pack_size(args) + 1));
  torch::stable::parallel_for(0, units, grain,
                              [&](int64_t begin, int64_t end) { kernel.pack(args, begin, end); });
}

// Shares out direct work in units whose input rows stay in cache, enough of them to keep every
// thread busy. Of rows and filters those are divided that are more to read.
inline void divide_direct(cpu::ConvForwardArgs& args, int64_t element) {
  const ConvReLUPoolParams& p = *args.params;
  const int64_t C = p.C / p.groups, K = p.K / p.groups;
  const int64_t wanted = cpu::kUnitsPerThread * args.threads;
  const int64_t row_bytes = p.pool_stride_h * p.stride_h * (p.W + 2 * p.padding_w) * C * element;
  const int64_t filter_bytes = p.R * p.S * C * element;
  int64_t rows = p.PH, blocks = ceil_div(K, cpu::kFilterStep);
  while (rows > 1 && rows * row_bytes > kUnitBytes) rows = (rows + 1) / 2;
  const auto units = [&] {
    return p.N * p.groups * ceil_div(p.PH, rows) * ceil_div(K, blocks * cpu::kFilterStep);
  };
  while (args.threads > 1 && units() < wanted && (rows > 1 || blocks > 1)) {
    const bool filters_are_more = blocks * cpu::kFilterStep * filter_bytes > rows * row_bytes;
    if (rows == 1 || (blocks > 1 && filters_are_more)) {
      blocks = (blocks + 1) / 2;
    } else {
      rows = (rows + 1) / 2;
    }
  }
  args.unit_rows = rows;
  args.unit_filters = blocks * cpu::kFilterStep;
}

// Shares out depthwise work in units whose strips stay in cache, enough of them to keep every
// thread busy. `rows` in all take `strip_rows` rows of strips each, and `halo` of them more.
template <class Args>
void divide_depthwise(Args& args, int64_t rows, int64_t strip_rows, int64_t halo) {
  const ConvReLUPoolParams& p = *args.params;
  const int64_t wanted = args.threads > 1 ? cpu::kUnitsPerThread * args.threads : 1;
  const int64_t step_bytes =
      (p.W + 2 * p.padding_w) * cpu::kFilterStep * (args.x.dtype == DType::kFloat64 ? 8 : 4);
  const int64_t steps = ceil_div(p.C, cpu::kFilterStep);
  args.unit_rows = rows;
  // Long runs of memory: many channels of a row where they lie together, many rows where apart.
  int64_t blocks = args.x.stride[1] == 1 ? steps : 1;
  const auto too_large = [&] {
    return (args.unit_rows * strip_rows + halo) * blocks * step_bytes > kUnitBytes ||
           p.N * ceil_div(rows, args.unit_rows) * ceil_div(steps, blocks) < wanted;
  };
  while (too_large() && (args.unit_rows > 1 || blocks > 1)) {
    // The halo is read once more for each unit.
    if (blocks == 1 || (args.unit_rows > 1 && args.unit_rows * strip_rows >= 4 * halo)) {
      args.unit_rows = (args.unit_rows + 1) / 2;
    } else {
      blocks = (blocks + 1) / 2;
    }
  }
  args.unit_filters = blocks * cpu::kFilterStep;
}

}  // namespace imgfast
