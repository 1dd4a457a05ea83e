// Forward of conv_relu_pool by Winograd's algorithm (winograd-inl.h), fused with bias, activation
// and pool: neither the transformed input nor the convolution's output ever leaves the cache.
//
// Work is cut into bands, a few pooled rows of an image that rows of tiles cover; without a pool, a
// row of tiles each. 2 x 2 windows that tiles hold whole are pooled in registers, as is no pool at
// all; other windows are pooled from a band's convolution rows. A unit of work is a group and a
// number of bands, counted through all images: its tiles are transformed into V
// [points^2][tiles][channels]; then for one block of filters after the other, as many small matrix
// products with U [points^2][channels][lanes] give M [points^2][tiles][lanes], which is
// transformed, pooled and stored while it is warm.
#pragma once

#include "conv_pool-inl.h"
#include "winograd_tiles-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X, class F>
struct WinogradForwardPlan {
  using T = typename X::T;
  static constexpr int kOutputs = F::kOutputs;
  static constexpr int64_t kRowBytes = 256 << 10;  // of a band's convolution rows

  int64_t K, channels, filters;  // per group; filters is K rounded up to whole vectors
  int64_t span_h;                // convolution rows under one pooled row
  bool in_tile, unpooled;        // neither: windows are pooled from convolution rows
  TileAxis rows, columns;        // of an image
  int64_t tiles;                 // of a row of tiles
  int64_t out_width;             // columns of results that there is room for
  int64_t band_rows, band_tiles,
      bands;  // pooled rows and rows of tiles of a band; bands of an image
  int64_t unit_bands, units;
  int64_t batch_rows;        // rows of tiles of one product
  int64_t v_plane, m_plane;  // elements from one point to the next

  // Tiles that pool in registers need not reach beyond the last window.
  static bool pools_in_tile(const ConvReLUPoolParams& p) {
    return kOutputs % 2 == 0 && whole_2x2_windows(p) && p.dilation_h == 1 && p.dilation_w == 1;
  }

  explicit WinogradForwardPlan(const ConvForwardArgs& a)
      : in_tile(pools_in_tile(*a.params)),
        rows(kOutputs, a.params->dilation_h, a.params->P),
        columns(kOutputs, a.params->dilation_w, in_tile ? 2 * a.params->PW : a.params->Q) {
    const ConvReLUPoolParams& p = *a.params;
    K = p.K / p.groups;
    channels = p.C / p.groups * p.stride_h * p.stride_w;
    filters = round_up(K, X::kLanes);
    span_h = (p.pool_h - 1) * p.pool_dilation_h + 1;
    unpooled = p.pool == Pool::kNone;
    tiles = columns.tiles;
    out_width = unpooled ? columns.span(kOutputs) : p.PW;
    band_rows = in_tile ? kOutputs / 2 : kOutputs;
    band_tiles = 1;
    if (!in_tile && !unpooled) choose_band(p);
    bands = unpooled ? rows.tiles : ceil_div(p.PH, band_rows);
    unit_bands = rows_of_unit<X, F>(p.N * bands, tiles * band_tiles, channels, p.groups, a.threads);
    units = p.groups * ceil_div(p.N * bands, unit_bands);
    batch_rows = min_of(max_of(1, kBatchTiles / tiles), unit_bands * band_tiles);
    v_plane = odd_lines(unit_bands * band_tiles * tiles * channels);
    m_plane = odd_lines(batch_rows * tiles * kFilterBlock<X>);
  }

  int64_t weight_size() const { return F::kPlanes * channels * filters; }
  int64_t group_size() const { return weight_size() + filters; }

  // As many pooled rows as waste the least of their rows of tiles, which come in whole blocks.
  void choose_band(const ConvReLUPoolParams& p) {
    double best = 0;
    for (int64_t n = rows.step;; n += rows.step) {
      const int64_t room = n * kOutputs - span_h;
      const int64_t pooled = room < 0 ? 0 : min_of(room / p.pool_stride_h + 1, p.PH);
      const double used = static_cast<double>(pooled) / static_cast<double>(n);
      if (used > best * 1.02) {
        best = used;
        band_rows = pooled;
        band_tiles = n;
      }
      const int64_t next =
          (n + rows.step) * kOutputs * p.Q * kFilterBlock<X> * static_cast<int64_t>(sizeof(T));
      if (best > 0 && (pooled == p.PH || next > kRowBytes)) return;
    }
  }
};

