// The kernels' dtype of a tensor, for the operators' torch sides.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "dtype.h"

namespace imgfast {

inline DType dtype_of(const torch::stable::Tensor& tensor, const char* op, const char* argument) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": ", argument, " must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace imgfast
