// Forward of conv_relu_pool: direct convolution whose sums never leave the cache, pooled in
// registers where windows are 2 x 2, and otherwise in a ring of convolution rows. What is written
// to memory is y and, for training, one code byte a pooled output.
//
// A unit of work is (image, group, a few pooled rows, all or some of the filters). Its input rows
// are staged once, then every block of filters runs over them: weights packed [R][S][C][lanes]
// stream past, input elements are broadcast, and a tile of rows x columns x filters accumulates in
// registers. The run over S and C is one reduction, so that a first layer of 1 or 3 channels is as
// dense as any other.
//
// Depthwise filters are the same walk but for one thing: lanes are channels of the input too, so it
// is read as vectors instead of broadcast. All of them are packed as one group of filters of one
// channel, and a unit stages the channels of its own filters.
#pragma once

#include "conv_pool-inl.h"
#include "conv_rows-inl.h"
#include "conv_tile-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X, bool kDepthwise>
struct ForwardPlan {
  using T = typename X::T;
  static_assert(kFilterStep % kFilterBlock<X> == 0);
  static constexpr int kWindows = X::kTileCols / 4;  // 2 x 2, of a tile pooled in registers
  // A vector of depthwise filters shares no input with the next, and alone leaves more of L1.
  static constexpr int64_t kBlock = kDepthwise ? X::kLanes : kFilterBlock<X>;

  int64_t groups;         // that filters are packed in
  int64_t C, K, filters;  // per group; filters is K rounded up to whole vectors
  int64_t width;          // columns of a strip
  int64_t channels;       // and what it holds of each
  int64_t parts;          // of an image's pooled rows
  int64_t filter_parts;   // of a group's filters
  int64_t rows;           // input rows of the largest unit
  int64_t span_h;         // convolution rows under one pooled row: the ring's size
  bool in_tile;           // 2 x 2 windows pooled in registers
  bool activate_first;    // the pool needs activated values
  bool widened;           // x and y are of another dtype than what is computed
  bool in_place;          // x serves as its own strip
  int64_t row_group;      // pooled rows that are copied to y together
  int64_t columns;        // convolution columns that are computed

  Reduction reduction;  // of one output, through a strip

  explicit ForwardPlan(const ConvForwardArgs& a) {
    const ConvReLUPoolParams& p = *a.params;
    groups = kDepthwise ? 1 : p.groups;
    C = p.C / p.groups;
    K = p.K / groups;
    filters = round_up(K, X::kLanes);
    channels = kDepthwise ? min_of(a.unit_filters, filters) : C;
    span_h = (p.pool_h - 1) * p.pool_dilation_h + 1;
    in_tile = whole_2x2_windows(p);
    activate_first = activates_first(p);
    columns = in_tile ? 2 * p.PW : p.Q;
    width = (columns - 1) * p.stride_w + (p.S - 1) * p.dilation_w + 1;
    parts = ceil_div(p.PH, a.unit_rows);
    filter_parts = ceil_div(K, a.unit_filters);
    const int64_t conv_rows = (min_of(a.unit_rows, p.PH) - 1) * p.pool_stride_h + span_h;
    rows = (min_of(conv_rows, p.P) - 1) * p.stride_h + (p.R - 1) * p.dilation_h + 1;

    widened = !is_computed_as_stored<X>(a.x.dtype);
    in_place = !widened && reads_no_padding(p) && (a.x.stride[1] == 1 || channels == 1) &&
               (!kDepthwise || K == filters);
    const int64_t col = in_place ? a.x.stride[3] : channels;
    const int64_t row = in_place ? a.x.stride[2] : width * channels;
    // The taps of a row are one run.
    const bool joined = C == 1 || (p.dilation_w == 1 && col == C);
    reduction = {.rows = p.R,
                 .row_step = p.dilation_h * row,
                 .segments = joined ? 1 : p.S,
                 .segment_step = p.dilation_w * col,
                 .length = joined ? p.S * C : C,
                 .out_row_step = p.stride_h * row,
                 .col_step = p.stride_w * col,
                 .term_step = C == 1 ? p.dilation_w * col : 1};
    row_group = rows_at_a_time<X>(a.y, p.PW);
  }

