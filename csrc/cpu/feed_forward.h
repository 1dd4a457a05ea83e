// The feed-forward half of a transformer's block, with a threshold and a square between its layers:
//
//   z[n] = U x[n]   h[n] = z[n] where z[n] > threshold, else 0
//   y[n] = r[n] + V (h[n] h[n])
//
// of which many or most h are zero: what they would be multiplied by is not looked at.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace imgfast::cpu {

// A tile of hidden numbers is [kFedRows][kFedHidden]; those at the edges reach beyond N or H. What
// is kept of tiles are lists of the numbers that count, of a unit's tiles one after the other, in
// as many bytes as all numbers would need: what is not in use is never touched.
inline constexpr int64_t kFedRows = 48, kFedHidden = 64, kFedNumbers = kFedRows * kFedHidden;

// Tensors are dense, of dtype float32 or float64.
struct FeedForwardArgs {
  int64_t N, D, H;  // rows, numbers of one, hidden numbers
  DType dtype;
  double threshold;      // at least 0
  const void* x;         // [N, D]
  const void* up;        // U: [H, D]
  const void* down;      // V: [D, H]
  void* h;               // [units][kept_bytes]; written by forward, read by backward
  const void* residual;  // r: [N, D]; may be null
  void* y;               // forward: [N, D]
  const void* grad_y;    // backward: [N, D]
  void* grad_x;          // [N, D]
  void* columns;         // [units][column_bytes], written by the pass over rows
  void* grad_up;         // [H, D]
  void* grad_down;       // [D, H]

  int64_t units() const { return (N + kFedRows - 1) / kFedRows; }
  int64_t tiles() const { return (H + kFedHidden - 1) / kFedHidden; }  // of a unit
  int64_t number_bytes() const { return dtype == DType::kFloat64 ? 8 : 4; }
  // Of a tile row after row: where each row's list ends (int32), the numbers, their columns
  // (int32).
  int64_t kept_bytes() const {
    return tiles() * (4 * kFedRows + kFedNumbers * (number_bytes() + 4));
  }
  // Where each tile begins (int64); of a tile column after column: where each column's list ends,
  // the squares of the numbers, the gradients at U x, their rows.
  int64_t column_bytes() const {
    return tiles() * (8 + 4 * kFedHidden + kFedNumbers * (2 * number_bytes() + 4));
  }
};

// forward and backward_rows take units of kFedRows rows, backward_weights, after all of those,
// units of kFedHidden rows of U. Calls on different units may run in parallel; results do not
// depend on how they are shared.
struct FeedForwardKernels {
  int64_t (*scratch)(const FeedForwardArgs&);
  void (*forward)(const FeedForwardArgs&, int64_t begin, int64_t end, void* scratch);
  void (*backward_rows)(const FeedForwardArgs&, int64_t begin, int64_t end, void* scratch);
  void (*backward_weights)(const FeedForwardArgs&, int64_t begin, int64_t end, void* scratch);
};

}  // namespace imgfast::cpu
