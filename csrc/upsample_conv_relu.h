// The arithmetic of upsample_conv_relu, torch-free, that the CPU and CUDA share: which convolutions
// it is made of, and which of weight's taps their filters sum.
//
//   y = activation(conv2d(upsample_nearest(x, 2), weight, bias, padding=1))
//
// The outputs of even and odd rows and columns are four convolutions of x with filters of 2 x 2
// taps: along a dimension of taps w0 w1 w2,
//
//   y[2 i]     = w0 x[i - 1] + (w1 + w2) x[i]
//   y[2 i + 1] = (w0 + w1) x[i] + w2 x[i + 1]
//
// Read the other way, x's gradient is one convolution of stride 2 with 4 taps, w2, w1 + w2, w0 +
// w1, w0, from row 2 i - 1 of the gradient at the convolution's output on. The weight gradient is
// that of the four, added up.
#pragma once

#include <algorithm>
#include <array>

#include "conv_relu_pool.h"

namespace imgfast {

inline constexpr int kParities = 4;  // of row and column: 2 * (row % 2) + column % 2

// Taps [first, last] of weight along one dimension, of which a tap of another filter is the sum.
struct Taps {
  int first, last;
};

// Of tap 0 or 1 of the rows, or columns, of one parity: of 0 is the sum of the last two.
IMGFAST_HOST_DEVICE constexpr Taps taps_of_parity(int parity, int tap) {
  return tap == 0 ? Taps{0, parity} : Taps{parity + 1, 2};
}

// Which of the two holds tap r of weight.
IMGFAST_HOST_DEVICE constexpr int tap_of_parity(int parity, int r) { return r > parity ? 1 : 0; }

// Of tap 0, 1, 2 or 3 of the convolution that is x's gradient.
IMGFAST_HOST_DEVICE constexpr Taps taps_of_adjoint(int tap) {
  return {tap < 2 ? 2 - tap : 0, tap < 2 ? 2 : 3 - tap};
}

// Of a filter's 3 x 3 taps, in a fixed order.
template <class T>
IMGFAST_HOST_DEVICE constexpr T sum_taps(const T* w, Taps rows, Taps cols) {
  T sum = 0;
  for (int r = rows.first; r <= rows.last; r++) {
    for (int s = cols.first; s <= cols.last; s++) sum += w[3 * r + s];
  }
  return sum;
}

struct UpsampleConvReLUParams {
  ConvReLUPoolParams whole;  // as of x upsampled
  std::array<ConvReLUPoolParams, kParities> parity;
  // Over all windows of 2 x 2 in x with a padding of 1: the even rows' are the first of them, the
  // odd rows' the last, and so are those of columns.
  ConvReLUPoolParams windows;

  // Whether Winograd's tiles of all windows, which all parities share, are better than each
  // parity's own: not where there are so many more of them that it does not pay.
  bool shares_tiles() const {
    const auto products = [](const ConvReLUPoolParams& p) {
      return winograd_products(p, winograd_points(p, p.P, p.Q), p.P, p.Q);
    };
    return 20 * products(windows) <= 23 * products(parity[0]);
  }

  UpsampleConvReLUParams() = default;

  // Of x [N, C, H, W] and weight [K, C, 3, 3].
  UpsampleConvReLUParams(int64_t N, int64_t C, int64_t H, int64_t W, int64_t K,
                         Activation activation, int winograd, bool allow_tf32) {
    int64_t geometry[kGeometrySize];
    std::fill_n(geometry, static_cast<int>(kGeometrySize), 1);
    geometry[kActivation] = static_cast<int64_t>(activation);
    geometry[kPool] = static_cast<int64_t>(Pool::kNone);
    geometry[kWinograd] = winograd;
    geometry[kEpilogue] = 0;
    geometry[kAllowTF32] = allow_tf32;
    whole = conv_relu_pool_params(N, C, 2 * H, 2 * W, K, 3, 3, geometry);
    for (int i = 0; i < kParities; i++) {
      ConvReLUPoolParams& p = parity[i];
      p = whole;
      p.H = p.P = p.PH = H;
      p.W = p.Q = p.PW = W;
      p.R = p.S = 2;
      p.padding_h = 1 - i / 2;  // the last row of taps of an odd one lies in padding instead
      p.padding_w = 1 - i % 2;
    }
    windows = parity[0];
    windows.P = windows.PH = H + 1;
    windows.Q = windows.PW = W + 1;
  }

  // The convolution of a gradient [n, K, 2 H, 2 W] that is x's.
  ConvReLUPoolParams adjoint(int64_t n) const {
    ConvReLUPoolParams p = whole;
    p.N = n;
    p.C = whole.K;
    p.K = whole.C;
    p.R = p.S = 4;
    p.stride_h = p.stride_w = 2;
    p.P = p.PH = parity[0].P;
    p.Q = p.PW = parity[0].Q;
    p.activation = Activation::kNone;
    p.winograd = whole.winograd & kWinogradInput ? kWinogradForward : 0;
    return p;
  }
};

}  // namespace imgfast
