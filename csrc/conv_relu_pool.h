// The parameters of conv_relu_pool, plain data that the CPU, CUDA and shape code share.
//
//   y = pool(activation(conv2d(x, weight, bias, stride, padding, dilation, groups)))
//
// Names: N C H W in, K filters of R x S taps, P Q convolution output, PH PW pooled output.
#pragma once

#include <cstdint>

#include "dtype.h"

#ifdef __CUDACC__
#define IMGFAST_HOST_DEVICE __host__ __device__
#else
#define IMGFAST_HOST_DEVICE
#endif

namespace imgfast {

enum class Activation : int8_t { kNone, kReLU, kLeakyReLU, kSigmoid, kTanh, kGELU, kSiLU };
enum class Pool : int8_t { kNone, kMax, kAvg };

// Which passes run by Winograd's algorithm, bits; the others run directly.
enum Winograd { kWinogradForward = 1, kWinogradInput = 2, kWinogradWeight = 4 };

// Which passes have torch's convolution between kernels of ours, bits; on CUDA only.
enum Epilogue { kEpilogueForward = 1, kEpilogueBackward = 2 };

inline constexpr double kLeakyReLUSlope = 0.01;  // torch.nn.LeakyReLU's default

// What a code byte says of one pooled output.
//   max: the row-major position of the maximum in its window, plus kBlocked if the activation's
//   argument was <= 0. avg: bit i is set where the activation's argument at position i of the
//   window was > 0 or NaN.
inline constexpr int kBlocked = 128;
inline constexpr int64_t kMaxWindow = 128;   // positions that a max code can name
inline constexpr int64_t kMaxAvgWindow = 8;  // positions that an avg code can name

// The operators' list of integers beside their tensors; Spec in imgfast/ops/conv_relu_pool_route.py
// makes it.
enum Geometry {
  kStrideH,
  kStrideW,
  kPaddingH,
  kPaddingW,
  kDilationH,
  kDilationW,
  kGroups,
  kActivation,
  kPool,  // the numbers of the enums above
  kPoolH,
  kPoolW,
  kPoolStrideH,
  kPoolStrideW,
  kPoolPaddingH,
  kPoolPaddingW,
  kPoolDilationH,
  kPoolDilationW,
  kCeilMode,
  kCountIncludePad,
  kWinograd,  // bits of the enums above
  kEpilogue,
  kAllowTF32,  // 1: a GPU may round float32 factors to tf32
  kGeometrySize
};

struct ConvReLUPoolParams {
  int64_t N, C, H, W;  // x [N, C, H, W]
  int64_t K, R, S;     // weight [K, C / groups, R, S]
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
  int64_t P, Q;  // convolution output [N, K, P, Q], never stored
  Pool pool;     // kNone: a 1 x 1 window of stride 1
  int64_t pool_h, pool_w, pool_stride_h, pool_stride_w, pool_padding_h, pool_padding_w;
  int64_t pool_dilation_h, pool_dilation_w;
  bool ceil_mode, count_include_pad;
  int64_t PH, PW;  // y [N, K, PH, PW]
  Activation activation;
  int winograd, epilogue;  // bits of Winograd and Epilogue
  bool allow_tf32;
};

// Static, as this header also enters translation units of one instruction set.

// A filter for every channel: with kernels of their own, whose lanes are channels.
static inline bool is_depthwise(const ConvReLUPoolParams& p) {
  return p.groups > 1 && p.groups == p.C && p.groups == p.K;
}

// Whether every tap lies inside the image. P and Q may ask for more padding below and on the right.
static inline bool reads_no_padding(const ConvReLUPoolParams& p) {
  return p.padding_h == 0 && p.padding_w == 0 &&
         (p.P - 1) * p.stride_h + (p.R - 1) * p.dilation_h < p.H &&
         (p.Q - 1) * p.stride_w + (p.S - 1) * p.dilation_w < p.W;
}

// Taps of one dimension of the unit-stride filters that a strided one falls into.
static inline int64_t winograd_taps(const ConvReLUPoolParams& p) {
  return ((p.R > p.S ? p.R : p.S) + p.stride_h - 1) / p.stride_h;
}

// Winograd's tiles over one axis of `size` positions, of which a tile holds `held`, `step` apart:
// as many tiles as the step side by side fill a block of neighbours.
static inline int64_t winograd_tiles(int64_t held, int64_t step, int64_t size) {
  const int64_t block = held * step, more = size % block;
  return size / block * step + (more < step ? more : step);
}

// Products of a channel and a filter by Winograd's algorithm with so many points a dimension, over
// a map of rows x cols outputs.
static inline int64_t winograd_products(const ConvReLUPoolParams& p, int64_t points, int64_t rows,
                                        int64_t cols) {
  const int64_t taps = winograd_taps(p), held = points + 1 - (taps < 2 ? 2 : taps);
  return points * points * winograd_tiles(held, p.dilation_h, rows) *
         winograd_tiles(held, p.dilation_w, cols);
}

// Points a dimension of Winograd's algorithm: six, or for two taps five where these have 5% less
// products.
static inline int64_t winograd_points(const ConvReLUPoolParams& p, int64_t rows, int64_t cols) {
  const bool five = winograd_taps(p) <= 2 && 21 * winograd_products(p, 5, rows, cols) <=
                                                 20 * winograd_products(p, 6, rows, cols);
  return five ? 5 : 6;
}

// Windows of 2 x 2 that do not overlap and lie inside the map.
static inline bool whole_2x2_windows(const ConvReLUPoolParams& p) {
  return p.pool != Pool::kNone && p.pool_h == 2 && p.pool_w == 2 && p.pool_stride_h == 2 &&
         p.pool_stride_w == 2 && p.pool_padding_h == 0 && p.pool_padding_w == 0 &&
         p.pool_dilation_h == 1 && p.pool_dilation_w == 1 && 2 * p.PH <= p.P && 2 * p.PW <= p.Q;
}

// Whether the pool needs activated values: it commutes with monotone activations only.
static inline bool activates_first(const ConvReLUPoolParams& p) {
  return p.pool == Pool::kAvg || p.activation == Activation::kGELU ||
         p.activation == Activation::kSiLU;
}

static inline int64_t conv_output_size(int64_t size, int64_t filter, int64_t stride,
                                       int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (filter - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

// As torch.nn.functional.max_pool2d: with ceil_mode a window must start inside the input or its
// left padding.
static inline int64_t pool_output_size(int64_t size, int64_t window, int64_t stride,
                                       int64_t padding, int64_t dilation, bool ceil_mode) {
  const int64_t room = size + 2 * padding - dilation * (window - 1) - 1;
  if (room < 0) return 0;
  int64_t count = (room + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  if (ceil_mode && (count - 1) * stride >= size + padding) count--;
  return count;
}

// The parameters of a call: sizes of x and weight, and the list that Geometry orders. What divides
// must be positive.
static inline ConvReLUPoolParams conv_relu_pool_params(int64_t N, int64_t C, int64_t H, int64_t W,
                                                       int64_t K, int64_t R, int64_t S,
                                                       const int64_t* geometry) {
  ConvReLUPoolParams p{};
  p.N = N, p.C = C, p.H = H, p.W = W, p.K = K, p.R = R, p.S = S;
  p.stride_h = geometry[kStrideH], p.stride_w = geometry[kStrideW];
  p.padding_h = geometry[kPaddingH], p.padding_w = geometry[kPaddingW];
  p.dilation_h = geometry[kDilationH], p.dilation_w = geometry[kDilationW];
  p.groups = geometry[kGroups];
  p.P = conv_output_size(H, R, p.stride_h, p.padding_h, p.dilation_h);
  p.Q = conv_output_size(W, S, p.stride_w, p.padding_w, p.dilation_w);
  p.activation = static_cast<Activation>(geometry[kActivation]);
  p.pool = static_cast<Pool>(geometry[kPool]);
  p.winograd = static_cast<int>(geometry[kWinograd]);
  p.epilogue = static_cast<int>(geometry[kEpilogue]);
  p.allow_tf32 = geometry[kAllowTF32];
  p.pool_h = p.pool_w = p.pool_stride_h = p.pool_stride_w = 1;
  p.pool_dilation_h = p.pool_dilation_w = 1;
  p.PH = p.P, p.PW = p.Q;
  if (p.pool == Pool::kNone) return p;
  p.pool_h = geometry[kPoolH], p.pool_w = geometry[kPoolW];
  p.pool_stride_h = geometry[kPoolStrideH], p.pool_stride_w = geometry[kPoolStrideW];
  p.pool_padding_h = geometry[kPoolPaddingH], p.pool_padding_w = geometry[kPoolPaddingW];
  p.pool_dilation_h = geometry[kPoolDilationH], p.pool_dilation_w = geometry[kPoolDilationW];
  p.ceil_mode = geometry[kCeilMode], p.count_include_pad = geometry[kCountIncludePad];
  p.PH = pool_output_size(p.P, p.pool_h, p.pool_stride_h, p.pool_padding_h, p.pool_dilation_h,
                          p.ceil_mode);
  p.PW = pool_output_size(p.Q, p.pool_w, p.pool_stride_w, p.pool_padding_w, p.pool_dilation_w,
                          p.ceil_mode);
  return p;
}

// Positions along one axis that an average over the window from `first` on counts, as
// torch.nn.functional.avg_pool2d counts them; it divides by the product over both axes.
static inline IMGFAST_HOST_DEVICE int64_t avg_extent(int64_t first, int64_t window, int64_t size,
                                                     int64_t padding, bool count_include_pad) {
  const int64_t end = first + window, most = count_include_pad ? size + padding : size;
  return (end < most ? end : most) - (count_include_pad || first > 0 ? first : 0);
}

}  // namespace imgfast
