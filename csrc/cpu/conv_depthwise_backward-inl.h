// Gradients of conv_relu_pool for depthwise filters, one channel a lane: all that meets in a sum is
// of one channel, so that nothing is broadcast.
//
// Every lane has the maximum of its window elsewhere, so the gradient at the convolution's output
// is expanded, a few rows of some channels at a time, by one comparison of codes a position. What
// follows is dense. The input gradient is the convolution of these rows with the filters turned
// around, falling into stride x stride phases of fewer taps each; the weight gradient is their
// correlation with x, the taps' sums in registers.
#pragma once

#include "conv_gradient_strip-inl.h"
#include "conv_tile-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

static inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

// A unit is (image, some rows, some channels), the last counted fastest.
template <class X>
struct DepthwiseUnits {
  int64_t C, rows;    // in all
  int64_t step;       // channels of a strip, whole vectors
  int64_t channels;   // of a unit that is not the last
  int64_t unit_rows;  // likewise
  int64_t row_parts, channel_parts, count;

  DepthwiseUnits(const ConvBackwardArgs& a, int64_t rows) : C(a.params->C), rows(rows) {
    channels = min_of(a.unit_filters, C);
    step = round_up(channels, X::kLanes);
    unit_rows = min_of(a.unit_rows, rows);
    row_parts = ceil_div(rows, unit_rows);
    channel_parts = ceil_div(C, channels);
    count = a.params->N * row_parts * channel_parts;
  }

  struct Unit {
    int64_t n, row_begin, row_end, c0, channels;
  };

  Unit operator[](int64_t i) const {
    const int64_t c0 = i % channel_parts * channels, part = i / channel_parts;
    const int64_t row = part % row_parts * unit_rows;
    return {part / row_parts, row, min_of(row + unit_rows, rows), c0, min_of(channels, C - c0)};
  }
};

// Pooled rows of grad_y that are staged together: one where it is already as the kernels read it.
template <class X>
static inline int64_t gradient_rows_at_a_time(const ConvBackwardArgs& a) {
  return a.grad_y.stride[1] == 1 ? 1 : rows_at_a_time<X>(a.grad_y, a.params->PW);
}

// Of the taps of one dimension, those that reach one of its positions in grad_x and every stride-th
// from there on. They are taken from the last to the first, as outputs ascend.
struct Phase {
  int64_t last, count;  // taps
  int64_t start;        // the output that the last tap of the first position reads
  int64_t before;       // taps of the phases before
};

struct Phases {
  int64_t taps, stride, dilation, padding;
  int64_t tap_step, output_step;  // from a phase's tap to its next one, and outputs between them
  int64_t count;
  int64_t first, end;  // outputs that are read for the first position, and after the last one's

  Phases(int64_t size, int64_t taps, int64_t stride, int64_t dilation, int64_t padding)
      : taps(taps), stride(stride), dilation(dilation), padding(padding) {
    int64_t divisor = stride;
    for (int64_t rest = dilation; rest != 0;) {  // Euclid's
      const int64_t next = divisor % rest;
      divisor = rest;
      rest = next;
    }
    tap_step = stride / divisor;
    output_step = dilation / divisor;
    count = min_of(stride, size);
    first = first_output(0);
    end = end_output(size);
  }

  // The outputs that positions [begin, end) read.
  int64_t first_output(int64_t begin) const {
    return floor_div(begin + padding - (taps - 1) * dilation, stride);
  }
  int64_t end_output(int64_t end) const { return (end - 1 + padding) / stride + 1; }

  Phase phase(int64_t position, int64_t before) const {
    for (int64_t tap = 0; tap < min_of(tap_step, taps); tap++) {
      const int64_t more = (taps - 1 - tap) / tap_step, last = tap + more * tap_step;
      const int64_t reach = position + padding - last * dilation;
      if (reach % stride == 0) return {last, more + 1, reach / stride, before};
    }
    return {0, 0, 0, before};
  }

  void fill(Phase* phases) const {
    int64_t before = 0;
    for (int64_t i = 0; i < count; i++) {
      phases[i] = phase(i, before);
      before += phases[i].count;
    }
  }
};