  // The packed filters of a group, then its bias.
  int64_t weight_size(const ConvReLUPoolParams& p) const { return filters * p.R * p.S * C; }
  int64_t group_size(const ConvReLUPoolParams& p) const { return weight_size(p) + filters; }
};

template <class X, bool kDepthwise>
struct ForwardScratch {
  typename X::T *strip, *ring, *row;
  int64_t size;

  ForwardScratch(const ConvReLUPoolParams& p, const ForwardPlan<X, kDepthwise>& plan, void* base) {
    Arena arena{static_cast<char*>(base)};
    strip = arena.take<typename X::T>(plan.in_place ? 0 : plan.rows * plan.width * plan.channels);
    const bool has_ring = !plan.in_tile && p.pool != Pool::kNone;
    ring = arena.take<typename X::T>(has_ring ? plan.span_h * p.Q * plan.kBlock : 0);
    row = arena.take<typename X::T>(plan.row_group * p.PW * plan.kBlock);
    size = arena.used;
  }
};

template <bool kDepthwise>
static int64_t conv_forward_pack_size(const ConvForwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ForwardPlan<X, kDepthwise> plan(a);
    return plan.groups * plan.group_size(*a.params) * static_cast<int64_t>(sizeof(typename X::T));
  });
}

template <bool kDepthwise>
static int64_t conv_forward_scratch(const ConvForwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ForwardPlan<X, kDepthwise> plan(a);
    return ForwardScratch<X, kDepthwise>(*a.params, plan, nullptr).size;
  });
}

// (image, group, part of the pooled rows, part of the filters), the last counted fastest.
template <bool kDepthwise>
static int64_t conv_forward_units(const ConvForwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    const ForwardPlan<decltype(x), kDepthwise> plan(a);
    return a.params->N * plan.groups * plan.parts * plan.filter_parts;
  });
}

// [group][filter block][R][S][C][lanes of the block], then the bias, both padded with zero filters.
template <bool kDepthwise>
static void conv_forward_pack(const ConvForwardArgs& a) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ConvReLUPoolParams& p = *a.params;
    const ForwardPlan<X, kDepthwise> plan(a);
    for (int64_t g = 0; g < plan.groups; g++) {
      auto* out = static_cast<typename X::T*>(a.packed_weight) + g * plan.group_size(p);
      for (int64_t k0 = 0; k0 < plan.filters; k0 += plan.kBlock) {
        const int64_t lanes = min_of(plan.kBlock, plan.filters - k0);
        const int64_t valid = min_of(lanes, plan.K - k0);
        pack_filters<X>(p.R, p.S, view_at(a.weight, g * plan.K + k0, 0, 0, 0), plan.C, valid, lanes,
                        out);
        out += p.R * p.S * plan.C * lanes;
      }
      fill_zero(out, plan.filters);
      pack_bias<X>(a, g * plan.K, plan.K, out);
    }
  });
}

// 2 x 2 windows: two convolution rows by 2 * NW columns, pooled as they leave the accumulators.
template <class X, bool kDepthwise, int NV, int NW>
[[gnu::noinline]] static void pooled_tile(const ForwardPlan<X, kDepthwise>& plan,
                                          const ConvReLUPoolParams& p, const typename X::T* in,
                                          const typename X::T* weight, int64_t pw,
                                          const RowSink<X>& sink) {
  Tile<X, NV, 2, 2 * NW> tile;
  convolve_tile<kDepthwise>(plan.reduction, in, weight, tile);
  const auto& sum = tile.sum;
#pragma GCC unroll 3
  for (int w = 0; w < NW; w++) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      typename X::V s[4] = {sum[0][2 * w][v], sum[0][2 * w + 1][v], sum[1][2 * w][v],
                            sum[1][2 * w + 1][v]};
      pool_window(p.pool, sink, s, pw + w, v);
    }
  }
}

