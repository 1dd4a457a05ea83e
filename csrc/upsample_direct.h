// upsample_conv_relu on the CPU by conv_relu_pool's direct kernels, on maps of x's size:
// upsample_conv_relu.h tells how.
#pragma once

#include <optional>
#include <tuple>

#include "upsample_conv_relu_call.h"

namespace imgfast {

// Into y, whose channels lie together.
void upsample_direct(const UpsampleConvReLUParams& params, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias, const Tensor& y);

// The gradients of x, weight and bias, as empty_gradients makes them; y is null where the
// activation's derivative does not need it.
std::tuple<Tensor, Tensor, Tensor> upsample_direct_backward(const UpsampleConvReLUParams& params,
                                                            const Tensor& grad_y, const Tensor& x,
                                                            const Tensor& weight, const Tensor* y,
                                                            bool need_x, bool need_weight,
                                                            bool need_bias);

}  // namespace imgfast
