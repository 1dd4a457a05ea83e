// Where Winograd's tiles lie, and where they come from: rows of an image, or rows of the gradient
// at the convolution's output. One row of tiles at a time is staged and transformed while it is in
// the cache.
//
// A convolution of dilation d is one of unit dilation on each of the lattices of every d-th row and
// column, so the samples and outputs of a tile lie d apart.
#pragma once

#include "conv_gradient-inl.h"
#include "winograd-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// The tiles over one axis of `size` positions, of which a tile holds `held`, `step` apart: as many
// tiles as the step side by side fill a block of neighbours.
struct TileAxis {
  int64_t held, step, size, tiles;

  TileAxis(int64_t held, int64_t step, int64_t size) : held(held), step(step), size(size) {
    const int64_t block = held * step;
    tiles = size / block * step + min_of(size % block, step);
  }

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

template <class IO>
static inline Lattice every(int64_t step, const View4& x, int axis, int64_t size, int64_t first) {
  const int64_t phase = (first % step + step) % step;
  Lattice lattice = {x, ceil_div(size - phase, step), (first - phase) / step};
  lattice.x.data = static_cast<IO*>(x.data) + phase * x.stride[axis];
  lattice.x.stride[axis] *= step;
  return lattice;
}

// Tiles of x for F(m, kTaps). A convolution of stride s is a sum of s x s ones of unit stride, over
// every s-th row and column of the padded image; they are staged as further channels,
// [row % s][column % s][C].
template <class X, int kTaps>
struct ImageTiles {
  using T = typename X::T;
  static constexpr int kOutputs = kPoints + 1 - kTaps;

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
        width(columns.span(kPoints)) {
    strip = arena.take<T>(kPoints * width * channels);
    line = arena.take<T>(stride > 1 ? stride * width * C : 0);
  }

  // The tiles whose first output lies in convolution row `row` of image n.
  template <class IO>
  void transform_row(const View4& x, int64_t n, int64_t g, int64_t row, T* v, int64_t plane) const {
    const int64_t h0 = row * stride - p.padding_h, h1 = h0 + (kPoints - 1) * p.dilation_h;
    const int64_t row_step = p.dilation_h * x.stride[2], col_step = p.dilation_w * x.stride[3];
    const int64_t c0 = g * C;
    const bool in_place = stride == 1 && x.stride[1] == 1;
    if (stride > 1) {
      stage_strided<IO>(x, n, c0, h0);
    } else if (!in_place) {
      stage<IO>(x, n, c0, h0, -p.padding_w, 1, width);
    }
    for (int64_t t = 0; t < columns.tiles; t++, v += channels) {
      const int64_t col = columns.first(t);
      const int64_t w0 = col - p.padding_w, w1 = w0 + (kPoints - 1) * p.dilation_w;
      if (!in_place) {
        transform_input<X>(strip + col * channels, width * channels, p.dilation_w * channels,
                           channels, v, plane);
      } else if (h0 >= 0 && h1 < p.H && w0 >= 0 && w1 < p.W) {
        const IO* first = at<const IO>(x, n, c0, h0, w0);
        prefetch(first + kPoints * row_step, row_step, col_step);
        transform_input<X>(first, row_step, col_step, C, v, plane);
      } else {
        stage<IO>(x, n, c0, h0, w0, p.dilation_w, kPoints);
        transform_input<X>(strip, kPoints * C, C, C, v, plane);
      }
    }
  }

  // The rows of a tile from h0 on, and `count` columns from w0 on, `step` apart.
  template <class IO>
  void stage(const View4& x, int64_t n, int64_t c0, int64_t h0, int64_t w0, int64_t step,
             int64_t count) const {
    const Lattice rows = every<IO>(p.dilation_h, x, 2, p.H, h0);
    const Lattice cols = every<IO>(step, rows.x, 3, p.W, w0);
    stage_strip<X, IO>(cols.x, rows.size, cols.size, n, c0, C, rows.first, kPoints, cols.first,
                       count, C, strip);
  }

  // What the next tile of its lattice below reads beyond this one.
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

// Rows of the gradient at the convolution's output, dilation_h apart, expanded from the pooled
// gradient and its codes into a strip that stays in the cache.
template <class X>
struct GradientStrip {
  using T = typename X::T;

  GradientRows<X> pooled;
  int64_t K, width;
  T* strip;  // [rows][width][K]

  GradientStrip(Arena& arena, const ConvReLUPoolParams& p, int64_t rows, int64_t width)
      : pooled(arena, p, p.K / p.groups, 1), K(p.K / p.groups), width(width) {
    strip = arena.take<T>(rows * width * K);
  }

