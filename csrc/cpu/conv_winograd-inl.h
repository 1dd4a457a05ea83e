// Forward of conv_relu_pool by Winograd's F(4x4, 3x3), fused with bias, activation and pool: 36
// products for 16 outputs of a 3 x 3 filter instead of 144. A 4 x 4 tile of outputs is exactly four
// 2 x 2 windows, so the pool happens in registers, and neither the transformed input nor the
// convolution's output ever leaves the cache.
//
//   Y = A' [ (G g G') * (B' d B) ] A,  summed over channels before A
//
// A batch of tiles is transformed into V [36][tiles][C]; for one block of filters after the other,
// 36 small matrix products with U [36][C][lanes] give M [36][tiles][lanes], which is transformed,
// pooled and stored while it is warm.
//
// Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016
// (arXiv:1509.09308), section 4.3.
#pragma once

#include "conv_pool-inl.h"
#include "conv_rows-inl.h"
#include "conv_tile-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

inline constexpr int kWinogradPoints = 36;

template <int N>
struct Count {
  static constexpr int kValue = N;
};

template <class X>
struct WinogradPlan {
  using T = typename X::T;
  static constexpr int kBlock =
      2 * X::kLanes;  // filters of one block; the last one may be one vector

  int64_t C, K, filters;  // per group; filters is K rounded up to whole vectors
  bool pooled;            // 2 x 2 windows; otherwise there is no pool
  bool activate_first;
  int64_t tile_rows, tiles;  // rows of tiles of an image, tiles of a row
  int64_t batch_tiles;       // of the largest unit
  int64_t v_plane, m_plane;  // elements from one of the 36 points to the next

  explicit WinogradPlan(const ConvForwardArgs& a) {
    const ConvReLUPoolParams& p = *a.params;
    C = p.C / p.groups;
    K = p.K / p.groups;
    filters = round_up(K, X::kLanes);
    pooled = p.pool != Pool::kNone;
    activate_first = p.pool == Pool::kAvg || p.activation == Activation::kGELU ||
                     p.activation == Activation::kSiLU;
    tile_rows = ceil_div(pooled ? 2 * p.PH : p.P, 4);
    tiles = ceil_div(pooled ? 2 * p.PW : p.Q, 4);
    batch_tiles = min_of(a.unit_rows, p.N * tile_rows) * tiles;
    // An odd number of cache lines, or all 36 points of a tile would share one cache set.
    v_plane = (ceil_div(batch_tiles * C, 16) | 1) * 16;
    m_plane = (ceil_div(batch_tiles * kBlock, 16) | 1) * 16;
  }

  int64_t weight_size() const { return kWinogradPoints * C * filters; }
  int64_t group_size() const { return weight_size() + filters; }
};

template <class X>
struct WinogradScratch {
  typename X::T *v, *m, *strip,
      *rows;  // strip: 6 input rows of one row of tiles; rows: 4 rows of results
  int64_t width, size;

  WinogradScratch(const WinogradPlan<X>& plan, void* base) {
    Arena arena{static_cast<char*>(base)};
    width = 4 * plan.tiles + 2;
    v = arena.take<typename X::T>(kWinogradPoints * plan.v_plane);
    m = arena.take<typename X::T>(kWinogradPoints * plan.m_plane);
    strip = arena.take<typename X::T>(6 * width * plan.C);
    rows = arena.take<typename X::T>(4 * plan.tiles * 4 * plan.kBlock);
    size = arena.used;
  }
};

// B' d: 6 samples to 6 points.
template <class X>
[[gnu::always_inline]] static inline void winograd_input(const typename X::V (&d)[6],
                                                         typename X::V (&o)[6]) {
  using V = typename X::V;
  const V two = X::set1(2), minus4 = X::set1(-4), four = X::set1(4), minus5 = X::set1(-5);
  o[0] = X::fma(four, d[0], X::fma(minus5, d[2], d[4]));
  const V a = X::fma(minus4, d[2], d[4]), b = X::fma(minus4, d[1], d[3]);
  o[1] = X::add(a, b);
  o[2] = X::sub(a, b);
  const V e = X::sub(d[4], d[2]), f = X::mul(two, X::sub(d[3], d[1]));
  o[3] = X::add(e, f);
  o[4] = X::sub(e, f);
  o[5] = X::fma(four, d[1], X::fma(minus5, d[3], d[5]));
}

