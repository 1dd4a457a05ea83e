// Rows on their way in and out of the convolution kernels, shared by forward and backward.
//
// In: a strip, a few rows of one image widened to the compute type, laid out
// [rows][width][channels] with the zero padding in place, so that the kernels see neither layout,
// nor dtype, nor border. A strip is a few tens of kilobytes: the whole input is never copied. Out:
// a row of results [width][lanes], narrowed and, for NCHW, transposed on its way to memory.
#pragma once

#include "conv_relu_pool.h"
#include "matrix-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

static inline void* at(const View4& v, int64_t n, int64_t c, int64_t h, int64_t w) {
  const int64_t element = n * v.stride[0] + c * v.stride[1] + h * v.stride[2] + w * v.stride[3];
  return static_cast<char*>(v.data) + element * bytes_of(v.dtype);
}

// The same where it is known to be of type T.
template <class T>
static inline T* at(const View4& v, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(v.data) + n * v.stride[0] + c * v.stride[1] + h * v.stride[2] +
         w * v.stride[3];
}

// The view that begins at an element.
static inline View4 view_at(const View4& v, int64_t n, int64_t c, int64_t h, int64_t w) {
  View4 moved = v;
  moved.data = at(v, n, c, h, w);
  return moved;
}

// Whether rows or columns from first to last exist of so many.
static inline bool holds(int64_t size, int64_t first, int64_t last) {
  return first >= 0 && last < size;
}

// Whether `valid` of `lanes` results go to a tensor as they are: whole vectors, channels together.
template <class X>
static inline bool writes_to(const View4& v, int64_t lanes, int64_t valid) {
  return is_computed_as_stored<X>(v.dtype) && v.stride[1] == 1 && valid == lanes;
}

// Channels [c0, c0 + channels) of rows [h0, h0 + rows) and columns [w0, w0 + width) of image n;
// what lies outside the image, and channels beyond the given ones, is zero.
template <class X>
static void stage_strip(const View4& x, int64_t H, int64_t W, int64_t n, int64_t c0,
                        int64_t channels, int64_t h0, int64_t rows, int64_t w0, int64_t width,
                        int64_t strip_channels, typename X::T* strip) {
  const int64_t first = min_of(max_of(-w0, 0), width),
                cols = max_of(0, min_of(W - max_of(w0, 0), width - first));
  if (cols == width && x.stride[2] == width * x.stride[3] && h0 >= 0 && h0 + rows <= H) {
    // Rows that follow one another in memory are one long row.
    if (channels < strip_channels) fill_zero(strip, rows * width * strip_channels);
    read_matrix<X>(x.dtype, at(x, n, c0, h0, w0), x.stride[3], x.stride[1], strip, strip_channels,
                   rows * width, channels);
    return;
  }
  for (int64_t i = 0; i < rows; i++) {
    typename X::T* row = strip + i * width * strip_channels;
    const int64_t h = h0 + i;
    if (h < 0 || h >= H) {
      fill_zero(row, width * strip_channels);
      continue;
    }
    fill_zero(row, first * strip_channels);
    typename X::T* inside = row + first * strip_channels;
    fill_zero(inside + cols * strip_channels, (width - first - cols) * strip_channels);
    if (channels < strip_channels) fill_zero(inside, cols * strip_channels);
    read_matrix<X>(x.dtype, at(x, n, c0, h, max_of(w0, 0)), x.stride[3], x.stride[1], inside,
                   strip_channels, cols, channels);
  }
}

// Rows of results that are copied to a tensor together: where they follow one another, as many as
// fill whole vectors in NCHW, but no more, as the cache misses of few rows hide behind the next
// ones' arithmetic.
template <class X>
static inline int64_t rows_at_a_time(const View4& v, int64_t width) {
  constexpr int kMostColumns = 8 * X::kLanes;
  int64_t rows = 1;
  while (v.stride[2] == width * v.stride[3] && rows * width % X::kLanes != 0 &&
         2 * rows * width <= kMostColumns) {
    rows *= 2;
  }
  return rows;
}

// [R][S][C][lanes] from the weights of one block of filters, which begin the view.
template <class X>
static void pack_filters(int64_t R, int64_t S, const View4& weight, int64_t C, int64_t valid,
                         int64_t lanes, typename X::T* out) {
  if (valid < lanes) fill_zero(out, R * S * C * lanes);
  const int64_t* stride = weight.stride;
  if (stride[3] == 1 && stride[2] == S) {  // the taps of a channel are contiguous
    for (int64_t c = 0; c < C; c++) {
      read_matrix<X>(weight.dtype, at(weight, 0, c, 0, 0), 1, stride[0], out + c * lanes, C * lanes,
                     R * S, valid);
    }
    return;
  }
  for (int64_t r = 0; r < R; r++) {
    for (int64_t s = 0; s < S; s++, out += C * lanes) {
      read_matrix<X>(weight.dtype, at(weight, 0, 0, r, s), stride[1], stride[0], out, lanes, C,
                     valid);
    }
  }
}

// The biases of filters [k, k + K), widened; nothing if there are none.
template <class X>
static void pack_bias(const ConvForwardArgs& a, int64_t k, int64_t K, typename X::T* out) {
  if (!a.bias) return;
  const auto* bias = static_cast<const char*>(a.bias) + k * bytes_of(a.weight.dtype);
  read_matrix<X>(a.weight.dtype, bias, K, 1, out, K, 1, K);
}

// What an average over the window that starts at (h0, w0) divides by.
static inline double avg_divisor(const ConvReLUPoolParams& p, int64_t h0, int64_t w0) {
  return static_cast<double>(avg_extent(h0, p.pool_h, p.P, p.pool_padding_h, p.count_include_pad) *
                             avg_extent(w0, p.pool_w, p.Q, p.pool_padding_w, p.count_include_pad));
}

}  // namespace imgfast::cpu::IMGFAST_ISA