template <class X>
struct DepthwiseInputPlan {
  DepthwiseUnits<X> units;
  Phases down, across;
  int64_t strip_rows;
  int64_t row_group;  // rows that are copied to grad_x together

  explicit DepthwiseInputPlan(const ConvBackwardArgs& a) : DepthwiseInputPlan(a, *a.params) {}

 private:
  DepthwiseInputPlan(const ConvBackwardArgs& a, const ConvReLUPoolParams& p)
      : units(a, p.H),
        down(p.H, p.R, p.stride_h, p.dilation_h, p.padding_h),
        across(p.W, p.S, p.stride_w, p.dilation_w, p.padding_w) {
    strip_rows = (units.unit_rows - 1 + (p.R - 1) * p.dilation_h) / p.stride_h + 2;
    row_group = rows_at_a_time<X>(a.grad_x, p.W);
  }
};

template <class X>
struct DepthwiseInputScratch {
  GradientStrip<X> gradient;
  Phase *down, *across;
  typename X::T* row;  // [row_group][W][lanes]
  int64_t size;

  DepthwiseInputScratch(const ConvBackwardArgs& a, const DepthwiseInputPlan<X>& plan, Arena arena)
      : gradient(arena, *a.params, plan.units.channels, plan.units.step, plan.strip_rows,
                 plan.across.end - plan.across.first, gradient_rows_at_a_time<X>(a)) {
    down = arena.take<Phase>(plan.down.count);
    across = arena.take<Phase>(plan.across.count);
    row = arena.take<typename X::T>(plan.row_group * a.params->W * X::kLanes);
    size = arena.used;
  }
};

static int64_t depthwise_input_pack_size(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) -> int64_t {
    using X = decltype(x);
    return round_up(a.params->C, X::kLanes) * a.params->R * a.params->S *
           static_cast<int64_t>(sizeof(typename X::T));
  });
}

static int64_t depthwise_input_scratch(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    const DepthwiseInputPlan<decltype(x)> plan(a);
    return DepthwiseInputScratch<decltype(x)>(a, plan, Arena{nullptr}).size;
  });
}

static int64_t depthwise_input_units(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype,
                      [&](auto x) { return DepthwiseInputPlan<decltype(x)>(a).units.count; });
}

// [vector of channels][phase down][phase across][taps, from the last][lanes]
static void depthwise_input_pack(const ConvBackwardArgs& a) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    using T = typename X::T;
    const ConvReLUPoolParams& p = *a.params;
    const DepthwiseInputPlan<X> plan(a);
    const int64_t* stride = a.weight.stride;
    for (int64_t c0 = 0; c0 < p.C; c0 += X::kLanes) {
      T* block = static_cast<T*>(a.packed_weight) + c0 * p.R * p.S;
      Phase h{}, w{};
      for (int64_t i = 0; i < plan.down.count; i++) {
        h = plan.down.phase(i, h.before + h.count);
        w = {};
        for (int64_t j = 0; j < plan.across.count; j++) {
          w = plan.across.phase(j, w.before + w.count);
          const View4 turned = {
              at(a.weight, c0, 0, h.last, w.last),
              {stride[0], 1, -plan.down.tap_step * stride[2], -plan.across.tap_step * stride[3]},
              a.weight.dtype};
          pack_filters<X>(h.count, w.count, turned, 1, min_of(X::kLanes, p.C - c0), X::kLanes,
                          block + (h.before * p.S + h.count * w.before) * X::kLanes);
        }
      }
    }
  });
}

// TC neighbouring columns of one phase in a row of grad_x.
template <class X, int TC>
static void phase_tile(const Reduction& reduction, const typename X::T* in,
                       const typename X::T* weight, typename X::T* out, int64_t out_step) {
  Tile<X, 1, 1, TC> tile;
  convolve_tile<true>(reduction, in, weight, tile);
#pragma GCC unroll 12
  for (int tc = 0; tc < TC; tc++) X::store(out + tc * out_step, tile.sum[0][tc][0]);
}