// A row of tiles of a unit: its image, its first convolution row, the first pooled row of its band
// and how many there are, dilation_h apart without a pool.
struct TileRow {
  int64_t n, row, ph0, count;
  bool last;  // of its band
};

template <class X, class F>
struct WinogradForwardScratch {
  using T = typename X::T;
  using Plan = WinogradForwardPlan<X, F>;

  Arena arena;
  ImageTiles<X, F> image;
  T *v, *m;
  T* conv;  // convolution rows of a band, [rows][Q][block]; row h in slot h % slots
  T* out;   // rows of results, [rows][out_width][block]
  TileRow* rows;
  int64_t slots;

  WinogradForwardScratch(const ConvReLUPoolParams& p, const Plan& plan, void* base)
      : arena{static_cast<char*>(base)}, image(arena, p, plan.columns) {
    v = arena.take<T>(F::kPlanes * plan.v_plane);
    m = arena.take<T>(F::kPlanes * plan.m_plane);
    slots = plan.band_tiles * plan.kOutputs;
    const bool in_registers = plan.in_tile || plan.unpooled;
    conv = arena.take<T>(in_registers ? 0 : slots * p.Q * kFilterBlock<X>);
    out = arena.take<T>((in_registers ? plan.band_rows : 1) * plan.out_width * kFilterBlock<X>);
    rows = arena.take<TileRow>(plan.unit_bands * plan.band_tiles);
  }
};

static int64_t winograd_forward_pack_size(const ConvForwardArgs& a) {
  return with_winograd(*a.params, [&](auto x, auto filtering) -> int64_t {
    using X = decltype(x);
    const WinogradForwardPlan<X, decltype(filtering)> plan(a);
    return a.params->groups * plan.group_size() * static_cast<int64_t>(sizeof(typename X::T));
  });
}

static int64_t winograd_forward_scratch(const ConvForwardArgs& a) {
  return with_winograd(*a.params, [&](auto x, auto filtering) -> int64_t {
    using F = decltype(filtering);
    using X = decltype(x);
    const WinogradForwardPlan<X, F> plan(a);
    return WinogradForwardScratch<X, F>(*a.params, plan, nullptr).arena.used;
  });
}

static int64_t winograd_forward_units(const ConvForwardArgs& a) {
  return with_winograd(*a.params, [&](auto x, auto filtering) -> int64_t {
    return WinogradForwardPlan<decltype(x), decltype(filtering)>(a).units;
  });
}

// A unit is a block of filters of a group.
static int64_t winograd_forward_pack_units(const ConvForwardArgs& a) {
  return with_winograd(*a.params, [&](auto x, auto filtering) -> int64_t {
    using X = decltype(x);
    const WinogradForwardPlan<X, decltype(filtering)> plan(a);
    return a.params->groups * ceil_div(plan.filters, kFilterBlock<X>);
  });
}

// Per group: U, then the bias, padded with zero filters.
static void winograd_forward_pack(const ConvForwardArgs& a, int64_t unit_begin, int64_t unit_end) {
  with_winograd(*a.params, [&](auto x, auto filtering) {
    using X = decltype(x);
    const ConvReLUPoolParams& p = *a.params;
    const WinogradForwardPlan<X, decltype(filtering)> plan(a);
    const int64_t blocks = ceil_div(plan.filters, kFilterBlock<X>);
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      const int64_t block = unit % blocks, g = unit / blocks;
      auto* out = static_cast<typename X::T*>(a.packed_weight) + g * plan.group_size();
      transform_filters<X, decltype(filtering)>(view_at(a.weight, g * plan.K, 0, 0, 0), block,
                                                plan.K, p.C / p.groups, p.R, p.S, p.stride_h, out);
      if (block > 0) continue;
      out += plan.weight_size();
      fill_zero(out, plan.filters);
      pack_bias<X>(a, g * plan.K, plan.K, out);
    }
  });
}

