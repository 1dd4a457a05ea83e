// The gradient at the convolution's output, expanded from the pooled gradient and its codes a few
// rows at a time, for the kernels that are dense: Winograd's and those of depthwise filters.
#pragma once

#include "conv_gradient-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Rows of it, in a strip that stays in the cache.
template <class X>
struct GradientStrip {
  using T = typename X::T;

  GradientRows<X> pooled;
  int64_t K, step, width;  // filters, elements from one position to the next, columns
  int64_t together;        // pooled rows that are staged at a time
  T* strip;                // [rows][width][step]

  GradientStrip(Arena& arena, const ConvReLUPoolParams& p, int64_t K, int64_t step, int64_t rows,
                int64_t width, int64_t together)
      : pooled(arena, p, K, together), K(K), step(step), width(width), together(together) {
    strip = arena.take<T>(rows * width * step);
  }

  // The same memory for fewer filters.
  GradientStrip of(int64_t filters) const {
    GradientStrip fewer = *this;
    fewer.K = fewer.pooled.K = filters;
    return fewer;
  }

  // What expand() makes of rows dilation_h apart, or where it lies already.
  PlacedRows<T> rows(const ConvBackwardArgs& a, int64_t n, int64_t k0, int64_t p0, int64_t count,
                     int64_t q0) const {
    const ConvReLUPoolParams& p = *a.params;
    const View4& grad = a.grad_y;
    const bool as_it_is = p.pool == Pool::kNone && p.activation == Activation::kNone &&
                          is_computed_as_stored<X>(grad.dtype) && grad.stride[1] == 1;
    if (as_it_is && holds(p.P, p0, p0 + (count - 1) * p.dilation_h) &&
        holds(p.Q, q0, q0 + width - 1)) {
      return {at<T>(grad, n, k0, p0, q0), p.dilation_h * grad.stride[2], grad.stride[3]};
    }
    expand(a, n, k0, p0, count, q0, p.dilation_h);
    return {strip, width * step, step};
  }

  // That many rows from p0 on, row_step apart (1 unless together is), and columns [q0, q0 + width)
  // of image n and filters [k0, k0 + K); zero where there is no output.
  void expand(const ConvBackwardArgs& a, int64_t n, int64_t k0, int64_t p0, int64_t rows,
              int64_t q0, int64_t row_step = 1) const {
    const ConvReLUPoolParams& p = *a.params;
    if (p.pool == Pool::kNone && q0 <= 0 && p.Q - q0 <= width) {
      copy_rows(a, n, k0, p0, rows, -q0, row_step);
      return;
    }
    const int64_t span_h = (p.pool_h - 1) * p.pool_dilation_h + 1;
    const int64_t span_w = (p.pool_w - 1) * p.pool_dilation_w + 1;
    const bool apart = p.pool_stride_h >= span_h && p.pool_stride_w >= span_w;
    const int64_t ph0 =
        max_of(0, ceil_div(max_of(0, p0 + p.pool_padding_h - span_h + 1), p.pool_stride_h));
    const int64_t last = p0 + (rows - 1) * row_step;
    const int64_t ph1 = min_of(
        p.PH, last + p.pool_padding_h < 0 ? 0 : (last + p.pool_padding_h) / p.pool_stride_h + 1);
    const int64_t positions = p.pool_h * p.pool_w;
    int64_t down[kMaxWindow], right[kMaxWindow];  // of a position, from the window's first
    for (int64_t i = 0; i < positions; i++) {
      down[i] = position_row(p, 0, i);
      right[i] = position_col(p, 0, i);
    }
    const int64_t first_row = max_of(0, p0), last_row = min_of(p.P - 1, last);
    const int64_t first_col = max_of(0, q0), end_col = min_of(p.Q, q0 + width);
    fill_zero(strip, rows * width * step);
    for (int64_t ph = ph0; ph < ph1; ph++) {
      const int64_t staged = (ph - ph0) % together;
      if (staged == 0) pooled.stage(a, n, k0, ph, min_of(ph + together, ph1));
      T* line[kMaxWindow];  // of each position, null if its row is not of the strip
      for (int64_t i = 0; i < positions; i++) {
        const int64_t h = ph * p.pool_stride_h + down[i];
        const bool inside = h >= first_row && h <= last_row && (h - p0) % row_step == 0;
        line[i] = inside ? strip + (h - p0) / row_step * width * step : nullptr;
      }
      for (int64_t pw = 0; pw < p.PW; pw++) {
        const T* gradient = pooled.grad + (staged * p.PW + pw) * K;
        const uint8_t* codes =
            a.codes ? a.codes + ((n * p.PH + ph) * p.PW + pw) * p.K + k0 : nullptr;
        T* to[kMaxWindow];  // of each position, null outside of the strip
        for (int64_t i = 0; i < positions; i++) {
          const int64_t w = pw * p.pool_stride_w + right[i];
          to[i] = line[i] && w >= first_col && w < end_col ? line[i] + (w - q0) * step : nullptr;
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
  void copy_rows(const ConvBackwardArgs& a, int64_t n, int64_t k0, int64_t p0, int64_t rows,
                 int64_t first, int64_t row_step) const {
    const ConvReLUPoolParams& p = *a.params;
    const bool in_place = together == 1 && step == K;
    const int64_t begin = min_of(rows, ceil_div(max_of(0, -p0), row_step));
    const int64_t end = max_of(begin, min_of(rows, ceil_div(max_of(0, p.P - p0), row_step)));
    fill_zero(strip, begin * width * step);
    fill_zero(strip + end * width * step, (rows - end) * width * step);
    for (int64_t i = begin; i < end; i += together) {
      const int64_t count = min_of(together, end - i);
      T* row = strip + i * width * step;
      if (step > K) fill_zero(row, count * width * step);
      GradientRows<X> staged = pooled;
      if (in_place) staged.grad = row + first * step;
      staged.stage(a, n, k0, p0 + i * row_step, p0 + i * row_step + count);
      for (int64_t j = 0; j < count; j++, row += width * step) {
        fill_zero(row, first * step);
        fill_zero(row + (first + p.Q) * step, (width - first - p.Q) * step);
        if (!in_place) {
          copy_matrix<X>(staged.grad + j * p.Q * K, K, 1, row + first * step, step, 1, p.Q, K);
        }
      }
    }
  }

  // To the position that the code names, and zero to the others; added where windows overlap.
  void add_maximum(const T* gradient, const uint8_t* codes, int64_t positions, bool apart,
                   T* const* to) const {
    int64_t k = 0;
    for (; k + X::kLanes <= K; k += X::kLanes) {
      add_maximum_vector(gradient, codes, positions, apart, to, k, X::kLanes);
    }
    if (k < K) {
      add_maximum_vector(gradient, codes, positions, apart, to, k, static_cast<int>(K - k));
    }
  }

  [[gnu::always_inline]] static void add_maximum_vector(const T* gradient, const uint8_t* codes,
                                                        int64_t positions, bool apart, T* const* to,
                                                        int64_t k, int n) {
    const auto blocked = X::set1(kBlocked);
    const auto code = X::load(codes + k, n), value = X::load(gradient + k, n);
    const auto place = X::blend(X::ge(code, blocked), X::sub(code, blocked), code);
    for (int64_t i = 0; i < positions; i++) {
      if (!to[i]) continue;
      auto part = X::blend(X::eq(place, X::set1(static_cast<T>(i))), value, X::zero());
      if (!apart) part = X::add(part, X::load(to[i] + k, n));
      X::store(to[i] + k, part, n);
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