// G g: 3 taps to 6 points.
template <class X>
[[gnu::always_inline]] static inline void winograd_filter(const typename X::V (&g)[3],
                                                          typename X::V (&o)[6]) {
  using V = typename X::V;
  o[0] = X::mul(X::set1(0.25), g[0]);
  const V outer = X::mul(X::set1(-1.0 / 6), X::add(g[0], g[2])),
          middle = X::mul(X::set1(-1.0 / 6), g[1]);
  o[1] = X::add(outer, middle);
  o[2] = X::sub(outer, middle);
  const V even = X::fma(X::set1(1.0 / 24), g[0], X::mul(X::set1(1.0 / 6), g[2]));
  const V odd = X::mul(X::set1(1.0 / 12), g[1]);
  o[3] = X::add(even, odd);
  o[4] = X::sub(even, odd);
  o[5] = g[2];
}

// A' m: 6 points to 4 outputs.
template <class X>
[[gnu::always_inline]] static inline void winograd_output(const typename X::V (&m)[6],
                                                          typename X::V (&o)[4]) {
  using V = typename X::V;
  const V a = X::add(m[1], m[2]), b = X::sub(m[1], m[2]), c = X::add(m[3], m[4]),
          d = X::sub(m[3], m[4]);
  o[0] = X::add(X::add(m[0], a), c);
  o[1] = X::fma(X::set1(2), d, b);
  o[2] = X::fma(X::set1(4), c, a);
  o[3] = X::add(X::fma(X::set1(8), d, b), m[5]);
}

static int64_t conv_winograd_pack_size(const ConvForwardArgs& a) {
  return with_dtype(a.dtype, [&](auto x, auto) {
    using X = decltype(x);
    return a.params->groups * WinogradPlan<X>(a).group_size() *
           static_cast<int64_t>(sizeof(typename X::T));
  });
}

static int64_t conv_winograd_scratch(const ConvForwardArgs& a) {
  return with_dtype(a.dtype, [&](auto x, auto) {
    using X = decltype(x);
    return WinogradScratch<X>(WinogradPlan<X>(a), nullptr).size;
  });
}

// Per group: [filter block][36][C][lanes of the block], then the bias, both padded with zero
// filters.
static void conv_winograd_pack(const ConvForwardArgs& a) {
  with_dtype(a.dtype, [&](auto x, auto io) {
    using X = decltype(x);
    using IO = decltype(io);
    using V = typename X::V;
    const ConvReLUPoolParams& p = *a.params;
    const WinogradPlan<X> plan(a);
    constexpr int64_t kChannels = 16;  // at a time, in the cache of a core
    typename X::T taps[9 * kChannels * plan.kBlock];
    for (int64_t g = 0; g < p.groups; g++) {
      auto* out = static_cast<typename X::T*>(a.packed_weight) + g * plan.group_size();
      for (int64_t k0 = 0; k0 < plan.filters; k0 += plan.kBlock) {
        const int64_t lanes = min_of(plan.kBlock, plan.filters - k0),
                      valid = min_of(lanes, plan.K - k0);
        for (int64_t c0 = 0; c0 < plan.C; c0 += kChannels) {
          const int64_t channels = min_of(kChannels, plan.C - c0);
          pack_filters<X>(p, a.weight, at<const IO>(a.weight, g * plan.K + k0, c0, 0, 0), channels,
                          valid, lanes, taps);
          for (int64_t i = 0; i < channels * lanes; i += X::kLanes) {
            V half[3][6], points[6];
            for (int s = 0; s < 3; s++) {
              const V column[3] = {X::load(taps + s * channels * lanes + i),
                                   X::load(taps + (3 + s) * channels * lanes + i),
                                   X::load(taps + (6 + s) * channels * lanes + i)};
              winograd_filter<X>(column, half[s]);
            }
            for (int r = 0; r < 6; r++) {
              const V row[3] = {half[0][r], half[1][r], half[2][r]};
              winograd_filter<X>(row, points);
              for (int s = 0; s < 6; s++) {
                X::store(out + ((r * 6 + s) * plan.C + c0) * lanes + i, points[s]);
              }
            }
          }
        }
        out += kWinogradPoints * plan.C * lanes;
      }
      fill_zero(out, plan.filters);
      if (a.bias) copy_into<X>(static_cast<const IO*>(a.bias) + g * plan.K, out, plan.K);
    }
  });
}

// One tile's 6 x 6 inputs of one vector of channels, n of them if not kWhole, into the 36 planes of
// v.
template <class X, bool kWhole, class IO>
[[gnu::always_inline]] static inline void transform_channels(const IO* in, int64_t row_step,
                                                             int64_t col_step, int n,
                                                             typename X::T* v, int64_t plane) {
  using V = typename X::V;
  V half[6][6];  // [column][point]
  for (int w = 0; w < 6; w++) {
    V column[6];
#pragma GCC unroll 6
    for (int h = 0; h < 6; h++) {
      const IO* from = in + h * row_step + w * col_step;
      column[h] = kWhole ? X::load(from) : X::load(from, n);
    }
    winograd_input<X>(column, half[w]);
  }
  for (int h = 0; h < 6; h++) {
    const V row[6] = {half[0][h], half[1][h], half[2][h], half[3][h], half[4][h], half[5][h]};
    V points[6];
    winograd_input<X>(row, points);
#pragma GCC unroll 6
    for (int w = 0; w < 6; w++) {
      typename X::T* to = v + (h * 6 + w) * plane;
      if (kWhole) {
        X::store(to, points[w]);
      } else {
        X::store(to, points[w], n);
      }
    }
  }
}

