// Gradients of conv_relu_pool by Winograd's algorithm (winograd-inl.h), for unit stride.
//
// The gradient at the convolution's output is expanded a few rows at a time. The input gradient is
// a convolution of it with the filters turned around; the weight gradient a convolution of x with
// it, whose products of points add up over all tiles before they are transformed.
#pragma once

#include "winograd_tiles-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Input gradient: a unit is a group and a number of rows of tiles, counted through all images.

template <class X, class F>
struct WinogradInputPlan {
  using T = typename X::T;
  static constexpr int kOutputs = F::kOutputs;

  TileAxis rows, columns;  // of an image
  int64_t C, K, filters;   // per group; filters is C rounded up to whole vectors
  int64_t tiles, tile_rows, unit_rows, units;
  int64_t v_plane, m_plane;

  explicit WinogradInputPlan(const ConvBackwardArgs& a)
      : rows(kOutputs, a.params->dilation_h, a.params->H),
        columns(kOutputs, a.params->dilation_w, a.params->W) {
    const ConvReLUPoolParams& p = *a.params;
    C = p.C / p.groups;
    K = p.K / p.groups;
    filters = round_up(C, X::kLanes);
    tiles = columns.tiles;
    tile_rows = p.N * rows.tiles;
    unit_rows = rows_of_unit<X, F>(tile_rows, tiles, K, p.groups, a.threads);
    units = p.groups * ceil_div(tile_rows, unit_rows);
    v_plane = odd_lines(unit_rows * tiles * K);
    m_plane = odd_lines(unit_rows * tiles * kFilterBlock<X>);
  }

  int64_t group_size() const { return F::kPlanes * K * filters; }
};

template <class X, class F>
struct WinogradInputScratch {
  using T = typename X::T;
  using Plan = WinogradInputPlan<X, F>;

  Arena arena;
  GradientStrip<X> gradient;
  T *v, *m, *out;  // out: [kOutputs][W][block]

  WinogradInputScratch(const ConvReLUPoolParams& p, const Plan& plan, void* base)
      : arena{static_cast<char*>(base)},
        gradient(arena, p, plan.K, plan.K, F::kPoints, plan.columns.span(F::kPoints), 1) {
    v = arena.take<T>(F::kPlanes * plan.v_plane);
    m = arena.take<T>(F::kPlanes * plan.m_plane);
    out = arena.take<T>(Plan::kOutputs * p.W * kFilterBlock<X>);
  }
};

static int64_t winograd_input_pack_size(const ConvBackwardArgs& a) {
  return with_winograd_input(*a.params, [&](auto x, auto filtering) -> int64_t {
    using X = decltype(x);
    return a.params->groups * WinogradInputPlan<X, decltype(filtering)>(a).group_size() *
           static_cast<int64_t>(sizeof(typename X::T));
  });
}

static int64_t winograd_input_scratch(const ConvBackwardArgs& a) {
  return with_winograd_input(*a.params, [&](auto x, auto filtering) -> int64_t {
    using F = decltype(filtering);
    const WinogradInputPlan<decltype(x), F> plan(a);
    return WinogradInputScratch<decltype(x), F>(*a.params, plan, nullptr).arena.used;
  });
}

static int64_t winograd_input_units(const ConvBackwardArgs& a) {
  return with_winograd_input(*a.params, [&](auto x, auto filtering) -> int64_t {
    return WinogradInputPlan<decltype(x), decltype(filtering)>(a).units;
  });
}

// A unit is a block of channels of a group.
static int64_t winograd_input_pack_units(const ConvBackwardArgs& a) {
  const ConvReLUPoolParams& p = *a.params;
  return with_winograd_input(p, [&](auto x, auto) -> int64_t {
    return p.groups * ceil_div(p.C / p.groups, kFilterBlock<decltype(x)>);
  });
}

