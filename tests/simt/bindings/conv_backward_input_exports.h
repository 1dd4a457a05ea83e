// The gradient at x of conv_relu_pool from plain parameters, of a binding that has defined plan_of
// and launch_planned: sizes are [N, C, H, W, K, R, S], strides those of grad_y, y, weight and
// grad_x in elements, geometry the operator's list; dtype is a DType.
#pragma once

#include <simt/export.h>

namespace {

struct PlainCall {
  imgfast::ConvReLUPoolParams params;
  ConvBackwardCall call{};

  PlainCall(const std::int64_t* sizes, const std::int64_t* strides, const std::int64_t* geometry,
            int dtype, const void* grad_y, const void* y, const void* weight, void* grad_x)
      : params(imgfast::conv_relu_pool_params(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                                              sizes[5], sizes[6], geometry)) {
    call.params = &params;
    call.dtype = static_cast<imgfast::DType>(dtype);
    call.grad_y = grad_y;
    call.y = y;
    call.weight = weight;
    call.grad_x = grad_x;
    std::copy_n(strides, 4, call.grad_y_stride);
    std::copy_n(strides + 4, 4, call.y_stride);
    std::copy_n(strides + 8, 4, call.weight_stride);
    std::copy_n(strides + 12, 4, call.grad_x_stride);
  }
};

}  // namespace

// told: the kernel's number, bytes of workspace, phases, and of the first phase's tile images, rows
// and columns.
SIMT_EXPORT int plan_conv_backward_input(const std::int64_t* sizes, const std::int64_t* strides,
                                         const std::int64_t* geometry, int dtype, int kernel,
                                         std::int64_t* told) {
  const PlainCall plain(sizes, strides, geometry, dtype, nullptr, nullptr, nullptr, nullptr);
  const ConvBackwardInputPlan plan = plan_of(plain.call, kernel);
  told[0] = static_cast<std::int64_t>(plan.kernel);
  told[1] = plan.workspace_bytes;
  told[2] = static_cast<std::int64_t>(plan.phases.size());
  if (plan.phases.empty()) return cudaSuccess;
  const ConvTile& tile = plan.phases[0].plan.tile;
  told[3] = tile.images;
  told[4] = tile.rows;
  told[5] = tile.cols;
  return cudaSuccess;
}

SIMT_EXPORT int conv_backward_input(const std::int64_t* sizes, const std::int64_t* strides,
                                    const std::int64_t* geometry, int dtype, int kernel,
                                    const void* grad_y, const void* y, const std::uint8_t* codes,
                                    const void* weight, void* grad_x, void* workspace) {
  PlainCall plain(sizes, strides, geometry, dtype, grad_y, y, weight, grad_x);
  plain.call.codes = codes;
  plain.call.workspace = workspace;
  return launch_planned(plain.call, plan_of(plain.call, kernel));
}
