// Where Winograd's tiles come from: rows of an image, or rows of the gradient at the convolution's
// output. One row of tiles at a time is staged and transformed while it is in the cache.
#pragma once

#include "conv_gradient_strip-inl.h"
#include "winograd-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Tiles of x for F(m, kTaps). A convolution of stride s is a sum of s x s ones of unit stride, over
// every s-th row and column of the padded image; they are staged as further channels,
// [row % s][column % s][C].
template <class X, int kTaps>
struct ImageTiles {
  using T = typename X::T;
  static constexpr int kOutputs = kPoints + 1 - kTaps;

  const ConvReLUPoolParams& p;
  int64_t C, stride, channels;  // of a group; channels of a tile
  int64_t tiles, width;         // of a row; columns that they cover
  T *strip, *line;              // [6][width][channels], [stride * width][C]

  ImageTiles(Arena& arena, const ConvReLUPoolParams& p, int64_t tiles)
      : p(p),
        C(p.C / p.groups),
        stride(p.stride_h),
        channels(C * stride * stride),
        tiles(tiles),
        width(kOutputs * (tiles - 1) + kPoints) {
    strip = arena.take<T>(kPoints * width * channels);
    line = arena.take<T>(stride > 1 ? stride * width * C : 0);
  }

  // The tiles whose first output lies in convolution row `row` of image n.
  template <class IO>
  void transform_row(const View4& x, int64_t n, int64_t g, int64_t row, T* v, int64_t plane) const {
    const int64_t h0 = row * stride - p.padding_h, c0 = g * C;
    const bool in_place = stride == 1 && x.stride[1] == 1;
    if (stride > 1) {
      stage_strided<IO>(x, n, c0, h0);
    } else if (!in_place) {
      stage_strip<X, IO>(x, p.H, p.W, n, c0, C, h0, kPoints, -p.padding_w, width, C, strip);
    }
    for (int64_t t = 0; t < tiles; t++, v += channels) {
      const int64_t w0 = kOutputs * t - p.padding_w;
      if (!in_place) {
        transform_input<X>(strip + kOutputs * t * channels, width * channels, channels, channels, v,
                           plane);
      } else if (h0 >= 0 && h0 + kPoints <= p.H && w0 >= 0 && w0 + kPoints <= p.W) {
        prefetch(at<const IO>(x, n, c0, h0 + kPoints, w0), x.stride[2], x.stride[3]);
        transform_input<X>(at<const IO>(x, n, c0, h0, w0), x.stride[2], x.stride[3], C, v, plane);
      } else {
        stage_strip<X, IO>(x, p.H, p.W, n, c0, C, h0, kPoints, w0, kPoints, C, strip);
        transform_input<X>(strip, kPoints * C, C, C, v, plane);
      }
    }
  }

  // What the tile below reads beyond this one.
  template <class IO>
  void prefetch(const IO* x, int64_t row_step, int64_t col_step) const {
    constexpr int64_t kLine = 64 / sizeof(IO);
    for (int i = 0; i < kOutputs; i++) {
      for (int j = 0; j < kOutputs; j++) {
        for (int64_t c = 0; c < C; c += kLine) {
          __builtin_prefetch(x + i * row_step + j * col_step + c, 0, 2);
        }
      }
    }
  }

  template <class IO>
  void stage_strided(const View4& x, int64_t n, int64_t c0, int64_t h0) const {
    const int64_t half = stride * C;  // what lies together of one row
    for (int64_t i = 0; i < stride * kPoints; i++) {
      stage_strip<X, IO>(x, p.H, p.W, n, c0, C, h0 + i, 1, -p.padding_w, stride * width, C, line);
      T* to = strip + i / stride * width * channels + i % stride * half;
      for (int64_t w = 0; w < width; w++) copy_into<X>(line + w * half, to + w * channels, half);
    }
  }
};

}  // namespace imgfast::cpu::IMGFAST_ISA