// U of the filters turned around, from filter to channel.
static void winograd_input_pack(const ConvBackwardArgs& a, int64_t unit_begin, int64_t unit_end) {
  with_winograd_input(*a.params, [&](auto x, auto filtering) {
    using X = decltype(x);
    using F = decltype(filtering);
    const ConvReLUPoolParams& p = *a.params;
    const WinogradInputPlan<X, F> plan(a);
    const int64_t* stride = a.weight.stride;
    const int64_t blocks = ceil_div(plan.C, kFilterBlock<X>);
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      const int64_t g = unit / blocks;
      const View4 turned = {at(a.weight, g * plan.K, 0, p.R - 1, p.S - 1),
                            {stride[1], stride[0], -stride[2], -stride[3]},
                            a.weight.dtype};
      transform_filters<X, F>(turned, unit % blocks, plan.C, plan.K, p.R, p.S, 1,
                              static_cast<typename X::T*>(a.packed_weight) + g * plan.group_size());
    }
  });
}

static void winograd_input(const ConvBackwardArgs& a, int64_t unit_begin, int64_t unit_end,
                           void* base) {
  with_winograd_input(*a.params, [&](auto x, auto filtering) {
    using X = decltype(x);
    using F = decltype(filtering);
    constexpr int kOutputs = F::kOutputs;
    const ConvReLUPoolParams& p = *a.params;
    const WinogradInputPlan<X, F> plan(a);
    const WinogradInputScratch<X, F> s(p, plan, base);
    const Reduction reduction{1, 0, 1, 0, plan.K, 0, plan.K};
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      const int64_t g = unit % p.groups, first = unit / p.groups * plan.unit_rows;
      const int64_t rows = min_of(plan.unit_rows, plan.tile_rows - first);
      for (int64_t i = 0; i < rows; i++) {
        const int64_t n = (first + i) / plan.rows.tiles;
        const int64_t h0 = plan.rows.first((first + i) % plan.rows.tiles);
        const PlacedRows<typename X::T> gradient =
            s.gradient.rows(a, n, g * plan.K, h0 + p.padding_h - (p.R - 1) * p.dilation_h,
                            F::kPoints, p.padding_w - (p.S - 1) * p.dilation_w);
        for (int64_t t = 0; t < plan.tiles; t++) {
          transform_input<X, F::kPoints>(gradient.first + plan.columns.first(t) * gradient.position,
                                         gradient.row, p.dilation_w * gradient.position, plan.K,
                                         s.v + (i * plan.tiles + t) * plan.K, plan.v_plane);
        }
      }
      const auto* weight =
          static_cast<const typename X::T*>(a.packed_weight) + g * plan.group_size();
      for_each_block<X>(plan.filters, [&](auto vectors, int64_t c0) {
        constexpr int NV = decltype(vectors)::kValue;
        constexpr int64_t lanes = NV * X::kLanes;
        multiply<X, NV, F>(reduction, s.v, plan.v_plane, weight + c0 * F::kPlanes * plan.K,
                           plan.K * lanes, rows * plan.tiles, false, s.m, plan.m_plane);
        for (int64_t i = 0; i < rows; i++) {
          const int64_t n = (first + i) / plan.rows.tiles;
          const int64_t h0 = plan.rows.first((first + i) % plan.rows.tiles);
          const int64_t count = plan.rows.count(h0);
          const int64_t valid = min_of(lanes, plan.C - c0);
          const bool to_x = writes_to<X>(a.grad_x, lanes, valid);
          typename X::T* out =
              to_x ? at<typename X::T>(a.grad_x, n, g * plan.C + c0, h0, 0) : s.out;
          const int64_t row = to_x ? p.dilation_h * a.grad_x.stride[2] : p.W * lanes;
          const int64_t col = to_x ? a.grad_x.stride[3] : lanes;
          for (int64_t t = 0; t < plan.tiles; t++) {
            const int64_t col0 = plan.columns.first(t), cols = plan.columns.count(col0);
            for (int v = 0; v < NV; v++) {
              typename X::V o[kOutputs][kOutputs];
              transform_output<X, F::kPoints>(s.m + (i * plan.tiles + t) * lanes + v * X::kLanes,
                                              plan.m_plane, o);
              typename X::T* to = out + col0 * col + v * X::kLanes;
              for_each_output<kOutputs, kOutputs>(count, cols, [&](int64_t r, int64_t j) {
                X::store(to + r * row + j * p.dilation_w * col, o[r][j]);
              });
            }
          }
          for (int64_t r = 0; r < count && !to_x; r++) {
            write_matrix<X>(s.out + r * p.W * lanes, lanes, a.grad_x.dtype,
                            at(a.grad_x, n, g * plan.C + c0, h0 + r * p.dilation_h, 0),
                            a.grad_x.stride[3], a.grad_x.stride[1], p.W, valid);
          }
        }
      });
    }
  });
}