  // That many rows from p0 on and columns [q0, q0 + width) of image n and group g; zero where there
  // is no output.
  template <class IO>
  void expand(const ConvBackwardArgs& a, int64_t n, int64_t g, int64_t p0, int64_t rows,
              int64_t q0) const {
    const ConvReLUPoolParams& p = *a.params;
    if (p.pool == Pool::kNone && q0 <= 0 && p.Q - q0 <= width) {
      copy_rows<IO>(a, n, g, p0, rows, -q0);
      return;
    }
    const int64_t span_h = (p.pool_h - 1) * p.pool_dilation_h + 1;
    const int64_t span_w = (p.pool_w - 1) * p.pool_dilation_w + 1;
    const bool apart = p.pool_stride_h >= span_h && p.pool_stride_w >= span_w;
    const int64_t ph0 =
        max_of(0, ceil_div(max_of(0, p0 + p.pool_padding_h - span_h + 1), p.pool_stride_h));
    const int64_t last = p0 + (rows - 1) * p.dilation_h;
    const int64_t ph1 = min_of(
        p.PH, last + p.pool_padding_h < 0 ? 0 : (last + p.pool_padding_h) / p.pool_stride_h + 1);
    const int64_t positions = p.pool_h * p.pool_w;
    fill_zero(strip, rows * width * K);
    for (int64_t ph = ph0; ph < ph1; ph++) {
      T* lines[kMaxWindow];  // where each position's row starts, null if the strip is without it
      bool any = false;
      for (int64_t i = 0; i < positions; i++) {
        const int64_t h = position_row(p, ph, i);
        const bool inside =
            h >= max_of(0, p0) && h <= min_of(p.P - 1, last) && (h - p0) % p.dilation_h == 0;
        lines[i] = inside ? strip + (h - p0) / p.dilation_h * width * K : nullptr;
        any |= inside;
      }
      if (!any) continue;
      pooled.template stage<IO>(a, n, g * K, ph, ph + 1);
      for (int64_t pw = 0; pw < p.PW; pw++) {
        const T* gradient = pooled.grad + pw * K;
        const uint8_t* codes =
            a.codes ? a.codes + ((n * p.PH + ph) * p.PW + pw) * p.K + g * K : nullptr;
        T* to[kMaxWindow];  // of each position, null outside of the strip
        for (int64_t i = 0; i < positions; i++) {
          const int64_t w = position_col(p, pw, i);
          const bool inside = lines[i] && w >= max_of(0, q0) && w < min_of(p.Q, q0 + width);
          to[i] = inside ? lines[i] + (w - q0) * K : nullptr;
        }
        if (p.pool == Pool::kMax) {
          add_maximum(gradient, codes, positions, apart, to);
        } else {
          add_average(p, gradient, codes, positions, to);
        }
      }
    }
  }

 private:
  // Without a pool, rows go through the activation to their place.
  template <class IO>
  void copy_rows(const ConvBackwardArgs& a, int64_t n, int64_t g, int64_t p0, int64_t rows,
                 int64_t first) const {
    const ConvReLUPoolParams& p = *a.params;
    GradientRows<X> in_place = pooled;
    for (int64_t i = 0; i < rows; i++) {
      T* row = strip + i * width * K;
      const int64_t ph = p0 + i * p.dilation_h;
      if (ph < 0 || ph >= p.P) {
        fill_zero(row, width * K);
        continue;
      }
      in_place.grad = row + first * K;
      in_place.template stage<IO>(a, n, g * K, ph, ph + 1);
      fill_zero(row, first * K);
      fill_zero(in_place.grad + p.Q * K, (width - first - p.Q) * K);
    }
  }

  // To the position that the code names, and zero to the others; added where windows overlap.
  void add_maximum(const T* gradient, const uint8_t* codes, int64_t positions, bool apart,
                   T* const* to) const {
    const auto blocked = X::set1(kBlocked);
    for (int64_t k = 0; k < K; k += X::kLanes) {
      const int n = static_cast<int>(min_of(X::kLanes, K - k));
      const auto code = X::load(codes + k, n), value = X::load(gradient + k, n);
      const auto place = X::blend(X::ge(code, blocked), X::sub(code, blocked), code);
      for (int64_t i = 0; i < positions; i++) {
        if (!to[i]) continue;
        auto part = X::blend(X::eq(place, X::set1(static_cast<T>(i))), value, X::zero());
        if (!apart) part = X::add(part, X::load(to[i] + k, n));
        X::store(to[i] + k, part, n);
      }
    }
  }

  void add_average(const ConvReLUPoolParams& p, const T* gradient, const uint8_t* codes,
                   int64_t positions, T* const* to) const {
    // WindowWalk::blocked, decided outside of the loop: or it runs at half the speed.
    const bool relu = p.activation == Activation::kReLU;
    const T slope = p.activation == Activation::kLeakyReLU ? static_cast<T>(kLeakyReLUSlope) : 1;
    for (int64_t i = 0; i < positions; i++) {
      if (!to[i]) continue;
      T* sums = to[i];
      for (int64_t k = 0; k < K && !codes; k++) sums[k] += gradient[k];
      for (int64_t k = 0; k < K && codes; k++) {
        const T blocked = relu ? 0 : gradient[k] * slope;
        sums[k] += codes[k] >> i & 1 ? gradient[k] : blocked;
      }
    }
  }
};

}  // namespace imgfast::cpu::IMGFAST_ISA
