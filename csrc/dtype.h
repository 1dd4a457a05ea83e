// The dtypes that kernels exist for.
#pragma once

#include <cstdint>

namespace imgfast {

enum class DType : int8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

}  // namespace imgfast
