// The parameters of cross_entropy, plain data that the CPU and CUDA code share.
//
// A row has C logits x_c and weights u_c on its negative log-probabilities:
//
//   class target y        u_c = (1 - e) w_y [c = y] + e / C w_c      nothing if y is ignore_index
//   probability target t  u_c = w_c ((1 - e) t_c + e / C)
//
//   loss       l = sum_c u_c (lse - x_c),  lse = m + log s,  m = max_c x_c,  s = sum_c exp(x_c - m)
//   gradient   dl / dx_c = (sum_k u_k) exp(x_c - m) / s - u_c
//
// with e = label_smoothing and w = weight (1 where absent). "mean" divides the sum of the l by the
// sum of the w_y of the rows that count, or by the number of rows if targets are probabilities.
//
// z_loss adds z lse^2 for every row that counts, whatever its weight, and its mean is over the
// number of those rows; the gradient grows by 2 z lse softmax(x). A pair of class targets a, b has
// the loss lam L(a) + (1 - lam) L(b), where L has been reduced as that of one target.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace imgfast {

enum class Reduction : int8_t { kNone, kMean, kSum };  // numbered as torch.nn._reduction does

// Classes and ignore_index are no larger, so that float holds them exactly.
inline constexpr int64_t kMaxClasses = 1 << 24;

struct CrossEntropyParams {
  int64_t outer, inner;  // rows = outer * inner: samples times positions
  int64_t C;             // classes of the logits
  int64_t num_classes;   // of which a tile, or a part, holds C
  int64_t ignore_index;
  double label_smoothing;  // e, in [0, 1]
  Reduction reduction;
  int64_t num_targets;  // 2 for a pair
  double lam[2];        // of each target: 1, or lam and 1 - lam
  double z_loss;
};

// [outer, inner, C] of any strides (in elements): logits of one row may lie together (rows,
// channels_last) or a plane apart (NCHW).
struct RowsView {
  void* data;
  int64_t outer_stride, inner_stride, class_stride;
};

}  // namespace imgfast
