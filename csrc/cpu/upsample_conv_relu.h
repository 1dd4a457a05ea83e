// What one instruction set offers for upsample_conv_relu by Winograd's algorithm. The arguments are
// those of the convolution of the upsampled map, but for x and its gradient, which are of the small
// one.
#pragma once

#include "conv_relu_pool.h"

namespace imgfast::cpu {

// Products of a channel and a filter over a map of rows x cols, of tiles that take `points` values
// a dimension. One of them is the same for both parities.
static inline int64_t upsample_products(int64_t points, int64_t rows, int64_t cols) {
  const int64_t held = points - 1, products = 2 * points - 1;
  return products * products * ((rows + held - 1) / held) * ((cols + held - 1) / held);
}

// Points a dimension: five or six, or eight where these have 30% less products, as their error is
// twice as large.
static inline int64_t upsample_points(int64_t rows, int64_t cols) {
  const int64_t five = upsample_products(5, rows, cols), six = upsample_products(6, rows, cols);
  const int64_t points = five <= six ? 5 : 6;
  return 10 * upsample_products(8, rows, cols) <= 7 * (five <= six ? five : six) ? 8 : points;
}

// All three gradients, of transformed output gradients that they share; those are computed that
// have somewhere to go: grad_x, partial_weight, partial_bias. A unit is a row of tiles of x. One
// call of run fills a slot, and reduce adds up the slots for some of the filters.
struct UpsampleBackward {
  int64_t (*pack_size)(const ConvBackwardArgs&);
  int64_t (*pack_units)(const ConvBackwardArgs&);
  void (*pack)(const ConvBackwardArgs&, int64_t unit_begin, int64_t unit_end);
  int64_t (*partial_size)(const ConvBackwardArgs&);
  int64_t (*scratch)(const ConvBackwardArgs&);
  int64_t (*units)(const ConvBackwardArgs&);
  void (*run)(const ConvBackwardArgs&, int64_t unit_begin, int64_t unit_end, int64_t slot,
              void* scratch);
  void (*reduce)(const ConvBackwardArgs&, int64_t slots, int64_t k_begin, int64_t k_end);
};

struct UpsampleConvReLUKernels {
  PackedKernel<ConvForwardArgs> forward;
  UpsampleBackward backward;
};

}  // namespace imgfast::cpu
