// A call of conv_relu_pool from plain parameters: sizes are [N, C, H, W, K, R, S], strides those of
// x, of weight and of y in elements, geometry the operator's list; dtype is a DType.
#pragma once

#include <simt/export.h>

#include "cuda/conv_plan.cuh"

namespace imgfast::cuda {

struct PlainCall {
  ConvReLUPoolParams params;
  ConvForwardCall call{};

  PlainCall(const std::int64_t* sizes, const std::int64_t* strides, const std::int64_t* geometry,
            int dtype, const void* x, const void* weight, const void* bias, void* y)
      : params(conv_relu_pool_params(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
                                     sizes[6], geometry)) {
    call.params = &params;
    call.dtype = static_cast<DType>(dtype);
    call.x = x;
    call.weight = weight;
    call.bias = bias;
    call.y = y;
    std::copy_n(strides, 4, call.x_stride);
    std::copy_n(strides + 4, 4, call.weight_stride);
    std::copy_n(strides + 8, 4, call.y_stride);
  }
};

// told: the kernel's number, bytes of workspace, blocks, images, rows and columns of a tile.
inline int tell(const ConvForwardPlan& plan, std::int64_t* told) {
  told[0] = static_cast<std::int64_t>(plan.kernel);
  told[1] = plan.workspace_bytes;
  told[2] = plan.blocks;
  told[3] = plan.tile.images;
  told[4] = plan.tile.rows;
  told[5] = plan.tile.cols;
  return cudaSuccess;
}

}  // namespace imgfast::cuda
