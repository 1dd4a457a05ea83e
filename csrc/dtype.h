// The dtypes that kernels exist for.
#pragma once

#include <cstdint>

namespace imgfast {

enum class DType : int8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Static, as this header also enters translation units of one instruction set.
static inline int64_t bytes_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

}  // namespace imgfast
