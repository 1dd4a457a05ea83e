// What one instruction set offers for conv_relu_pool. Pointers only: these structs cross into
// translation units that include neither torch nor the C++ library.
#pragma once

#include "../conv_relu_pool.h"

namespace imgfast::cpu {

// A 4-d tensor in NCHW index order, of any strides (in elements).
struct View4 {
  void* data;
  int64_t stride[4];
};

inline constexpr int64_t kFilterStep = 32;  // a multiple of the filters that a kernel takes at once

struct ConvForwardArgs {
  const ConvReLUPoolParams* params;
  DType dtype;          // of x, weight, bias and y
  View4 x;              // [N, C, H, W]
  View4 weight;         // [K, C / groups, R, S]
  const void* bias;     // [K] or null
  View4 y;              // [N, K, PH, PW]
  uint8_t* codes;       // [N, PH, PW, K] or null
  void* packed_weight;  // filled by pack
  int64_t threads;      // that units are shared out to
  int64_t unit_rows;    // direct: pooled rows of one unit of work
  int64_t
      unit_filters;  // direct: filters of one unit, a multiple of kFilterStep, or all of a group
};

struct ConvBackwardArgs {
  const ConvReLUPoolParams* params;
  DType dtype;           // of grad_y, x, weight, y and grad_x
  View4 grad_y;          // [N, K, PH, PW]
  View4 y;               // [N, K, PH, PW], or null data where the gradient does not need it
  View4 x;               // [N, C, H, W]
  View4 weight;          // [K, C / groups, R, S]
  const uint8_t* codes;  // [N, PH, PW, K] or null
  View4 grad_x;          // [N, C, H, W]
  int64_t threads;       // that units are shared out to
  void* packed_weight;   // input gradient: filled by pack
  void* partial_weight;  // weight gradient: [slots, partial_size] sums, zeroed by the caller
  void* partial_bias;    // bias gradient: [slots, K] sums, zeroed by the caller
  View4 grad_weight;     // [K, C / groups, R, S], of dtype
  void* grad_bias;       // [K]
};

// Sizes are in bytes. A unit of forward is (image, group, unit_rows pooled rows, unit_filters
// filters), the last of them counted fastest; calls on disjoint units may run in parallel, each
// with a scratch of its own, aligned to 64 bytes. No result depends on how the work is shared out.
struct ConvReLUPoolKernels {
  int64_t (*forward_pack_size)(const ConvForwardArgs&);
  void (*forward_pack)(const ConvForwardArgs&);
  int64_t (*forward_scratch)(const ConvForwardArgs&);
  void (*forward)(const ConvForwardArgs&, int64_t unit_begin, int64_t unit_end, void* scratch);

  // By Winograd's algorithm. Units are the kernel's own.
  int64_t (*winograd_forward_pack_size)(const ConvForwardArgs&);
  void (*winograd_forward_pack)(const ConvForwardArgs&);
  int64_t (*winograd_forward_scratch)(const ConvForwardArgs&);
  int64_t (*winograd_forward_units)(const ConvForwardArgs&);
  void (*winograd_forward)(const ConvForwardArgs&, int64_t unit_begin, int64_t unit_end,
                           void* scratch);

  int64_t (*backward_input_pack_size)(const ConvBackwardArgs&);
  void (*backward_input_pack)(const ConvBackwardArgs&);
  int64_t (*backward_input_scratch)(const ConvBackwardArgs&);
  // Rows [row_begin, row_end) of all images' pooled rows, counted n * PH + ph.
  void (*backward_input)(const ConvBackwardArgs&, int64_t row_begin, int64_t row_end,
                         void* scratch);

  int64_t (*backward_weight_partial_size)(const ConvBackwardArgs&);
  int64_t (*backward_weight_scratch)(const ConvBackwardArgs&);
  void (*backward_weight)(const ConvBackwardArgs&, int64_t row_begin, int64_t row_end, int64_t slot,
                          void* scratch);
  void (*backward_weight_reduce)(const ConvBackwardArgs&, int64_t slots);

  int64_t (*winograd_input_pack_size)(const ConvBackwardArgs&);
  void (*winograd_input_pack)(const ConvBackwardArgs&);
  int64_t (*winograd_input_scratch)(const ConvBackwardArgs&);
  int64_t (*winograd_input_units)(const ConvBackwardArgs&);
  void (*winograd_input)(const ConvBackwardArgs&, int64_t unit_begin, int64_t unit_end,
                         void* scratch);

  int64_t (*winograd_weight_partial_size)(const ConvBackwardArgs&);
  int64_t (*winograd_weight_scratch)(const ConvBackwardArgs&);
  int64_t (*winograd_weight_rows)(const ConvBackwardArgs&);
  void (*winograd_weight)(const ConvBackwardArgs&, int64_t row_begin, int64_t row_end, int64_t slot,
                          void* scratch);
  void (*winograd_weight_reduce)(const ConvBackwardArgs&, int64_t slots);
};

}  // namespace imgfast::cpu
