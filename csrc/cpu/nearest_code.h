// Which vector of a book is nearest to each row:
//
//   code_n = argmin_k |x_n - b_k|^2 = argmax_k x_n . b_k - |b_k|^2 / 2
//
// of several equally near the first.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace imgfast::cpu {

// Tensors are dense, of dtype float32 or float64.
struct NearestCodeArgs {
  int64_t N, K, D;  // rows, codes, numbers in each
  DType dtype;
  const void* rows;  // [N, D]
  const void* book;  // [K, D]
  int64_t* codes;    // [N]
};

inline constexpr int64_t kMaxCodes = 1 << 24;  // their numbers are exact in every dtype

// A unit is a block of rows, in order. Calls on different ones may run in parallel, each with a
// scratch of its own (in bytes, aligned to 64).
struct NearestCodeKernels {
  int64_t (*units)(const NearestCodeArgs&);
  int64_t (*scratch)(const NearestCodeArgs&);
  void (*find)(const NearestCodeArgs&, int64_t begin, int64_t end, void* scratch);
};

}  // namespace imgfast::cpu