// Weight gradient: a unit is a row of tiles of the convolution's output, counted through all
// images.

template <class X, class F>
struct WinogradWeightPlan {
  using T = typename X::T;
  static constexpr int kOutputs = F::kOutputs;

  TileAxis rows, columns;  // of an image
  int64_t C, K, filters;   // per group; filters is K rounded up to whole vectors
  int64_t tiles, tile_rows, batch_rows, batch_tiles;
  int64_t v_plane, w_plane;

  explicit WinogradWeightPlan(const ConvReLUPoolParams& p)
      : rows(kOutputs, p.dilation_h, p.P), columns(kOutputs, p.dilation_w, p.Q) {
    C = p.C / p.groups;
    K = p.K / p.groups;
    filters = round_up(K, X::kLanes);
    tiles = columns.tiles;
    tile_rows = p.N * rows.tiles;
    const int64_t most = tiles_at_a_time<X, F>(C + filters, kBatchTiles / 2, 2 * kBatchTiles);
    batch_rows = max_of(1, most / tiles);
    batch_rows = min_of(batch_rows, tile_rows);
    batch_tiles = batch_rows * tiles;
    v_plane = odd_lines(batch_tiles * C);
    w_plane = odd_lines(batch_tiles * filters);
  }

  // Sums of a group, [filter block][points^2][C][lanes].
  int64_t group_size() const { return F::kPlanes * C * filters; }
};

template <class X, class F>
struct WinogradWeightScratch {
  using T = typename X::T;
  using Plan = WinogradWeightPlan<X, F>;

  Arena arena;
  ImageTiles<X, F> image;
  GradientStrip<X> gradient;
  T *v, *w;  // [points^2][tiles][C], [points^2][filter block][tiles][lanes]

  WinogradWeightScratch(const ConvReLUPoolParams& p, const Plan& plan, void* base)
      : arena{static_cast<char*>(base)},
        image(arena, p, plan.columns),
        gradient(arena, p, plan.K, plan.K, Plan::kOutputs, plan.columns.span(Plan::kOutputs), 1) {
    v = arena.take<T>(F::kPlanes * plan.v_plane);
    w = arena.take<T>(F::kPlanes * plan.w_plane);
  }
};

static int64_t winograd_weight_partial_size(const ConvBackwardArgs& a) {
  return with_winograd_weight(*a.params, [&](auto x, auto filtering) -> int64_t {
    using X = decltype(x);
    return a.params->groups * WinogradWeightPlan<X, decltype(filtering)>(*a.params).group_size() *
           static_cast<int64_t>(sizeof(typename X::T));
  });
}

static int64_t winograd_weight_scratch(const ConvBackwardArgs& a) {
  return with_winograd_weight(*a.params, [&](auto x, auto filtering) -> int64_t {
    using F = decltype(filtering);
    const WinogradWeightPlan<decltype(x), F> plan(*a.params);
    return WinogradWeightScratch<decltype(x), F>(*a.params, plan, nullptr).arena.used;
  });
}

