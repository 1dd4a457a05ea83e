// Where Winograd's tiles lie, and where they come from: rows of an image, or rows of the gradient
// at the convolution's output. One row of tiles at a time is staged and transformed while it is in
// the cache.
//
// A convolution of dilation d is one of unit dilation on each of the lattices of every d-th row and
// column, so the samples and outputs of a tile lie d apart.
#pragma once

#include "conv_gradient_strip-inl.h"
#include "winograd-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// The tiles over one axis, as winograd_tiles counts them.
struct TileAxis {
  int64_t held, step, size, tiles;

  TileAxis(int64_t held, int64_t step, int64_t size)
      : held(held), step(step), size(size), tiles(winograd_tiles(held, step, size)) {}

  // The first position of tile t: all positions before it are those of the tiles before t.
  int64_t first(int64_t t) const {
    const int64_t before = step == 1 ? t : t / step * step;  // in whole blocks; spares a division
    return t + before * (held - 1);
  }

  // How many positions of the tile that starts at `first` exist.
  int64_t count(int64_t first) const {
    return first + (held - 1) * step < size ? held : ceil_div(size - first, step);
  }

  // The positions from the first tile's start to the last one's end, of so many samples a tile.
  int64_t span(int64_t samples) const { return first(tiles - 1) + (samples - 1) * step + 1; }
};

// Every step-th row (axis 2) or column (axis 3) of an image of `size` of them, among them `first`,
// which may lie in the padding.
struct Lattice {
  View4 x;
  int64_t size, first;
};

static inline Lattice every(int64_t step, const View4& x, int axis, int64_t size, int64_t first) {
  const int64_t phase = (first % step + step) % step;
  const View4 moved = axis == 2 ? view_at(x, 0, 0, phase, 0) : view_at(x, 0, 0, 0, phase);
  Lattice lattice = {moved, ceil_div(size - phase, step), (first - phase) / step};
  lattice.x.stride[axis] *= step;
  return lattice;
}

// Tiles of x for a Filtering F. A convolution of stride s is a sum of s x s ones of unit stride,
// over every s-th row and column of the padded image; they are staged as further channels, [row %
// s][column % s][C].
template <class X, class F>
struct ImageTiles {
  using T = typename X::T;
  static constexpr int kOutputs = F::kOutputs;

  const ConvReLUPoolParams& p;
  const TileAxis columns;
  int64_t C, stride, channels;  // of a group; channels of a tile
  int64_t width;                // columns that a row of tiles reads
  T *strip, *line;              // [6][width][channels], [stride * width][C]

  ImageTiles(Arena& arena, const ConvReLUPoolParams& p, const TileAxis& columns)
      : p(p),
        columns(columns),
        C(p.C / p.groups),
        stride(p.stride_h),
        channels(C * stride * stride),
        width(columns.span(F::kPoints)) {
    strip = arena.take<T>(F::kPoints * width * channels);
    line = arena.take<T>(stride > 1 ? stride * width * C : 0);
  }

  // The tiles whose first output lies in convolution row `row` of image n. Those that memory holds
  // whole are transformed where they lie, if their channels lie together; others are staged first.
  void transform_row(const View4& x, int64_t n, int64_t g, int64_t row, T* v, int64_t plane) const {
    const int64_t h0 = row * stride - p.padding_h, reach = stride * (F::kPoints - 1);
    const int64_t row_step = p.dilation_h * x.stride[2], col_step = p.dilation_w * x.stride[3];
    const int64_t c0 = g * C, last_row = h0 + reach * p.dilation_h + stride - 1;
    const bool whole_rows = x.stride[1] == 1 && holds(p.H, h0, last_row);
    bool staged = false;  // all columns
    for (int64_t t = 0; t < columns.tiles; t++, v += channels) {
      const int64_t col = columns.first(t), w0 = col * stride - p.padding_w;
      if (whole_rows && holds(p.W, w0, w0 + reach * p.dilation_w + stride - 1)) {
        if (stride == 1) prefetch(view_at(x, n, c0, h0 + F::kPoints * p.dilation_h, w0));
        with_storage<X>(x.dtype, [&](auto io) {
          for (int64_t i = 0; i < stride * stride; i++) {
            transform_input<X, F::kPoints>(
                at<const decltype(io)>(x, n, c0, h0 + i / stride, w0 + i % stride),
                stride * row_step, stride * col_step, C, v + i * C, plane);
          }
        });
      } else if (stride == 1 && x.stride[1] == 1) {
        stage(x, n, c0, h0, w0, p.dilation_w, F::kPoints);
        transform_input<X, F::kPoints>(strip, F::kPoints * C, C, C, v, plane);
      } else {
        if (!staged && stride > 1) stage_strided(x, n, c0, h0);
        if (!staged && stride == 1) stage(x, n, c0, h0, -p.padding_w, 1, width);
        staged = true;
        transform_input<X, F::kPoints>(strip + col * channels, width * channels,
                                       p.dilation_w * channels, channels, v, plane);
      }
    }
  }

  // The rows of a tile from h0 on, and `count` columns from w0 on, `step` apart.
  void stage(const View4& x, int64_t n, int64_t c0, int64_t h0, int64_t w0, int64_t step,
             int64_t count) const {
    const Lattice rows = every(p.dilation_h, x, 2, p.H, h0);
    const Lattice cols = every(step, rows.x, 3, p.W, w0);
    stage_strip<X>(cols.x, rows.size, cols.size, n, c0, C, rows.first, F::kPoints, cols.first,
                   count, C, strip);
  }

  // What the next tile of its lattice below reads beyond this one.
  void prefetch(const View4& x) const {
    for (int i = 0; i < kOutputs; i++) {
      for (int j = 0; j < kOutputs; j++) {
        const char* channels = static_cast<char*>(at(x, 0, 0, i * p.dilation_h, j * p.dilation_w));
        for (int64_t byte = 0; byte < C * bytes_of(x.dtype); byte += 64) {
          __builtin_prefetch(channels + byte, 0, 2);
        }
      }
    }
  }

  void stage_strided(const View4& x, int64_t n, int64_t c0, int64_t h0) const {
    const int64_t half = stride * C;  // what lies together of one row
    const bool dense = is_computed_as_stored<X>(x.dtype) && x.stride[1] == 1 && x.stride[3] == C;
    for (int64_t i = 0; i < stride * F::kPoints; i++) {
      T* to = strip + i / stride * width * channels + i % stride * half;
      const int64_t h = h0 + i;
      if (dense) {
        const bool inside = h >= 0 && h < p.H;
        scatter_row(inside ? at<const T>(x, n, c0, h, 0) : nullptr, to);
        continue;
      }
      stage_strip<X>(x, p.H, p.W, n, c0, C, h, 1, -p.padding_w, stride * width, C, line);
      for (int64_t w = 0; w < width; w++) copy_into<X>(line + w * half, to + w * channels, half);
    }
  }

  // The same of a row whose positions lie dense, or of zeros.
  void scatter_row(const T* from, T* to) const {
    for (int64_t w = 0; w < width; w++, to += channels) {
      const int64_t first = w * stride - p.padding_w, begin = max_of(first, 0);
      const int64_t count = from ? min_of(first + stride, p.W) - begin : 0;
      if (count < stride) fill_zero(to, stride * C);
      if (count > 0) copy_into<X>(from + begin * C, to + (begin - first) * C, count * C);
    }
  }
};

}  // namespace imgfast::cpu::IMGFAST_ISA
