// What the Python module asks of conv_relu_pool on CUDA before a call.
#pragma once

#include "conv_relu_pool.h"

namespace imgfast::cuda {

// Whether there are kernels for a call, and for all of its gradients if there are to be any.
bool serves_conv_relu_pool(const ConvReLUPoolParams& params, DType dtype, bool gradients);

}  // namespace imgfast::cuda