// Transforms, pools in registers or not at all, and writes one row of tiles of one block of
// filters.
template <class X, int NV, bool kPooled, class F>
[[gnu::noinline]] static void finish_in_registers(const ConvForwardArgs& a,
                                                  const WinogradForwardPlan<X, F>& plan,
                                                  const WinogradForwardScratch<X, F>& s,
                                                  const TileRow& at_row, const typename X::T* m,
                                                  int64_t k, RowSink<X> sink) {
  constexpr int kOutputs = F::kOutputs;
  const ConvReLUPoolParams& p = *a.params;
  const int64_t lanes = NV * X::kLanes, rows = at_row.count;
  const int64_t step = p.dilation_h;
  // Straight to y, if it takes whole blocks of filters.
  const bool to_y = writes_to<X>(a.y, lanes, sink.valid);
  sink.lanes = to_y ? a.y.stride[3] : lanes;
  RowSink<X> sinks[kOutputs];  // without a row where there is nothing to write
  for (int64_t i = 0; i < kOutputs; i++) {
    sinks[i] = sink;
    if (!to_y) {
      sinks[i].row = s.out + i * plan.out_width * lanes;
    } else if (i < rows) {
      sinks[i].row = at<typename X::T>(a.y, at_row.n, k, at_row.ph0 + i * step, 0);
    }
    const bool coded = a.codes && i < rows;
    sinks[i].codes =
        coded ? a.codes + (at_row.n * p.PH + at_row.ph0 + i * step) * p.PW * p.K + k : nullptr;
  }
  const int64_t end = to_y ? p.PW : plan.out_width;
  for (int64_t t = 0; t < plan.tiles; t++) {
    const int64_t col0 = plan.columns.first(t), cols = plan.columns.count(col0);
    for (int v = 0; v < NV; v++) {
      typename X::V o[kOutputs][kOutputs];
      transform_output<X, F::kPoints>(m + t * lanes + v * X::kLanes, plan.m_plane, o);
      if constexpr (kPooled) {
        if constexpr (kOutputs % 2 == 0) {
          for_each_output<kOutputs / 2, kOutputs / 2>(rows, cols / 2, [&](int64_t i, int64_t j) {
            typename X::V window[4] = {o[2 * i][2 * j], o[2 * i][2 * j + 1], o[2 * i + 1][2 * j],
                                       o[2 * i + 1][2 * j + 1]};
            pool_window(p.pool, sinks[i], window, col0 / 2 + j, v);
          });
        }
      } else {
#pragma GCC unroll 7
        for (int i = 0; i < kOutputs; i++) {
          if (!sinks[i].row) continue;
#pragma GCC unroll 7
          for (int j = 0; j < kOutputs; j++) {
            const int64_t col = col0 + j * p.dilation_w;
            if (col >= end) continue;
            auto value = o[i][j];
            if (sink.activate_first) value = sink.activated(value, v);
            sinks[i].put(col, v, value, X::zero());
          }
        }
      }
    }
  }
  for (int64_t i = 0; i < rows && !to_y; i++) {
    write_matrix<X>(sinks[i].row, lanes, a.y.dtype, at(a.y, at_row.n, k, at_row.ph0 + i * step, 0),
                    a.y.stride[3], a.y.stride[1], p.PW, sink.valid);
  }
}

// Transforms one row of tiles into convolution rows; after a band's last one, pools and writes
// them.
template <class X, int NV, class F>
[[gnu::noinline]] static void finish_in_rows(const ConvForwardArgs& a,
                                             const WinogradForwardPlan<X, F>& plan,
                                             const WinogradForwardScratch<X, F>& s,
                                             const TileRow& at_row, const typename X::T* m,
                                             int64_t k, RowSink<X> sink) {
  constexpr int kOutputs = F::kOutputs;
  const ConvReLUPoolParams& p = *a.params;
  const int64_t lanes = NV * X::kLanes;
  const int64_t rows = plan.rows.count(at_row.row);
  const bool to_y = writes_to<X>(a.y, lanes, sink.valid);
  sink.lanes = to_y ? a.y.stride[3] : lanes;
  typename X::T* to[kOutputs];
  for (int i = 0; i < kOutputs; i++) {
    to[i] = s.conv + (at_row.row + i * p.dilation_h) % s.slots * p.Q * lanes;
  }
  for (int64_t t = 0; t < plan.tiles; t++) {
    const int64_t col0 = plan.columns.first(t), cols = plan.columns.count(col0);
    for (int v = 0; v < NV; v++) {
      typename X::V o[kOutputs][kOutputs];
      transform_output<X, F::kPoints>(m + t * lanes + v * X::kLanes, plan.m_plane, o);
      for_each_output<kOutputs, kOutputs>(rows, cols, [&](int64_t i, int64_t j) {
        auto value = o[i][j];
        if (sink.activate_first) value = sink.activated(value, v);
        X::store(to[i] + (col0 + j * p.dilation_w) * lanes + v * X::kLanes, value);
      });
    }
  }
  for (int64_t ph = at_row.ph0; at_row.last && ph < at_row.ph0 + at_row.count; ph++) {
    sink.codes = a.codes ? a.codes + (at_row.n * p.PH + ph) * p.PW * p.K + k : nullptr;
    sink.row = to_y ? at<typename X::T>(a.y, at_row.n, k, ph, 0) : s.out;
    pool_row<X, NV>(p, s.conv, s.slots, ph, sink);
    if (to_y) continue;
    write_matrix<X>(s.out, lanes, a.y.dtype, at(a.y, at_row.n, k, ph, 0), a.y.stride[3],
                    a.y.stride[1], p.PW, sink.valid);
  }
}