template <class X, class IO>
static void transform_input(const IO* in, int64_t row_step, int64_t col_step, int64_t C,
                            typename X::T* v, int64_t plane) {
  int64_t c = 0;
  for (; c + X::kLanes <= C; c += X::kLanes) {
    transform_channels<X, true>(in + c, row_step, col_step, X::kLanes, v + c, plane);
  }
  if (c < C) {
    transform_channels<X, false>(in + c, row_step, col_step, static_cast<int>(C - c), v + c, plane);
  }
}

// Transforms the tiles of one row of tiles. Channels that lie together are read where they are,
// inner tiles at least; others are staged.
template <class X, class IO>
static void transform_row(const ConvForwardArgs& a, const WinogradPlan<X>& plan,
                          const WinogradScratch<X>& s, int64_t n, int64_t g, int64_t tile_row,
                          typename X::T* v) {
  const ConvReLUPoolParams& p = *a.params;
  const int64_t h0 = 4 * tile_row - p.padding_h, c0 = g * plan.C;
  const bool in_place = a.x.stride[1] == 1;
  if (!in_place) {
    stage_strip<X, IO>(a.x, p.H, p.W, n, c0, plan.C, h0, 6, -p.padding_w, s.width, plan.C, s.strip);
  }
  for (int64_t t = 0; t < plan.tiles; t++, v += plan.C) {
    const int64_t w0 = 4 * t - p.padding_w;
    if (!in_place) {
      transform_input<X>(s.strip + 4 * t * plan.C, s.width * plan.C, plan.C, plan.C, v,
                         plan.v_plane);
    } else if (h0 >= 0 && h0 + 6 <= p.H && w0 >= 0 && w0 + 6 <= p.W) {
      transform_input<X>(at<const IO>(a.x, n, c0, h0, w0), a.x.stride[2], a.x.stride[3], plan.C, v,
                         plan.v_plane);
    } else {
      stage_strip<X, IO>(a.x, p.H, p.W, n, c0, plan.C, h0, 6, w0, 6, plan.C, s.strip);
      transform_input<X>(s.strip, 6 * plan.C, plan.C, plan.C, v, plan.v_plane);
    }
  }
}

// One of the 36 matrix products: TC tiles by NV vectors of filters.
template <class X, int NV, int TC>
static void product_tile(const Reduction& reduction, const typename X::T* v,
                         const typename X::T* weight, typename X::T* m) {
  Tile<X, NV, 1, TC> tile;
  convolve_tile(reduction, v, weight, tile);
  tile.for_each([&](auto& sum, int i) { X::store(m + i * X::kLanes, sum); });
}

template <class X, int NV>
using ProductTile = decltype(&product_tile<X, NV, 1>);

template <class X, int NV, int TC = X::kTileCols>
static ProductTile<X, NV> product_tile_for(int64_t tiles) {
  if constexpr (TC > 1) {
    if (tiles < TC) return product_tile_for<X, NV, TC - 1>(tiles);
  }
  return product_tile<X, NV, TC>;
}

template <class X, int NV>
static void multiply(const WinogradPlan<X>& plan, const WinogradScratch<X>& s,
                     const typename X::T* weight, int64_t tiles) {
  const int64_t lanes = NV * X::kLanes, parts = ceil_div(tiles, X::kTileCols);
  const Reduction reduction{1, 0, 1, 0, plan.C, 0, plan.C};
  for (int64_t point = 0; point < kWinogradPoints; point++) {
    for (int64_t part = 0; part < parts; part++) {
      const int64_t t = tiles * part / parts, count = tiles * (part + 1) / parts - t;
      product_tile_for<X, NV>(count)(reduction, s.v + point * plan.v_plane + t * plan.C,
                                     weight + point * plan.C * lanes,
                                     s.m + point * plan.m_plane + t * lanes);
    }
  }
}