static int64_t winograd_weight_units(const ConvBackwardArgs& a) {
  return with_winograd_weight(*a.params, [&](auto x, auto filtering) -> int64_t {
    return WinogradWeightPlan<decltype(x), decltype(filtering)>(*a.params).tile_rows;
  });
}

// Transforms `rows` rows of tiles of the gradient of a group, row by row from `row` on,
// and multiplies x's tiles by them. Sums of the bias on the way.
template <class X, class F>
[[gnu::noinline]] static void add_weight(const ConvBackwardArgs& a,
                                         const WinogradWeightPlan<X, F>& plan,
                                         const WinogradWeightScratch<X, F>& s, int64_t row,
                                         int64_t rows, int64_t g, int64_t slot) {
  using T = typename X::T;
  constexpr int kOutputs = F::kOutputs;
  const ConvReLUPoolParams& p = *a.params;
  T* sums = static_cast<T*>(a.partial_weight) + (slot * p.groups + g) * plan.group_size();
  T* bias = a.partial_bias ? static_cast<T*>(a.partial_bias) + slot * p.K + g * plan.K : nullptr;
  const int64_t tiles = rows * plan.tiles;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t n = (row + i) / plan.rows.tiles;
    const int64_t p0 = plan.rows.first((row + i) % plan.rows.tiles);
    const PlacedRows<T> gradient = s.gradient.rows(a, n, g * plan.K, p0, kOutputs, 0);
    for (int64_t r = 0; r < kOutputs && bias; r++) {
      add_bias_gradient<X>(gradient.first + r * gradient.row, s.gradient.width, gradient.position,
                           plan.K, bias);
    }
    for_each_block<X>(plan.filters, [&](auto vectors, int64_t k0) {
      constexpr int64_t kLanes = decltype(vectors)::kValue * X::kLanes;
      const int64_t row_step = gradient.row, col_step = p.dilation_w * gradient.position;
      for (int64_t t = 0; t < plan.tiles; t++) {
        for (int64_t k = 0; k < kLanes; k += X::kLanes) {
          const T* from = gradient.first + plan.columns.first(t) * gradient.position + k0 + k;
          T* to = s.w + k0 * tiles + (i * plan.tiles + t) * kLanes + k;
          const int64_t left = plan.K - k0 - k;
          if (left >= X::kLanes) {
            transform_filter<X, F::kPoints, kOutputs, true>(from, row_step, col_step, kOutputs,
                                                            kOutputs, X::kLanes, to, plan.w_plane);
          } else {
            transform_filter<X, F::kPoints, kOutputs, false>(
                from, row_step, col_step, kOutputs, kOutputs, static_cast<int>(max_of(0, left)), to,
                plan.w_plane);
          }
        }
      }
    });
  }
  const Reduction reduction{1, 0, 1, 0, tiles, 0, 1, plan.C};
  for_each_block<X>(plan.filters, [&](auto vectors, int64_t k0) {
    constexpr int NV = decltype(vectors)::kValue;
    multiply<X, NV, F>(reduction, s.v, plan.v_plane, s.w + k0 * tiles, plan.w_plane, plan.C, true,
                       sums + k0 * F::kPlanes * plan.C, plan.C * NV * X::kLanes);
  });
}

static void winograd_weight(const ConvBackwardArgs& a, int64_t row_begin, int64_t row_end,
                            int64_t slot, void* base) {
  with_winograd_weight(*a.params, [&](auto x, auto filtering) {
    using X = decltype(x);
    using F = decltype(filtering);
    const WinogradWeightPlan<X, F> plan(*a.params);
    const WinogradWeightScratch<X, F> s(*a.params, plan, base);
    for (int64_t row = row_begin; row < row_end; row += plan.batch_rows) {
      const int64_t rows = min_of(plan.batch_rows, row_end - row);
      for (int64_t g = 0; g < a.params->groups; g++) {
        for (int64_t i = 0; i < rows; i++) {
          s.image.transform_row(a.x, (row + i) / plan.rows.tiles, g,
                                plan.rows.first((row + i) % plan.rows.tiles),
                                s.v + i * plan.tiles * plan.C, plan.v_plane);
        }
        add_weight<X, F>(a, plan, s, row, rows, g, slot);
      }
    }
  });
}