// One vector of a unit's channels, its first one c.
template <class X>
static void input_vector(const ConvBackwardArgs& a, const DepthwiseInputPlan<X>& plan,
                         const DepthwiseInputScratch<X>& s,
                         const typename DepthwiseUnits<X>::Unit& unit, int64_t c) {
  using T = typename X::T;
  const ConvReLUPoolParams& p = *a.params;
  const Phases &down = plan.down, &across = plan.across;
  const int64_t lanes = X::kLanes, valid = min_of(lanes, unit.c0 + unit.channels - c);
  const int64_t step = plan.units.step, row_step = s.gradient.width * step;
  const bool to_x = writes_to<X>(a.grad_x, lanes, valid);
  const int64_t col = to_x ? a.grad_x.stride[3] : lanes;
  const T* weight = static_cast<const T*>(a.packed_weight) + c * p.R * p.S;
  const int64_t p0 = down.first_output(unit.row_begin);
  int64_t first = unit.row_begin;  // of the rows that have not been copied to grad_x
  for (int64_t h = first; h < unit.row_end; h++) {
    T* row = to_x ? at<T>(a.grad_x, unit.n, c, h, 0) : s.row + (h - first) * p.W * lanes;
    const Phase& i = s.down[h % p.stride_h];
    const T* in_row = s.gradient.strip + (i.start + h / p.stride_h - p0) * row_step + c - unit.c0;
    for (int64_t w = 0; w < across.count; w++) {
      const Phase& j = s.across[w];
      const Reduction reduction{.rows = i.count,
                                .row_step = down.output_step * row_step,
                                .segments = 1,
                                .segment_step = 0,
                                .length = j.count,
                                .out_row_step = 0,
                                .col_step = step,
                                .term_step = across.output_step * step};
      const T* in = in_row + (j.start - across.first) * step;
      const T* taps = weight + (i.before * p.S + i.count * j.before) * lanes;
      const int64_t outputs = ceil_div(p.W - w, p.stride_w),
                    tiles = ceil_div(outputs, X::kTileCols);
      for (int64_t t = 0; t < tiles; t++) {
        const int64_t q = outputs * t / tiles, cols = outputs * (t + 1) / tiles - q;
        const auto tile = with_count<X::kTileCols>(
            cols, [](auto n) { return phase_tile<X, decltype(n)::kValue>; });
        tile(reduction, in + q * step, taps, row + (w + q * p.stride_w) * col, p.stride_w * col);
      }
    }
    if (!to_x && (h + 1 - first == plan.row_group || h + 1 == unit.row_end)) {
      write_matrix<X>(s.row, lanes, a.grad_x.dtype, at(a.grad_x, unit.n, c, first, 0),
                      a.grad_x.stride[3], a.grad_x.stride[1], (h + 1 - first) * p.W, valid);
      first = h + 1;
    }
  }
}

static void depthwise_input(const ConvBackwardArgs& a, int64_t unit_begin, int64_t unit_end,
                            void* base) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const DepthwiseInputPlan<X> plan(a);
    const DepthwiseInputScratch<X> s(a, plan, Arena{static_cast<char*>(base)});
    plan.down.fill(s.down);
    plan.across.fill(s.across);
    for (int64_t i = unit_begin; i < unit_end; i++) {
      const auto unit = plan.units[i];
      const int64_t p0 = plan.down.first_output(unit.row_begin);
      s.gradient.of(unit.channels)
          .expand(a, unit.n, unit.c0, p0, plan.down.end_output(unit.row_end) - p0,
                  plan.across.first);
      for (int64_t c = 0; c < unit.channels; c += X::kLanes) {
        input_vector<X>(a, plan, s, unit, unit.c0 + c);
      }
    }
  });
}

template <class X>
struct DepthwiseWeightPlan {
  static constexpr int kSums = X::kTileCols >= 12 ? 25 : 12;  // that stay in registers
  static constexpr int kRows = 5, kColumns = 7;               // of taps, at a time

  DepthwiseUnits<X> units;
  int64_t width, strip_rows;  // of x
  bool in_place;              // x serves as its own strip

  explicit DepthwiseWeightPlan(const ConvBackwardArgs& a) : units(a, a.params->P) {
    const ConvReLUPoolParams& p = *a.params;
    width = (p.Q - 1) * p.stride_w + (p.S - 1) * p.dilation_w + 1;
    strip_rows = (units.unit_rows - 1) * p.stride_h + (p.R - 1) * p.dilation_h + 1;
    in_place = is_computed_as_stored<X>(a.x.dtype) && reads_no_padding(p) && a.x.stride[1] == 1 &&
               p.C % X::kLanes == 0;
  }

