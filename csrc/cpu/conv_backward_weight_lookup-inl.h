// Weight gradient of conv_relu_pool behind a max pool, for layers of few input channels: a vector
// holds one tap's sums of neighbouring filters, so no lane is lost to a short run of taps.
//
// In a window, filter k needs the input under the position that its code names. Rows of the strip
// are interleaved, [column][row], so that all inputs which the window's positions may need for one
// tap lie within one vector; a permutation by code picks every filter's own. One load, then one
// permutation and one multiply-add per vector of filters: no lists, no branch. The next tap is the
// same read elsewhere, with the same index.
//
// A filter of stride s reads every s-th row and column: rows and columns are sorted by their
// remainder, and a tap belongs to the remainder of its own row and column.
#pragma once

#include "conv_gradient-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct LookupScratch;

template <class X>
struct LookupPlan {
  using T = typename X::T;
  using Scratch = LookupScratch<X>;
  static constexpr int kVectors = X::kTileCols >= 12 ? 2 : 1;  // of filters at a time
  static constexpr int kTaps = 12;                             // whose sums stay in registers
  static constexpr int kSide = 4;                              // their rows and columns at most
  static constexpr int64_t kWindows = 64;                      // of a strip: sums in registers

  int64_t C, K, lanes;            // per group; filters rounded up to vectors
  int64_t tap_rows, interleaved;  // of a block of taps: its rows, the input rows it needs
  int64_t row_classes, col_classes;
  int64_t columns;  // of one class
  int64_t rows, strip_rows, windows;

  // Input rows that may be interleaved before the last position of a window leaves the vector.
  static int64_t most_interleaved(const ConvReLUPoolParams& p) {
    return p.pool_w == 1 ? X::kLanes : (X::kLanes - p.pool_h) / (p.pool_w - 1);
  }

  // Whether there is such a plan and it is the faster one. Costs are counted in vector
  // multiply-adds a window, as measured: interleaving costs a tap one more, listing a filter's
  // window five. Where a run of taps fills its vectors anyway, lists are faster, as they leave out
  // what is zero.
  static bool fits(const ConvReLUPoolParams& p) {
    if (p.pool != Pool::kMax || p.pool_h * p.pool_w > X::kLanes || p.pool_dilation_h != 1 ||
        p.pool_dilation_w != 1 || p.dilation_h != 1 || p.dilation_w != 1) {
      return false;
    }
    const int64_t C = p.C / p.groups, K = p.K / p.groups;
    const int64_t lookups = C * p.R * p.S * (ceil_div(K, X::kLanes) + 1);
    const int64_t lists = K * (5 + p.R * ceil_div(p.S * C, X::kLanes));
    return C < X::kLanes && lookups <= lists;
  }

  explicit LookupPlan(const ConvReLUPoolParams& p)
      : C(p.C / p.groups),
        K(p.K / p.groups),
        lanes(round_up(K, X::kLanes)),
        row_classes(min_of(p.stride_h, p.R)),
        col_classes(min_of(p.stride_w, p.S)) {
    const int64_t class_rows = ceil_div(p.R, p.stride_h);
    const int64_t most = min_of(kSide, most_interleaved(p) - p.pool_h + 1);
    tap_rows = ceil_div(class_rows, ceil_div(class_rows, most));
    interleaved = tap_rows + p.pool_h - 1;
    columns = (p.PW - 1) * p.pool_stride_w + p.pool_w - 1 + ceil_div(p.S, p.stride_w);
    rows = min_of(max_of(kWindows / p.PW, 1), p.PH);
    strip_rows = ((rows - 1) * p.pool_stride_h + p.pool_h - 1) * p.stride_h + p.R;
    windows = rows * p.PW;
  }

  int64_t width(const ConvReLUPoolParams& p) const { return columns * p.stride_w; }
  int64_t plane() const { return columns * interleaved; }
  int64_t partial_size(const ConvReLUPoolParams& p) const {
    return p.groups * C * p.R * p.S * lanes;
  }
};

