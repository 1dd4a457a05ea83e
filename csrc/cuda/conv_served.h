// What the Python module asks of conv_relu_pool and upsample_conv_relu on CUDA before a call.
#pragma once

#include "conv_relu_pool.h"
#include "upsample_conv_relu.h"

namespace imgfast::cuda {

// Whether there are kernels for a call, and for all of its gradients if there are to be any.
bool serves_conv_relu_pool(const ConvReLUPoolParams& params, DType dtype, bool gradients);
bool serves_upsample_conv_relu(const UpsampleConvReLUParams& params, DType dtype, bool gradients);

}  // namespace imgfast::cuda
