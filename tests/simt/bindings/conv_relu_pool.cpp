// conv_relu_pool's forward for the emulator. sizes are [N, C, H, W, K, R, S], strides those of x,
// of weight and of y in elements, geometry the operator's list; dtype is a DType.
#include <simt/export.h>

#include "cuda/conv_forward.cuh"

using namespace imgfast;
using namespace imgfast::cuda;

namespace {

struct Call {
  ConvReLUPoolParams params;
  ConvForwardCall call{};

  Call(const std::int64_t* sizes, const std::int64_t* strides, const std::int64_t* geometry,
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

  // The chooser's plan, or that of the kernel with this number.
  ConvForwardPlan plan(int kernel) const {
    return kernel < 0 ? plan_conv_forward(call)
                      : plan_conv_forward(call, static_cast<ConvKernel>(kernel));
  }
};

}  // namespace

// told: the kernel's number, bytes of workspace, blocks, images, rows and columns of a tile.
SIMT_EXPORT int plan_conv_relu_pool(const std::int64_t* sizes, const std::int64_t* strides,
                                    const std::int64_t* geometry, int dtype, int kernel,
                                    const void* x, const void* weight, void* y,
                                    std::int64_t* told) {
  const Call call(sizes, strides, geometry, dtype, x, weight, nullptr, y);
  const ConvForwardPlan plan = call.plan(kernel);
  told[0] = static_cast<std::int64_t>(plan.kernel);
  told[1] = plan.workspace_bytes;
  told[2] = plan.blocks;
  told[3] = plan.tile.images;
  told[4] = plan.tile.rows;
  told[5] = plan.tile.cols;
  return cudaSuccess;
}

SIMT_EXPORT int conv_relu_pool(const std::int64_t* sizes, const std::int64_t* strides,
                               const std::int64_t* geometry, int dtype, int kernel, const void* x,
                               const void* weight, const void* bias, void* y, std::uint8_t* codes,
                               void* workspace) {
  Call call(sizes, strides, geometry, dtype, x, weight, bias, y);
  call.call.codes = codes;
  call.call.workspace = workspace;
  return launch_conv_forward(call.call, call.plan(kernel), nullptr);
}