template <class X>
struct LookupScratch {
  using T = typename X::T;
  GradientRows<X> gradient;
  T *index, *strip, *planes;  // [windows][lanes]; rows as they are; [column][row] of one channel
  int64_t size;

  LookupScratch(const ConvReLUPoolParams& p, const LookupPlan<X>& plan, Arena arena)
      : gradient(arena, p, plan.K, plan.rows) {
    index = arena.take<T>(plan.windows * plan.lanes);
    strip = arena.take<T>(plan.C * plan.strip_rows * plan.width(p) + X::kLanes);
    planes = arena.take<T>(plan.rows * plan.col_classes * plan.plane() + X::kLanes);
    size = arena.used;
  }
};

// What one call of the kernel below walks.
template <class X>
struct LookupWalk {
  int64_t rows, windows;                       // pooled rows, windows of a row
  int64_t row_step, window_step, column_step;  // in the planes
  int64_t grad_step, index_step;               // of a window
  int64_t tap_row_step, tap_column_step;       // in the sums
};

// sums[tap][k] += grad[window][k] * (what the code of [window][k] picks of the tap's vector), for
// TR x TC taps and NV vectors of filters. Lanes past the last filter hold its successors' gradients
// and sum up what nobody reads.
template <class X, int TR, int TC, int NV>
static void accumulate_lookups(const LookupWalk<X>& walk, const typename X::T* planes,
                               const typename X::T* grad, const typename X::T* index,
                               typename X::T* sums) {
  typename X::V sum[TC][TR][NV];
#pragma GCC unroll 4
  for (int c = 0; c < TC; c++) {
#pragma GCC unroll 4
    for (int r = 0; r < TR; r++) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) sum[c][r][v] = X::zero();
    }
  }
  for (int64_t row = 0; row < walk.rows; row++) {
    const typename X::T* at = planes + row * walk.row_step;
    for (int64_t w = 0; w < walk.windows; w++) {
      typename X::V g[NV], pick[NV];
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) {
        g[v] = X::load(grad + v * X::kLanes);
        pick[v] = X::load(index + v * X::kLanes);
      }
#pragma GCC unroll 4
      for (int c = 0; c < TC; c++) {
#pragma GCC unroll 4
        for (int r = 0; r < TR; r++) {
          const auto candidates = X::keep(X::load(at + c * walk.column_step + r));
#pragma GCC unroll 2
          for (int v = 0; v < NV; v++) {
            sum[c][r][v] = X::fma(g[v], X::permute(candidates, pick[v]), sum[c][r][v]);
          }
        }
      }
      at += walk.window_step;
      grad += walk.grad_step;
      index += walk.index_step;
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < TC; c++) {
#pragma GCC unroll 4
    for (int r = 0; r < TR; r++) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) {
        typename X::T* to = sums + r * walk.tap_row_step + c * walk.tap_column_step + v * X::kLanes;
        X::store(to, X::add(X::load(to), sum[c][r][v]));
      }
    }
  }
}

template <class X>
using AccumulateLookups = decltype(&accumulate_lookups<X, 1, 1, 1>);

template <class X, int NV, int TR = LookupPlan<X>::kSide, int TC = LookupPlan<X>::kSide>
static AccumulateLookups<X> accumulate_lookups_for(int64_t rows, int64_t columns) {
  if constexpr (TR > 1) {
    if (rows < TR) return accumulate_lookups_for<X, NV, TR - 1, TC>(rows, columns);
  }
  if constexpr (TR * TC > LookupPlan<X>::kTaps) {
    return accumulate_lookups_for<X, NV, TR, TC - 1>(rows, columns);
  } else {
    if constexpr (TC > 1) {
      if (columns < TC) return accumulate_lookups_for<X, NV, TR, TC - 1>(rows, columns);
    }
    return accumulate_lookups<X, TR, TC, NV>;
  }
}