// Results of a row without a pool; inlined for every activation that is cheap.
template <class X, int NV, int TC>
[[gnu::always_inline]] static inline void put_row(const Tile<X, NV, 1, TC>& tile,
                                                  const RowSink<X>& sink, Activation activation,
                                                  int64_t q) {
#pragma GCC unroll 12
  for (int tc = 0; tc < TC; tc++) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      const auto argument = X::add(tile.sum[0][tc][v], X::load(sink.bias + v * X::kLanes));
      X::store(sink.row + (q + tc) * sink.lanes + v * X::kLanes, activate<X>(activation, argument));
    }
  }
}

// Columns [q, q + TC) of one convolution row, into a row of the ring, or out if there is no pool.
template <class X, bool kDepthwise, int NV, int TC>
[[gnu::noinline]] static void row_tile(const ForwardPlan<X, kDepthwise>& plan,
                                       const typename X::T* in, const typename X::T* weight,
                                       int64_t q, const RowSink<X>& sink, typename X::T* ring_row) {
  Tile<X, NV, 1, TC> tile;
  convolve_tile<kDepthwise>(plan.reduction, in, weight, tile);
  if (!ring_row) {
    if (sink.activation == Activation::kReLU) return put_row(tile, sink, Activation::kReLU, q);
    if (sink.activation == Activation::kNone) return put_row(tile, sink, Activation::kNone, q);
    return put_row(tile, sink, sink.activation, q);
  }
#pragma GCC unroll 12
  for (int tc = 0; tc < TC; tc++) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) {
      auto value = tile.sum[0][tc][v];
      if (sink.activate_first) value = sink.activated(value, v);
      X::store(ring_row + ((q + tc) * NV + v) * X::kLanes, value);
    }
  }
}

// All pooled rows [ph0, ph1) of one block of filters over one strip, whose first row is that of
// convolution row p0.
template <class X, int NV, bool kDepthwise>
static void forward_block(const ConvForwardArgs& a, const ForwardPlan<X, kDepthwise>& plan,
                          const ForwardScratch<X, kDepthwise>& scratch, const typename X::T* strip,
                          int64_t n, int64_t k, const typename X::T* weight, RowSink<X> sink,
                          int64_t ph0, int64_t ph1, int64_t p0) {
  const ConvReLUPoolParams& p = *a.params;
  const int64_t lanes = NV * X::kLanes;
  const int64_t step = plan.in_tile ? plan.kWindows : X::kTileCols;  // outputs of a full tile
  const int64_t outputs = plan.in_tile ? p.PW : p.Q;
  const int64_t tiles = ceil_div(outputs, step);
  // Results are written where they belong if that is a matter of whole vectors.
  const bool to_y = writes_to<X>(a.y, lanes, sink.valid);
  sink.lanes = to_y ? a.y.stride[3] : lanes;
  int64_t next = p0, first = ph0;  // first: of the rows that have not been copied to y
  for (int64_t ph = ph0; ph < ph1; ph++) {
    sink.row =
        to_y ? at<typename X::T>(a.y, n, k, ph, 0) : scratch.row + (ph - first) * p.PW * lanes;
    sink.codes = a.codes ? a.codes + ((n * p.PH + ph) * p.PW) * p.K + k : nullptr;
    const int64_t h0 = ph * p.pool_stride_h - p.pool_padding_h;
    if (plan.in_tile) {
      const typename X::T* in = strip + (h0 - p0) * plan.reduction.out_row_step;
      for (int64_t t = 0; t < tiles; t++) {  // as even as can be
        const int64_t pw = outputs * t / tiles, windows = outputs * (t + 1) / tiles - pw;
        const typename X::T* at = in + 2 * pw * plan.reduction.col_step;
        const auto tile = with_count<ForwardPlan<X, kDepthwise>::kWindows>(
            windows, [](auto n) { return pooled_tile<X, kDepthwise, NV, decltype(n)::kValue>; });
        tile(plan, p, at, weight, pw, sink);
      }
    } else {
      for (next = max_of(next, h0); next < min_of(h0 + plan.span_h, p.P); next++) {
        const typename X::T* in = strip + (next - p0) * plan.reduction.out_row_step;
        typename X::T* ring_row =
            p.pool == Pool::kNone ? nullptr : scratch.ring + next % plan.span_h * p.Q * lanes;
        for (int64_t t = 0; t < tiles; t++) {
          const int64_t q = outputs * t / tiles, cols = outputs * (t + 1) / tiles - q;
          const auto tile = with_count<X::kTileCols>(
              cols, [](auto n) { return row_tile<X, kDepthwise, NV, decltype(n)::kValue>; });
          tile(plan, in + q * plan.reduction.col_step, weight, q, sink, ring_row);
        }
      }
      if (p.pool != Pool::kNone) pool_row<X, NV>(p, scratch.ring, plan.span_h, ph, sink);
    }
    if (!to_y && (ph + 1 - first == plan.row_group || ph + 1 == ph1)) {
      write_matrix<X>(scratch.row, lanes, a.y.dtype, at(a.y, n, k, first, 0), a.y.stride[3],
                      a.y.stride[1], (ph + 1 - first) * p.PW, sink.valid);
      first = ph + 1;
    }
  }
}