// From taps [r][s][channel][filter], a vector of filters and some channels, to the gradient.
template <class X, class F>
static void write_taps(const ConvBackwardArgs& a, const typename X::T* taps, int64_t k,
                       int64_t filters, int64_t c, int64_t channels) {
  constexpr int64_t kTap = X::kLanes * X::kLanes;
  const ConvReLUPoolParams& p = *a.params;
  const int64_t* stride = a.grad_weight.stride;
  for (int64_t r = 0; r < p.R; r++, taps += F::kTaps * kTap) {
    if (stride[1] == 1) {
      for (int64_t t = 0; t < p.S; t++) {
        write_matrix<X>(taps + t * kTap, X::kLanes, a.grad_weight.dtype,
                        at(a.grad_weight, k, c, r, t), stride[1], stride[0], channels, filters);
      }
    } else {
      for (int64_t i = 0; i < channels; i++) {
        write_matrix<X>(taps + i * X::kLanes, kTap, a.grad_weight.dtype,
                        at(a.grad_weight, k, c + i, r, 0), stride[3], stride[0], p.S, filters);
      }
    }
  }
}

// The sums of a vector of filters and `channels` channels, that many steps apart, as taps
// [r][s][channel][filter].
template <class X, class F>
static void transform_sums(const typename X::T* sums, int64_t plane, int64_t step, int64_t channels,
                           typename X::T* taps) {
  constexpr int64_t kTap = X::kLanes * X::kLanes;
  for (int64_t i = 0; i < channels; i++) {
    typename X::V o[F::kTaps][F::kTaps];
    transform_output<X, F::kPoints>(sums + i * step, plane, o);
    for (int r = 0; r < F::kTaps; r++) {
      for (int t = 0; t < F::kTaps; t++) {
        X::store(taps + (r * F::kTaps + t) * kTap + i * X::kLanes, o[r][t]);
      }
    }
  }
}

static void winograd_weight_reduce(const ConvBackwardArgs& a, int64_t slots) {
  with_winograd_weight(*a.params, [&](auto x, auto filtering) {
    using X = decltype(x);
    using T = typename X::T;
    using F = decltype(filtering);
    const ConvReLUPoolParams& p = *a.params;
    const WinogradWeightPlan<X, F> plan(p);
    auto* partial = static_cast<T*>(a.partial_weight);
    T tile[F::kTaps * F::kTaps * X::kLanes * X::kLanes];
    add_slots<X>(partial, p.groups * plan.group_size(), slots);
    for (int64_t g = 0; g < p.groups; g++) {
      const T* sums = partial + g * plan.group_size();
      for_each_block<X>(plan.filters, [&](auto vectors, int64_t k0) {
        constexpr int64_t kLanes = decltype(vectors)::kValue * X::kLanes;
        for (int64_t k = 0; k < min_of(kLanes, plan.K - k0); k += X::kLanes) {
          for (int64_t c = 0; c < plan.C; c += X::kLanes) {
            const int64_t channels = min_of(X::kLanes, plan.C - c);
            transform_sums<X, F>(sums + k0 * F::kPlanes * plan.C + c * kLanes + k, plan.C * kLanes,
                                 kLanes, channels, tile);
            write_taps<X, F>(a, tile, g * plan.K + k0 + k, min_of(X::kLanes, plan.K - k0 - k), c,
                             channels);
          }
        }
      });
    }
    reduce_bias_gradient<X>(a, slots);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