// All filters and the taps of one block's rows and one class of columns.
template <class X>
static void accumulate_class(const LookupPlan<X>& plan, const LookupScratch<X>& s,
                             LookupWalk<X> walk, const typename X::T* planes, int64_t tap_rows,
                             int64_t tap_columns, typename X::T* sums) {
  const int64_t pieces = ceil_div(tap_columns, min_of(plan.kSide, plan.kTaps / tap_rows));
  for (int64_t k = 0, vectors; k < plan.lanes; k += vectors * X::kLanes) {
    vectors = min_of(plan.kVectors, (plan.lanes - k) / X::kLanes);
    for (int64_t piece = 0; piece < pieces; piece++) {
      const int64_t first = tap_columns * piece / pieces,
                    count = tap_columns * (piece + 1) / pieces - first;
      const auto accumulate = vectors == 1
                                  ? accumulate_lookups_for<X, 1>(tap_rows, count)
                                  : accumulate_lookups_for<X, plan.kVectors>(tap_rows, count);
      accumulate(walk, planes + first * walk.column_step, s.gradient.grad + k, s.index + k,
                 sums + first * walk.tap_column_step + k);
    }
  }
}

// Writes a few rows of a strip as [column][row], a vector of as many columns as fit at a time.
template <class X>
struct RowInterleaver {
  typename X::V from;              // lane of a row's vector that a lane of the result comes from
  typename X::M takes[X::kLanes];  // [row]: the lanes of the result that come from it
  int64_t pitch, column_step, group;

  RowInterleaver(int64_t pitch, int64_t column_step)
      : pitch(pitch),
        column_step(column_step),
        group(min_of(X::kLanes / pitch, (X::kLanes - 1) / column_step + 1)) {
    uint8_t lane[X::kLanes] = {}, row[X::kLanes];
    for (int64_t i = 0; i < X::kLanes; i++) {
      if (i < group * pitch) lane[i] = static_cast<uint8_t>(i / pitch * column_step);
      row[i] = static_cast<uint8_t>(i < group * pitch ? i % pitch : X::kLanes);
    }
    from = X::load_integers(lane, X::kLanes);
    for (int i = 0; i < X::kLanes; i++) {
      takes[i] = X::eq(X::load(row), X::set1(static_cast<typename X::T>(i)));
    }
  }

  // Reads and writes less than a vector too much. Not inlined: its caller leaves it no registers.
  [[gnu::noinline]] void operator()(const typename X::T* in, int64_t row_step, int64_t rows,
                                    int64_t columns, typename X::T* out) const {
    for (int64_t column = 0; column < columns; column += group) {
      auto result = X::zero();
      for (int64_t row = 0; row < rows; row++) {
        result = X::blend(takes[row], X::permute(X::load(in + row * row_step), from), result);
      }
      X::store(out, result);
      in += group * column_step;
      out += group * pitch;
    }
  }
};

// index[window][k]: where in a tap's vector the position that the code names lies.
template <class X>
[[gnu::noinline]] static void stage_index(const ConvBackwardArgs& a, const LookupPlan<X>& plan,
                                          int64_t n, int64_t k0, int64_t ph0, int64_t ph1,
                                          typename X::T* index) {
  const ConvReLUPoolParams& p = *a.params;
  uint8_t position_lane[X::kLanes] = {};
  for (int64_t i = 0; i < p.pool_h * p.pool_w; i++) {
    position_lane[i] = static_cast<uint8_t>(i % p.pool_w * plan.interleaved + i / p.pool_w);
  }
  const auto lane = X::load_integers(position_lane, X::kLanes);
  const uint8_t* codes = a.codes + (n * p.PH + ph0) * p.PW * p.K + k0;
  for (int64_t i = 0; i < (ph1 - ph0) * p.PW; i++, codes += p.K, index += plan.lanes) {
    for (int64_t k = 0; k < plan.K; k += X::kLanes) {
      const int left = static_cast<int>(min_of(X::kLanes, plan.K - k));
      // kBlocked is beyond the bits that a permutation looks at. A whole vector is worth its
      // branch.
      const auto code = left < X::kLanes ? X::load_integers(codes + k, left)
                                         : X::load_integers(codes + k, X::kLanes);
      X::store(index + k, X::permute(lane, code));
    }
  }
}

