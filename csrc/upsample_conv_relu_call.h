// One call of upsample_conv_relu: its arguments, validated. The CPU's and CUDA's operators share
// it.
#pragma once

#include "conv_relu_pool_call.h"
#include "upsample_conv_relu.h"

namespace imgfast {

inline UpsampleConvReLUParams make_upsample_params(const Tensor& x, const Tensor& weight,
                                                   int64_t activation, int64_t winograd,
                                                   bool allow_tf32) {
  STD_TORCH_CHECK(x.dim() == 4, "upsample_conv_relu: x must be [N, C, H, W], got ", x.dim(),
                  " dimensions");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == 3 &&
                      weight.size(3) == 3,
                  "upsample_conv_relu: weight must be [K, C = ", x.size(1), ", 3, 3]");
  STD_TORCH_CHECK(x.device() == weight.device(),
                  "upsample_conv_relu: weight must be on the device of x");
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(),
                  "upsample_conv_relu: weight must have the dtype of x");
  STD_TORCH_CHECK(x.numel() > 0 && weight.numel() > 0,
                  "upsample_conv_relu: no dimension of x or weight may be empty");
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::kSiLU) &&
                      winograd >= 0 &&
                      winograd <= (kWinogradForward | kWinogradInput | kWinogradWeight),
                  "upsample_conv_relu: unknown activation or algorithm");
  STD_TORCH_CHECK(winograd == 0 || x.scalar_type() != ScalarType::Double,
                  "upsample_conv_relu: Winograd's algorithm is not for float64");
  return {x.size(0),
          x.size(1),
          x.size(2),
          x.size(3),
          weight.size(0),
          static_cast<Activation>(activation),
          static_cast<int>(winograd),
          allow_tf32};
}

}  // namespace imgfast