// The rows of tiles of bands [first, first + count).
template <class X, class F>
static int64_t list_rows(const ConvReLUPoolParams& p, const WinogradForwardPlan<X, F>& plan,
                         int64_t first, int64_t count, TileRow* rows) {
  TileRow* to = rows;
  for (int64_t band = first; band < first + count; band++) {
    const int64_t n = band / plan.bands, i = band % plan.bands;
    if (plan.unpooled) {
      const int64_t row = plan.rows.first(i);
      *to++ = {n, row, row, plan.rows.count(row), true};
      continue;
    }
    const int64_t ph0 = i * plan.band_rows, ph1 = min_of(ph0 + plan.band_rows, p.PH);
    const int64_t begin = max_of(0, ph0 * p.pool_stride_h - p.pool_padding_h);
    const int64_t end = min_of(p.P, (ph1 - 1) * p.pool_stride_h - p.pool_padding_h + plan.span_h);
    const TileAxis axis(plan.kOutputs, p.dilation_h, end - begin);
    for (int64_t t = 0; t < axis.tiles; t++) {
      *to++ = {n, begin + axis.first(t), ph0, ph1 - ph0, t == axis.tiles - 1};
    }
  }
  return to - rows;
}

static void winograd_forward(const ConvForwardArgs& a, int64_t unit_begin, int64_t unit_end,
                             void* base) {
  with_winograd(*a.params, [&](auto x, auto filtering) {
    using X = decltype(x);
    using F = decltype(filtering);
    const ConvReLUPoolParams& p = *a.params;
    const WinogradForwardPlan<X, F> plan(a);
    const WinogradForwardScratch<X, F> s(p, plan, base);
    const Reduction reduction{1, 0, 1, 0, plan.channels, 0, plan.channels};
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      const int64_t g = unit % p.groups, first = unit / p.groups * plan.unit_bands;
      const int64_t count =
          list_rows(p, plan, first, min_of(plan.unit_bands, p.N * plan.bands - first), s.rows);
      for (int64_t i = 0; i < count; i++) {
        s.image.transform_row(a.x, s.rows[i].n, g, s.rows[i].row,
                              s.v + i * plan.tiles * plan.channels, plan.v_plane);
      }
      const auto* weight = static_cast<typename X::T*>(a.packed_weight) + g * plan.group_size();
      for_each_block<X>(plan.filters, [&](auto vectors, int64_t k0) {
        constexpr int NV = decltype(vectors)::kValue;
        const int64_t lanes = NV * X::kLanes, k = g * plan.K + k0;
        const RowSink<X> sink{nullptr,
                              nullptr,
                              p.K,
                              0,
                              min_of(kFilterBlock<X>, plan.K - k0),
                              weight + plan.weight_size() + k0,
                              p.activation,
                              activates_first(p)};
        for (int64_t i = 0; i < count; i += plan.batch_rows) {
          const int64_t rows = min_of(plan.batch_rows, count - i);
          multiply<X, NV, F>(reduction, s.v + i * plan.tiles * plan.channels, plan.v_plane,
                             weight + k0 * F::kPlanes * plan.channels, plan.channels * lanes,
                             rows * plan.tiles, false, s.m, plan.m_plane);
          for (int64_t j = 0; j < rows; j++) {
            const auto* m = s.m + j * plan.tiles * lanes;
            if (plan.in_tile) {
              finish_in_registers<X, NV, true>(a, plan, s, s.rows[i + j], m, k, sink);
            } else if (plan.unpooled) {
              finish_in_registers<X, NV, false>(a, plan, s, s.rows[i + j], m, k, sink);
            } else {
              finish_in_rows<X, NV>(a, plan, s, s.rows[i + j], m, k, sink);
            }
          }
        }
      });
    }
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