template <class X>
static void add_strip(const ConvBackwardArgs& a, const LookupPlan<X>& plan,
                      const LookupScratch<X>& s, int64_t n, int64_t g, int64_t ph0, int64_t ph1,
                      typename X::T* weight, typename X::T* bias) {
  using T = typename X::T;
  const ConvReLUPoolParams& p = *a.params;
  s.gradient.stage(a, n, g * plan.K, ph0, ph1);
  if (bias) {
    add_bias_gradient<X>(s.gradient.grad, (ph1 - ph0) * p.PW, plan.K, plan.K, bias + g * plan.K);
  }
  if (!weight) return;
  stage_index(a, plan, n, g * plan.K, ph0, ph1, s.index);

  const int64_t width = plan.width(p), rows = ph1 - ph0;
  const int64_t strip_rows = ((rows - 1) * p.pool_stride_h + p.pool_h - 1) * p.stride_h + p.R;
  const int64_t h0 = (ph0 * p.pool_stride_h - p.pool_padding_h) * p.stride_h - p.padding_h;
  const int64_t w0 = -p.pool_padding_w * p.stride_w - p.padding_w;
  // Channels together only where they are neighbours in memory.
  const bool planar = a.x.stride[3] == 1 || plan.C == 1;
  const int64_t together = planar ? 1 : plan.C;
  for (int64_t c = 0; c < plan.C; c += together) {
    stage_strip<X>(a.x, p.H, p.W, n, g * plan.C + c, together, h0, strip_rows, w0, width, together,
                   s.strip + c * strip_rows * width);
  }

  LookupWalk<X> walk;
  walk.rows = rows;
  walk.windows = p.PW;
  walk.row_step = plan.col_classes * plan.plane();
  walk.column_step = plan.interleaved;
  walk.window_step = p.pool_stride_w * plan.interleaved;
  walk.grad_step = plan.K;
  walk.index_step = plan.lanes;
  walk.tap_row_step = p.stride_h * p.S * plan.lanes;
  walk.tap_column_step = p.stride_w * plan.lanes;
  const RowInterleaver<X> interleave(plan.interleaved, p.stride_w * together);
  for (int64_t c = 0; c < plan.C; c++) {
    const T* channel = s.strip + (planar ? c * strip_rows * width : c);
    for (int64_t row_class = 0; row_class < plan.row_classes; row_class++) {
      const int64_t class_rows = ceil_div(p.R - row_class, p.stride_h);
      for (int64_t first = 0; first < class_rows; first += plan.tap_rows) {
        const int64_t tap_rows = min_of(plan.tap_rows, class_rows - first);
        for (int64_t row = 0; row < rows; row++) {
          const T* from = channel + ((row * p.pool_stride_h + first) * p.stride_h + row_class) *
                                        width * together;
          for (int64_t col_class = 0; col_class < plan.col_classes; col_class++) {
            interleave(from + col_class * together, p.stride_h * width * together,
                       tap_rows + p.pool_h - 1, plan.columns,
                       s.planes + row * walk.row_step + col_class * plan.plane());
          }
        }
        for (int64_t col_class = 0; col_class < plan.col_classes; col_class++) {
          const int64_t tap =
              ((g * plan.C + c) * p.R + first * p.stride_h + row_class) * p.S + col_class;
          accumulate_class(plan, s, walk, s.planes + col_class * plan.plane(), tap_rows,
                           ceil_div(p.S - col_class, p.stride_w), weight + tap * plan.lanes);
        }
      }
    }
  }
}

template <class X>
static void write_weight(const ConvBackwardArgs& a, const LookupPlan<X>& plan,
                         const typename X::T* sums) {
  const ConvReLUPoolParams& p = *a.params;
  for (int64_t g = 0; g < p.groups; g++) {
    for (int64_t c = 0; c < plan.C; c++) {
      for (int64_t r = 0; r < p.R; r++, sums += p.S * plan.lanes) {
        write_matrix<X>(sums, plan.lanes, a.grad_weight.dtype,
                        at(a.grad_weight, g * plan.K, c, r, 0), a.grad_weight.stride[3],
                        a.grad_weight.stride[0], p.S, plan.K);
      }
    }
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
