// What one instruction set offers for conv_relu_pool. Pointers only: these structs cross into
// translation units that include neither torch nor the C++ library.
#pragma once

#include "../conv_relu_pool.h"

namespace imgfast::cpu {

// A 4-d tensor in NCHW index order, of any strides (in elements).
struct View4 {
  void* data;
  int64_t stride[4];
  DType dtype;
};

inline constexpr int64_t kUnitsPerThread = 4;  // so that the last ones finish together
inline constexpr int64_t kFewFilters = 4;      // at most, for the kernels whose lanes are channels
inline constexpr int64_t kFilterStep = 32;  // a multiple of the filters that a kernel takes at once

// All tensors of a call are of one dtype.
struct ConvForwardArgs {
  const ConvReLUPoolParams* params;
  View4 x;               // [N, C, H, W]
  View4 weight;          // [K, C / groups, R, S]
  const void* bias;      // [K] or null
  View4 y;               // [N, K, PH, PW]
  uint8_t* codes;        // [N, PH, PW, K] or null
  void* packed_weight;   // filled by pack
  int64_t threads;       // that units are shared out to
  int64_t unit_rows;     // not Winograd: pooled rows of one unit of work
  int64_t unit_filters;  // and its filters, a multiple of kFilterStep, or all of a group
};

struct ConvBackwardArgs {
  const ConvReLUPoolParams* params;
  View4 grad_y;          // [N, K, PH, PW]
  View4 y;               // [N, K, PH, PW], or null data where the gradient does not need it
  View4 x;               // [N, C, H, W]
  View4 weight;          // [K, C / groups, R, S]
  const uint8_t* codes;  // [N, PH, PW, K] or null
  View4 grad_x;          // [N, C, H, W]
  int64_t threads;       // that units are shared out to
  int64_t unit_rows;     // depthwise: rows of grad_x or of the convolution's output of one unit
  int64_t unit_filters;  // and its channels, a multiple of kFilterStep, or all
  void* packed_weight;   // input gradient: filled by pack
  void* partial_weight;  // weight gradient: [slots, partial_size] sums, zeroed by the caller
  void* partial_bias;    // bias gradient: [slots, K] sums, zeroed by the caller
  View4 grad_weight;     // [K, C / groups, R, S]
  void* grad_bias;       // [K]
};

// Filters that would leave most lanes empty, of channels that fill them.
static inline bool has_few_filters(const ConvReLUPoolParams& p) {
  return p.K <= kFewFilters && p.C >= 2 * kFewFilters && p.groups == 1 && p.pool == Pool::kNone &&
         p.stride_h == 1 && p.stride_w == 1 && p.dilation_h == 1 && p.dilation_w == 1;
}

// Points a dimension of Winograd's algorithm in forward. Strided filters without a pool, whose
// tiles have so many channels that products count for most, take eight where these have 30% less
// products: their error is twice as large.
static inline int64_t winograd_forward_points(const ConvReLUPoolParams& p) {
  const int64_t points = winograd_points(p, p.P, p.Q);
  const bool eight =
      winograd_taps(p) <= 2 && p.stride_h > 1 && p.pool == Pool::kNone &&
      10 * winograd_products(p, 8, p.P, p.Q) <= 7 * winograd_products(p, points, p.P, p.Q);
  return eight ? 8 : points;
}

// Work is cut into units; calls on disjoint units may run in parallel, each with a scratch of its
// own, aligned to 64 bytes. Sizes are in bytes.
template <class Args>
struct PackedKernel {
  int64_t (*pack_size)(const Args&);
  int64_t (*pack_units)(const Args&);
  void (*pack)(const Args&, int64_t unit_begin, int64_t unit_end);
  int64_t (*scratch)(const Args&);
  int64_t (*units)(const Args&);
  void (*run)(const Args&, int64_t unit_begin, int64_t unit_end, void* scratch);
};

// Units add up into slots, which reduce adds up in their order.
struct SummedKernel {
  int64_t (*partial_size)(const ConvBackwardArgs&);
  int64_t (*scratch)(const ConvBackwardArgs&);
  int64_t (*units)(const ConvBackwardArgs&);
  void (*run)(const ConvBackwardArgs&, int64_t unit_begin, int64_t unit_end, int64_t slot,
              void* scratch);
  void (*reduce)(const ConvBackwardArgs&, int64_t slots);
};

// Each [0] directly, [1] by Winograd's algorithm, [2] for depthwise filters, [3] for few filters.
struct ConvReLUPoolKernels {
  PackedKernel<ConvForwardArgs> forward[4];
  PackedKernel<ConvBackwardArgs> input[4];
  SummedKernel weight[4];
  // Without a pool, the gradient at the convolution's output of image n, [P, Q, K] of the compute
  // type, from that at y; room for as many numbers where the activation is differentiated.
  void (*output_gradient)(const ConvBackwardArgs&, int64_t n, void* out, void* room);
};

}  // namespace imgfast::cpu