  // [vector of channels][R][S][lanes]
  static int64_t partial_size(const ConvReLUPoolParams& p) {
    return round_up(p.C, X::kLanes) * p.R * p.S;
  }
};

template <class X>
struct DepthwiseWeightScratch {
  GradientStrip<X> gradient;
  typename X::T* strip;  // [strip_rows][width][step]
  int64_t size;

  DepthwiseWeightScratch(const ConvBackwardArgs& a, const DepthwiseWeightPlan<X>& plan, Arena arena)
      : gradient(arena, *a.params, plan.units.channels, plan.units.step, plan.units.unit_rows,
                 a.params->Q, gradient_rows_at_a_time<X>(a)) {
    const int64_t row = plan.width * plan.units.step;
    strip = arena.take<typename X::T>(plan.in_place ? 0 : plan.strip_rows * row);
    size = arena.used;
  }
};

static int64_t depthwise_weight_partial_size(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    return DepthwiseWeightPlan<X>::partial_size(*a.params) *
           static_cast<int64_t>(sizeof(typename X::T));
  });
}

static int64_t depthwise_weight_scratch(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    const DepthwiseWeightPlan<decltype(x)> plan(a);
    return DepthwiseWeightScratch<decltype(x)>(a, plan, Arena{nullptr}).size;
  });
}

static int64_t depthwise_weight_units(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype,
                      [&](auto x) { return DepthwiseWeightPlan<decltype(x)>(a).units.count; });
}

// Where the terms of a weight gradient lie, in elements.
struct Correlation {
  int64_t rows, cols;        // of outputs
  int64_t g_row, g_col;      // from one output's gradient to the next
  int64_t x_row, x_col;      // from what one output reads of x to the next
  int64_t tap_row, tap_col;  // from what one tap reads of x to the next
  int64_t sum_row;           // from one row of sums to the next
};

// sums[r][s] += sum over outputs of g * x under tap (r, s), for NR x NS taps and a vector of
// channels.
template <class X, int NR, int NS>
static void correlate(const Correlation& c, const typename X::T* x, const typename X::T* g,
                      typename X::T* sums) {
  typename X::V sum[NR][NS];
#pragma GCC unroll 5
  for (int r = 0; r < NR; r++) {
#pragma GCC unroll 7
    for (int s = 0; s < NS; s++) sum[r][s] = X::zero();
  }
  const int64_t tap = c.tap_col, tap3 = 3 * tap;
  for (int64_t row = 0; row < c.rows; row++) {
    const typename X::T *from = x + row * c.x_row, *by = g + row * c.g_row;
    for (int64_t i = 0; i < c.cols; i++, from += c.x_col, by += c.g_col) {
      const auto gradient = X::load(by);
#pragma GCC unroll 5
      for (int r = 0; r < NR; r++) {
        const typename X::T* at_row = from + r * c.tap_row;
#pragma GCC unroll 7
        for (int s = 0; s < NS; s++) {
          sum[r][s] = X::fma(gradient, X::load(at_row + s / 3 * tap3 + s % 3 * tap), sum[r][s]);
        }
      }
    }
  }
#pragma GCC unroll 5
  for (int r = 0; r < NR; r++) {
#pragma GCC unroll 7
    for (int s = 0; s < NS; s++) {
      typename X::T* to = sums + r * c.sum_row + s * X::kLanes;
      X::store(to, X::add(X::load(to), sum[r][s]));
    }
  }
}

// The kernel of so many taps, of those that registers hold.
template <class X, int NS>
static auto correlate_rows(int64_t rows) {
  using Plan = DepthwiseWeightPlan<X>;
  constexpr int kMost = Plan::kSums / NS < Plan::kRows ? Plan::kSums / NS : Plan::kRows;
  return with_count<kMost>(rows, [](auto n) { return correlate<X, decltype(n)::kValue, NS>; });
}