template <bool kDepthwise>
static void conv_forward(const ConvForwardArgs& a, int64_t unit_begin, int64_t unit_end,
                         void* base) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ConvReLUPoolParams& p = *a.params;
    const ForwardPlan<X, kDepthwise> plan(a);
    const ForwardScratch<X, kDepthwise> scratch(p, plan, base);
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      const int64_t filter_part = unit % plan.filter_parts, strip = unit / plan.filter_parts;
      const int64_t part = strip % plan.parts, g = strip / plan.parts % plan.groups;
      const int64_t n = strip / plan.parts / plan.groups;
      const int64_t ph0 = part * a.unit_rows, ph1 = min_of(ph0 + a.unit_rows, p.PH);
      const int64_t p0 = max_of(0, ph0 * p.pool_stride_h - p.pool_padding_h);
      const int64_t p1 = min_of(p.P, (ph1 - 1) * p.pool_stride_h - p.pool_padding_h + plan.span_h);
      const int64_t rows = (p1 - p0 - 1) * p.stride_h + (p.R - 1) * p.dilation_h + 1;
      const int64_t first = filter_part * a.unit_filters;
      const int64_t end = min_of(first + a.unit_filters, plan.K);
      const int64_t c0 = kDepthwise ? first : g * plan.C;
      const typename X::T* rows_in = scratch.strip;
      if (plan.in_place) {
        rows_in = at<const typename X::T>(a.x, n, c0, p0 * p.stride_h, 0);
      } else if (kDepthwise || unit == unit_begin || filter_part == 0) {
        stage_strip<X>(a.x, p.H, p.W, n, c0, kDepthwise ? end - first : plan.C,
                       p0 * p.stride_h - p.padding_h, rows, -p.padding_w, plan.width, plan.channels,
                       scratch.strip);
      }
      const auto* weight = static_cast<typename X::T*>(a.packed_weight) + g * plan.group_size(p);
      const auto* bias = weight + plan.weight_size(p);
      for (int64_t k0 = first; k0 < end; k0 += plan.kBlock) {
        const RowSink<X> sink{scratch.row,
                              nullptr,
                              p.K,
                              0,
                              min_of(plan.kBlock, plan.K - k0),
                              bias + k0,
                              p.activation,
                              plan.activate_first};
        const auto* block = weight + k0 * p.R * p.S * plan.C;
        const auto* in = kDepthwise ? rows_in + k0 - first : rows_in;
        if constexpr (!kDepthwise) {
          if (plan.filters - k0 > X::kLanes) {
            forward_block<X, 2>(a, plan, scratch, in, n, g * plan.K + k0, block, sink, ph0, ph1,
                                p0);
            continue;
          }
        }
        forward_block<X, 1>(a, plan, scratch, in, n, g * plan.K + k0, block, sink, ph0, ph1, p0);
      }
    }
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
