// conv_relu_pool around a convolution of others, for the emulator: sizes are [N, C, H, W, K, R, S],
// geometry the operator's list, strides those of y, or of grad_y and y, in elements; dtype is a
// DType.
#include "cuda/conv_relu_pool_epilogue.cuh"

#include <simt/export.h>

using namespace imgfast;
using namespace imgfast::cuda;

namespace {

ConvReLUPoolParams params_of(const std::int64_t* sizes, const std::int64_t* geometry) {
  return conv_relu_pool_params(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6],
                               geometry);
}

}  // namespace

SIMT_EXPORT int conv_relu_pool_epilogue(const std::int64_t* sizes, const std::int64_t* geometry,
                                        int dtype, const std::int64_t* y_stride, const void* sums,
                                        const void* bias, void* y, std::uint8_t* codes) {
  const ConvReLUPoolParams p = params_of(sizes, geometry);
  ConvShape shape{};
  if (!plan_conv_epilogue(p, shape)) return cudaErrorInvalidValue;
  ConvForwardCall call{};
  call.params = &p;
  call.dtype = static_cast<DType>(dtype);
  call.x = sums;
  call.bias = bias;
  call.y = y;
  std::copy_n(y_stride, 4, call.y_stride);
  call.codes = codes;
  return launch_conv_epilogue(call, shape, nullptr);
}

SIMT_EXPORT int conv_relu_pool_epilogue_backward(const std::int64_t* sizes,
                                                 const std::int64_t* geometry, int dtype,
                                                 const std::int64_t* strides, const void* grad_y,
                                                 const void* y, const std::uint8_t* codes,
                                                 void* grad_sums) {
  const ConvReLUPoolParams p = params_of(sizes, geometry);
  ConvShape shape{};
  if (!plan_conv_epilogue(p, shape)) return cudaErrorInvalidValue;
  ConvBackwardCall call{};
  call.params = &p;
  call.dtype = static_cast<DType>(dtype);
  call.grad_y = grad_y;
  call.y = y;
  std::copy_n(strides, 4, call.grad_y_stride);
  std::copy_n(strides + 4, 4, call.y_stride);
  call.codes = codes;
  call.grad_x = grad_sums;
  return launch_conv_epilogue_backward(call, shape, nullptr);
}