// All taps of a vector of channels, as many at a time as registers hold.
template <class X>
static void correlate_taps(const ConvReLUPoolParams& p, const Correlation& c,
                           const typename X::T* x, const typename X::T* g, typename X::T* sums) {
  using Plan = DepthwiseWeightPlan<X>;
  const int64_t pieces = ceil_div(p.S, Plan::kColumns);
  const int64_t most = min_of(Plan::kSums / ceil_div(p.S, pieces), Plan::kRows);
  const int64_t passes = ceil_div(p.R, most);
  for (int64_t pass = 0; pass < passes; pass++) {
    const int64_t r = p.R * pass / passes, rows = p.R * (pass + 1) / passes - r;
    for (int64_t piece = 0; piece < pieces; piece++) {
      const int64_t s = p.S * piece / pieces, cols = p.S * (piece + 1) / pieces - s;
      const auto kernel = with_count<Plan::kColumns>(
          cols, [&](auto n) { return correlate_rows<X, decltype(n)::kValue>(rows); });
      kernel(c, x + r * c.tap_row + s * c.tap_col, g, sums + r * c.sum_row + s * X::kLanes);
    }
  }
}

static void depthwise_weight(const ConvBackwardArgs& a, int64_t unit_begin, int64_t unit_end,
                             int64_t slot, void* base) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    using T = typename X::T;
    const ConvReLUPoolParams& p = *a.params;
    const DepthwiseWeightPlan<X> plan(a);
    const DepthwiseWeightScratch<X> s(a, plan, Arena{static_cast<char*>(base)});
    T* weight = static_cast<T*>(a.partial_weight);
    if (weight) weight += slot * plan.partial_size(p);
    T* bias = static_cast<T*>(a.partial_bias);
    if (bias) bias += slot * p.K;
    const int64_t step = plan.units.step;
    for (int64_t i = unit_begin; i < unit_end; i++) {
      const auto unit = plan.units[i];
      const int64_t rows = unit.row_end - unit.row_begin;
      s.gradient.of(unit.channels).expand(a, unit.n, unit.c0, unit.row_begin, rows, 0);
      if (bias) {
        add_bias_gradient<X>(s.gradient.strip, rows * p.Q, step, unit.channels, bias + unit.c0);
      }
      if (!weight) continue;
      const int64_t h0 = unit.row_begin * p.stride_h - p.padding_h;
      const T* strip = s.strip;
      if (plan.in_place) {
        strip = at<const T>(a.x, unit.n, unit.c0, h0, 0);
      } else {
        stage_strip<X>(a.x, p.H, p.W, unit.n, unit.c0, unit.channels, h0,
                       (rows - 1) * p.stride_h + (p.R - 1) * p.dilation_h + 1, -p.padding_w,
                       plan.width, step, s.strip);
      }
      const int64_t row = plan.in_place ? a.x.stride[2] : plan.width * step;
      const int64_t col = plan.in_place ? a.x.stride[3] : step;
      const Correlation c{.rows = rows,
                          .cols = p.Q,
                          .g_row = p.Q * step,
                          .g_col = step,
                          .x_row = p.stride_h * row,
                          .x_col = p.stride_w * col,
                          .tap_row = p.dilation_h * row,
                          .tap_col = p.dilation_w * col,
                          .sum_row = p.S * X::kLanes};
      for (int64_t v = 0; v < unit.channels; v += X::kLanes) {
        correlate_taps<X>(p, c, strip + v, s.gradient.strip + v,
                          weight + (unit.c0 + v) * p.R * p.S);
      }
    }
  });
}

static void depthwise_weight_reduce(const ConvBackwardArgs& a, int64_t slots) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    using T = typename X::T;
    const ConvReLUPoolParams& p = *a.params;
    const int64_t* stride = a.grad_weight.stride;
    if (T* sums = static_cast<T*>(a.partial_weight)) {
      add_slots<X>(sums, DepthwiseWeightPlan<X>::partial_size(p), slots);
      for (int64_t c = 0; c < p.C; c += X::kLanes) {
        for (int64_t r = 0; r < p.R; r++, sums += p.S * X::kLanes) {
          write_matrix<X>(sums, X::kLanes, a.grad_weight.dtype, at(a.grad_weight, c, 0, r, 0),
                          stride[3], stride[0], p.S, min_of(X::kLanes, p.C - c));
        }
      }
    }
    reduce_bias_gradient<X>(a, slots);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
