// The weight and bias gradients of conv_relu_pool from plain parameters, of a binding that has
// defined plan_of and launch_planned: sizes are [N, C, H, W, K, R, S], strides those of x, grad_y,
// y and grad_weight in elements, geometry the operator's list; dtype is a DType; at most `blocks`
// share out the positions, of a kernel that is named.
#pragma once

#include <simt/export.h>

namespace {

struct PlainCall {
  imgfast::ConvReLUPoolParams params;
  ConvBackwardCall call{};

  PlainCall(const std::int64_t* sizes, const std::int64_t* strides, const std::int64_t* geometry,
            int dtype, void* grad_weight, void* grad_bias)
      : params(imgfast::conv_relu_pool_params(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4],
                                              sizes[5], sizes[6], geometry)) {
    call.params = &params;
    call.dtype = static_cast<imgfast::DType>(dtype);
    std::copy_n(strides, 4, call.x_stride);
    std::copy_n(strides + 4, 4, call.grad_y_stride);
    std::copy_n(strides + 8, 4, call.y_stride);
    std::copy_n(strides + 12, 4, call.grad_weight_stride);
    call.grad_weight = grad_weight;
    call.grad_bias = grad_bias;
  }
};

}  // namespace

// told: the kernel's number, bytes of workspace, parts, parts of the bias, positions of a box: its
// images, rows and columns.
SIMT_EXPORT int plan_conv_backward_weight(const std::int64_t* sizes, const std::int64_t* strides,
                                          const std::int64_t* geometry, int dtype, int kernel,
                                          int blocks, void* grad_weight, void* grad_bias,
                                          std::int64_t* told) {
  const PlainCall plain(sizes, strides, geometry, dtype, grad_weight, grad_bias);
  const ConvBackwardWeightPlan plan = plan_of(plain.call, kernel, blocks);
  told[0] = static_cast<std::int64_t>(plan.kernel);
  told[1] = plan.workspace_bytes;
  told[2] = plan.parts;
  told[3] = plan.bias_parts;
  told[4] = plan.tile.images;
  told[5] = plan.tile.conv_rows;
  told[6] = plan.tile.conv_cols;
  return cudaSuccess;
}

SIMT_EXPORT int conv_backward_weight(const std::int64_t* sizes, const std::int64_t* strides,
                                     const std::int64_t* geometry, int dtype, int kernel,
                                     int blocks, const void* grad_y, const void* y,
                                     const std::uint8_t* codes, const void* x, void* grad_weight,
                                     void* grad_bias, void* workspace) {
  PlainCall plain(sizes, strides, geometry, dtype, grad_weight, grad_bias);
  ConvBackwardCall& call = plain.call;
  call.grad_y = grad_y;
  call.y = y;
  call.codes = codes;
  call.x = x;
  call.workspace = workspace;
  return launch_planned(call, plan_of(call, kernel, blocks));
}