// The 4 x 4 sums of one tile and vector of filters, from the 36 planes of m.
template <class X>
[[gnu::always_inline]] static inline void transform_output(const typename X::T* m, int64_t plane,
                                                           typename X::V (&o)[4][4]) {
  using V = typename X::V;
  V half[6][4];
  for (int h = 0; h < 6; h++) {
    V row[6];
#pragma GCC unroll 6
    for (int w = 0; w < 6; w++) row[w] = X::load(m + (h * 6 + w) * plane);
    winograd_output<X>(row, half[h]);
  }
#pragma GCC unroll 4
  for (int w = 0; w < 4; w++) {
    const V column[6] = {half[0][w], half[1][w], half[2][w], half[3][w], half[4][w], half[5][w]};
    V out[4];
    winograd_output<X>(column, out);
#pragma GCC unroll 4
    for (int h = 0; h < 4; h++) o[h][w] = out[h];
  }
}

// Transforms, pools and writes one row of tiles of one block of filters.
template <class X, class IO, int NV>
static void finish_row(const ConvForwardArgs& a, const WinogradPlan<X>& plan,
                       const WinogradScratch<X>& s, const typename X::T* m, int64_t n, int64_t k,
                       int64_t tile_row, RowSink<X> sink) {
  const ConvReLUPoolParams& p = *a.params;
  const int64_t lanes = NV * X::kLanes, per_tile = plan.pooled ? 2 : 4;
  const int64_t row0 = per_tile * tile_row, rows = min_of(per_tile, p.PH - row0);
  sink.lanes = lanes;
  RowSink<X> sinks[4] = {sink, sink, sink, sink};
  for (int64_t i = 0; i < rows; i++) {
    sinks[i].row = s.rows + i * p.PW * lanes;
    sinks[i].codes = a.codes ? a.codes + (n * p.PH + row0 + i) * p.PW * p.K + k : nullptr;
  }
  for (int64_t t = 0; t < plan.tiles; t++) {
    const int64_t col0 = per_tile * t, cols = min_of(per_tile, p.PW - col0);
    for (int v = 0; v < NV; v++) {
      typename X::V o[4][4];
      transform_output<X>(m + t * lanes + v * X::kLanes, plan.m_plane, o);
      for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < cols; j++) {
          if (plan.pooled) {
            typename X::V window[4] = {o[2 * i][2 * j], o[2 * i][2 * j + 1], o[2 * i + 1][2 * j],
                                       o[2 * i + 1][2 * j + 1]};
            pool_window(p.pool, sinks[i], window, col0 + j, v);
          } else {
            auto value = o[i][j];
            if (sink.activate_first) value = sink.activated(value, v);
            sinks[i].put(col0 + j, v, value, X::zero());
          }
        }
      }
    }
  }
  for (int64_t i = 0; i < rows; i++) {
    copy_matrix<X>(sinks[i].row, lanes, 1, at<IO>(a.y, n, k, row0 + i, 0), a.y.stride[3],
                   a.y.stride[1], p.PW, sink.valid);
  }
}

// A unit is a group and unit_rows rows of tiles, counted through all images.
static void conv_winograd(const ConvForwardArgs& a, int64_t unit_begin, int64_t unit_end,
                          void* base) {
  with_dtype(a.dtype, [&](auto x, auto io) {
    using X = decltype(x);
    using IO = decltype(io);
    const ConvReLUPoolParams& p = *a.params;
    const WinogradPlan<X> plan(a);
    const WinogradScratch<X> s(plan, base);
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      const int64_t g = unit % p.groups, first = unit / p.groups * a.unit_rows;
      const int64_t rows = min_of(a.unit_rows, p.N * plan.tile_rows - first);
      for (int64_t i = 0; i < rows; i++) {
        const int64_t row = first + i;
        transform_row<X, IO>(a, plan, s, row / plan.tile_rows, g, row % plan.tile_rows,
                             s.v + i * plan.tiles * plan.C);
      }
      const auto* weight = static_cast<typename X::T*>(a.packed_weight) + g * plan.group_size();
      const auto* bias = weight + plan.weight_size();
      for (int64_t k0 = 0; k0 < plan.filters; k0 += plan.kBlock) {
        const RowSink<X> sink{nullptr,
                              nullptr,
                              p.K,
                              0,
                              min_of(plan.kBlock, plan.K - k0),
                              bias + k0,
                              p.activation,
                              plan.activate_first};
        const auto* block = weight + k0 * kWinogradPoints * plan.C;
        const auto run = [&](auto vectors) {
          constexpr int kVectors = decltype(vectors)::kValue;
          multiply<X, kVectors>(plan, s, block, rows * plan.tiles);
          for (int64_t i = 0; i < rows; i++) {
            const int64_t row = first + i;
            finish_row<X, IO, kVectors>(a, plan, s, s.m + i * plan.tiles * kVectors * X::kLanes,
                                        row / plan.tile_rows, g * plan.K + k0, row % plan.tile_rows,
                                        sink);
          }
        };
        if (plan.filters - k0 > X::kLanes) {
          run(Count<2>{});
        } else {
          run(Count<1>{});
        }
      }
    }
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
