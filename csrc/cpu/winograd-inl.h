// Winograd's minimal filtering with six points a dimension, the algebra of it: m outputs of r taps,
// m + r = 7, cost 36 products in two dimensions instead of m m r r.
//
//   F(5x5, 2x2), F(4x4, 3x3), F(3x3, 4x4), F(2x2, 5x5):  Y = A' [ (G g G') * (B' d B) ] A,  summed
//   over channels
//
// before A. The points are 0, 1, -1, 2, -2 and infinity, for which B does not depend on m and r.
// For maps that their tiles cover better, F(4x4, 2x2) has the five points 0, 1, -1, 2 and infinity,
// 25 products, and F(7x7, 2x2) eight, with 1/2 and -1/2, 64 products. The weight gradient of
// F(m, r) is F(r, m), whose filter is the tile of output gradients.
//
// Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016
// (arXiv:1509.09308), sections 4.1 to 4.3.
#pragma once

#include "conv_tile-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Of one dimension.
template <int points, int taps>
struct Filtering {
  static constexpr int kPoints = points, kTaps = taps, kOutputs = points + 1 - taps;
  static constexpr int kPlanes = points * points;
};

inline constexpr int64_t kBatchTiles =
    48;  // of one product, at most, to share a reading of filters

// Calls function(compute type, Filtering) for the tiles of a gradient of rows x cols outputs.
template <class Function>
static inline auto with_filtering(const ConvReLUPoolParams& p, int64_t rows, int64_t cols,
                                  Function function) {
  const int64_t taps = winograd_taps(p);
  if (winograd_points(p, rows, cols) == 5) return function(F32{}, Filtering<5, 2>{});
  if (taps <= 2) return function(F32{}, Filtering<6, 2>{});
  if (taps == 3) return function(F32{}, Filtering<6, 3>{});
  if (taps == 4) return function(F32{}, Filtering<6, 4>{});
  return function(F32{}, Filtering<6, 5>{});
}

// Of the gradient at the input, and at the weight.
template <class Function>
static inline auto with_winograd_input(const ConvReLUPoolParams& p, Function function) {
  return with_filtering(p, p.H, p.W, function);
}

template <class Function>
static inline auto with_winograd_weight(const ConvReLUPoolParams& p, Function function) {
  return with_filtering(p, p.P, p.Q, function);
}

// Of the convolution's output.
template <class Function>
static inline auto with_winograd(const ConvReLUPoolParams& p, Function function) {
  if (winograd_forward_points(p) == 8) return function(F32{}, Filtering<8, 2>{});
  return with_filtering(p, p.P, p.Q, function);
}

// Tiles of so many channels that are transformed at a time: as many as fit the cache, within
// bounds.
template <class X, class F>
static int64_t tiles_at_a_time(int64_t channels, int64_t least, int64_t most) {
  constexpr int64_t kInputBytes = 1 << 20;
  const int64_t tile_bytes = F::kPlanes * channels * static_cast<int64_t>(sizeof(typename X::T));
  return min_of(max_of(kInputBytes / tile_bytes, least), most);
}

// Of `rows` rows of tiles of a group, those of one unit: many tiles share one reading of the
// transformed filters, if they leave the threads enough units and fit the cache.
template <class X, class F>
static int64_t rows_of_unit(int64_t rows, int64_t tiles, int64_t channels, int64_t groups,
                            int64_t threads) {
  int64_t unit = max_of(1, tiles_at_a_time<X, F>(channels, kBatchTiles / 4, kBatchTiles) / tiles);
  while (unit > 1 && threads > 1 && groups * ceil_div(rows, unit) < kUnitsPerThread * threads) {
    unit = (unit + 1) / 2;
  }
  return min_of(unit, rows);
}

// B' d: samples to as many points.
template <class X, int kPoints>
[[gnu::always_inline]] static inline void winograd_input(const typename X::V (&d)[kPoints],
                                                         typename X::V (&o)[kPoints]) {
  using V = typename X::V;
  const V two = X::set1(2), minus2 = X::set1(-2);
  if constexpr (kPoints == 5) {
    o[3] = X::sub(d[3], d[1]);
    o[0] = X::fma(two, X::sub(d[0], d[2]), o[3]);
    const V a = X::sub(d[3], d[2]);
    o[1] = X::fma(minus2, d[1], a);
    o[2] = X::fma(two, X::sub(d[1], d[2]), a);
    o[4] = X::fma(minus2, o[3], X::sub(d[4], d[2]));
  } else if constexpr (kPoints == 8) {
    const V half = X::set1(0.5), quarter = X::set1(0.25), four = X::set1(4);
    const V c = X::set1(5.25), e = X::set1(-4.25), f = X::set1(-1.25), g = X::set1(-2.5);
    o[0] = X::fma(c, X::sub(d[4], d[2]), X::sub(d[0], d[6]));
    o[7] = X::fma(c, X::sub(d[3], d[5]), X::sub(d[7], d[1]));
    V even = X::fma(e, d[4], X::add(d[2], d[6])), odd = X::fma(e, d[3], X::add(d[1], d[5]));
    o[1] = X::add(even, odd);
    o[2] = X::sub(even, odd);
    even = X::fma(quarter, d[2], X::fma(f, d[4], d[6]));
    odd = X::fma(half, d[1], X::fma(g, d[3], X::mul(two, d[5])));
    o[3] = X::add(even, odd);
    o[4] = X::sub(even, odd);
    even = X::fma(four, d[2], X::fma(X::set1(-5), d[4], d[6]));
    odd = X::fma(two, d[1], X::fma(g, d[3], X::mul(half, d[5])));
    o[5] = X::add(even, odd);
    o[6] = X::sub(even, odd);
  } else {
    const V minus4 = X::set1(-4), four = X::set1(4), minus5 = X::set1(-5);
    o[0] = X::fma(four, d[0], X::fma(minus5, d[2], d[4]));
    const V a = X::fma(minus4, d[2], d[4]), b = X::fma(minus4, d[1], d[3]);
    o[1] = X::add(a, b);
    o[2] = X::sub(a, b);
    const V e = X::sub(d[4], d[2]), f = X::mul(two, X::sub(d[3], d[1]));
    o[3] = X::add(e, f);
    o[4] = X::sub(e, f);
    o[5] = X::fma(four, d[1], X::fma(minus5, d[3], d[5]));
  }
}

// sum over the taps of one parity of point^k g[k], where scale = point^2.
template <class X, int kTaps>
[[gnu::always_inline]] static inline typename X::V winograd_power(const typename X::V (&g)[kTaps],
                                                                  int parity, double scale) {
  const int last = (kTaps - 1 - parity) / 2 * 2 + parity;
  typename X::V sum = g[last];
  for (int k = last - 2; k >= 0; k -= 2) {
    sum = X::fma(X::set1(static_cast<typename X::T>(scale)), sum, g[k]);
  }
  return sum;
}

// sum over the taps of 2^k g[k].
template <class X, int kTaps>
[[gnu::always_inline]] static inline typename X::V winograd_doubling(
    const typename X::V (&g)[kTaps]) {
  typename X::V sum = g[kTaps - 1];
  for (int k = kTaps - 2; k >= 0; k--) sum = X::fma(X::set1(2), sum, g[k]);
  return sum;
}

// G g: taps to points.
template <class X, int kPoints, int kTaps>
[[gnu::always_inline]] static inline void winograd_filter(const typename X::V (&g)[kTaps],
                                                          typename X::V (&o)[kPoints]) {
  using V = typename X::V;
  const V even = winograd_power<X>(g, 0, 1), odd = winograd_power<X>(g, 1, 1);
  if constexpr (kPoints == 5) {
    o[0] = X::mul(X::set1(0.5), g[0]);
    o[1] = X::mul(X::set1(-0.5), X::add(even, odd));
    o[2] = X::mul(X::set1(-1.0 / 6), X::sub(even, odd));
    o[3] = X::mul(X::set1(1.0 / 6), winograd_doubling<X>(g));
  } else if constexpr (kPoints == 8) {
    const auto pair = [&](int first, double scale, const V& even, const V& odd, double point) {
      const V a = X::mul(X::set1(static_cast<typename X::T>(scale)), even),
              b = X::mul(X::set1(static_cast<typename X::T>(scale * point)), odd);
      o[first] = X::add(a, b);
      o[first + 1] = X::sub(a, b);
    };
    o[0] = g[0];
    pair(1, -2.0 / 9, even, odd, 1);
    pair(3, 1.0 / 90, winograd_power<X>(g, 0, 4), winograd_power<X>(g, 1, 4), 2);
    pair(5, 32.0 / 45, winograd_power<X>(g, 0, 0.25), winograd_power<X>(g, 1, 0.25), 0.5);
  } else {
    o[0] = X::mul(X::set1(0.25), g[0]);
    const V even1 = X::mul(X::set1(-1.0 / 6), even), odd1 = X::mul(X::set1(-1.0 / 6), odd);
    o[1] = X::add(even1, odd1);
    o[2] = X::sub(even1, odd1);
    const V even2 = X::mul(X::set1(1.0 / 24), winograd_power<X>(g, 0, 4)),
            odd2 = X::mul(X::set1(1.0 / 12), winograd_power<X>(g, 1, 4));
    o[3] = X::add(even2, odd2);
    o[4] = X::sub(even2, odd2);
  }
  o[kPoints - 1] = g[kTaps - 1];
}

// A' m: points to outputs.
template <class X, int kPoints, int kOutputs>
[[gnu::always_inline]] static inline void winograd_output(const typename X::V (&m)[kPoints],
                                                          typename X::V (&o)[kOutputs]) {
  using V = typename X::V;
  const V a = X::add(m[1], m[2]), b = X::sub(m[1], m[2]);
  const V c = kPoints == 5 ? m[3] : X::add(m[3], m[4]),
          d = kPoints == 5 ? m[3] : X::sub(m[3], m[4]);
  // Of the points 1/2 and -1/2, where they are.
  const V e = kPoints == 8 ? X::add(m[kPoints - 3], m[kPoints - 2]) : X::zero(),
          f = kPoints == 8 ? X::sub(m[kPoints - 3], m[kPoints - 2]) : X::zero();
  o[0] = X::add(X::add(m[0], a), c);
  if (kPoints == 8) o[0] = X::add(o[0], e);
#pragma GCC unroll 7
  for (int i = 1; i < kOutputs; i++) {
    using T = typename X::T;
    o[i] = X::fma(X::set1(static_cast<T>(1 << i)), i % 2 ? d : c, i % 2 ? b : a);
    if (kPoints == 8) {
      o[i] = X::fma(X::set1(static_cast<T>(1) / static_cast<T>(1 << i)), i % 2 ? f : e, o[i]);
    }
  }
  o[kOutputs - 1] = X::add(o[kOutputs - 1], m[kPoints - 1]);
}

// One tile's inputs of one vector of channels, n of them if not kWhole, into the planes of v.
template <class X, int kPoints, bool kWhole, class IO>
[[gnu::always_inline]] static inline void transform_channels(const IO* in, int64_t row_step,
                                                             int64_t col_step, int n,
                                                             typename X::T* v, int64_t plane) {
  using V = typename X::V;
  V half[kPoints][kPoints];  // [column][point]
  for (int w = 0; w < kPoints; w++) {
    V column[kPoints];
#pragma GCC unroll 8
    for (int h = 0; h < kPoints; h++) {
      const IO* from = in + h * row_step + w * col_step;
      column[h] = kWhole ? X::load(from) : X::load(from, n);
    }
    winograd_input<X>(column, half[w]);
  }
  for (int h = 0; h < kPoints; h++) {
    V row[kPoints], points[kPoints];
#pragma GCC unroll 8
    for (int w = 0; w < kPoints; w++) row[w] = half[w][h];
    winograd_input<X>(row, points);
#pragma GCC unroll 8
    for (int w = 0; w < kPoints; w++) {
      typename X::T* to = v + (h * kPoints + w) * plane;
      if (kWhole) {
        X::store(to, points[w]);
      } else {
        X::store(to, points[w], n);
      }
    }
  }
}

template <class X, int kPoints, class IO>
static void transform_input(const IO* in, int64_t row_step, int64_t col_step, int64_t channels,
                            typename X::T* v, int64_t plane) {
  int64_t c = 0;
  for (; c + X::kLanes <= channels; c += X::kLanes) {
    transform_channels<X, kPoints, true>(in + c, row_step, col_step, X::kLanes, v + c, plane);
  }
  if (c < channels) {
    transform_channels<X, kPoints, false>(in + c, row_step, col_step,
                                          static_cast<int>(channels - c), v + c, plane);
  }
}

// kTaps x kTaps taps of one vector of filters, of which the first rows x cols are there (and n
// lanes, if not kWhole), into the planes of u.
template <class X, int kPoints, int kTaps, bool kWhole>
static void transform_filter(const typename X::T* taps, int64_t row_step, int64_t col_step,
                             int rows, int cols, int n, typename X::T* u, int64_t plane) {
  using V = typename X::V;
  V half[kTaps][kPoints];  // [column][point]
#pragma GCC unroll 7
  for (int s = 0; s < kTaps; s++) {
    V column[kTaps];
#pragma GCC unroll 7
    for (int r = 0; r < kTaps; r++) {
      const typename X::T* from = taps + r * row_step + s * col_step;
      column[r] = r >= rows || s >= cols ? X::zero() : kWhole ? X::load(from) : X::load(from, n);
    }
    winograd_filter<X>(column, half[s]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kPoints; r++) {
    V row[kTaps], points[kPoints];
#pragma GCC unroll 7
    for (int s = 0; s < kTaps; s++) row[s] = half[s][r];
    winograd_filter<X>(row, points);
#pragma GCC unroll 8
    for (int s = 0; s < kPoints; s++) X::store(u + (r * kPoints + s) * plane, points[s]);
  }
}

// A transform of one dimension, from kPoints to kOutputs, along rows and columns of load(row,
// column).
template <class X, int kPoints, int kOutputs, class Load, class Transform>
[[gnu::always_inline]] static inline void transform_square(Load load, Transform transform,
                                                           typename X::V (&o)[kOutputs][kOutputs]) {
  using V = typename X::V;
  V half[kPoints][kOutputs];
  for (int h = 0; h < kPoints; h++) {
    V row[kPoints];
#pragma GCC unroll 8
    for (int w = 0; w < kPoints; w++) row[w] = load(h, w);
    transform(row, half[h]);
  }
#pragma GCC unroll 8
  for (int w = 0; w < kOutputs; w++) {
    V column[kPoints], out[kOutputs];
#pragma GCC unroll 8
    for (int h = 0; h < kPoints; h++) column[h] = half[h][w];
    transform(column, out);
#pragma GCC unroll 8
    for (int h = 0; h < kOutputs; h++) o[h][w] = out[h];
  }
}

// The kOutputs x kOutputs sums of one tile and vector of filters, from the planes of m.
template <class X, int kPoints, int kOutputs>
[[gnu::always_inline]] static inline void transform_output(const typename X::T* m, int64_t plane,
                                                           typename X::V (&o)[kOutputs][kOutputs]) {
  transform_square<X, kPoints>([&](int h, int w) { return X::load(m + (h * kPoints + w) * plane); },
                               winograd_output<X, kPoints, kOutputs>, o);
}

// Calls put(row, column) for the first rows x cols of kRows x kCols results in registers; all of
// them are the common case, without a loop.
template <int kRows, int kCols, class Put>
[[gnu::always_inline]] static inline void for_each_output(int64_t rows, int64_t cols, Put put) {
  if (rows == kRows && cols == kCols) {
#pragma GCC unroll 5
    for (int i = 0; i < kRows; i++) {
#pragma GCC unroll 5
      for (int j = 0; j < kCols; j++) put(i, j);
    }
  } else {
    for (int64_t i = 0; i < rows; i++) {
      for (int64_t j = 0; j < cols; j++) put(i, j);
    }
  }
}

// One block of U [filter block][points^2][channels][lanes of the block] of `filters` filters by
// `channels` channels, from a view [filter][channel][R][S]; the last block is padded with zero
// filters. A strided filter falls into stride x stride filters of unit stride, whose channels
// follow one another.
template <class X, class F>
static void transform_filters(const View4& weight, int64_t block, int64_t filters, int64_t channels,
                              int64_t R, int64_t S, int64_t stride, typename X::T* out) {
  constexpr int64_t kChannels = 16;  // at a time, in the cache of a core
  typename X::T taps[F::kTaps * F::kTaps * kChannels * kFilterBlock<X>];
  const int64_t depth = channels * stride * stride;
  const int64_t k0 = block * kFilterBlock<X>;
  const int64_t valid = min_of(kFilterBlock<X>, filters - k0), lanes = round_up(valid, X::kLanes);
  out += F::kPlanes * depth * k0;
  for (int64_t part = 0; part < stride * stride; part++) {
    const int64_t a = part / stride, b = part % stride;
    const int64_t rows = ceil_div(R - a, stride), cols = ceil_div(S - b, stride);
    for (int64_t c0 = 0; c0 < channels; c0 += kChannels) {
      const int64_t count = min_of(kChannels, channels - c0);
      View4 view = view_at(weight, k0, c0, a, b);
      view.stride[2] *= stride;
      view.stride[3] *= stride;
      pack_filters<X>(rows, cols, view, count, valid, lanes, taps);
      for (int64_t i = 0; i < count * lanes; i += X::kLanes) {
        transform_filter<X, F::kPoints, F::kTaps, true>(
            taps + i, cols * count * lanes, count * lanes, static_cast<int>(rows),
            static_cast<int>(cols), X::kLanes, out + (part * channels + c0) * lanes + i,
            depth * lanes);
      }
    }
  }
}

// TC tiles by NV vectors of filters of one point's product.
template <class X, int NV, int TC>
static void product_tile(const Reduction& reduction, const typename X::T* v,
                         const typename X::T* weight, bool add, typename X::T* m) {
  Tile<X, NV, 1, TC> tile;
  convolve_tile<false>(reduction, v, weight, tile);
  if (add) {
    tile.for_each([&](auto& sum, int i) {
      X::store(m + i * X::kLanes, X::add(X::load(m + i * X::kLanes), sum));
    });
  } else {
    tile.for_each([&](auto& sum, int i) { X::store(m + i * X::kLanes, sum); });
  }
}

// m [count][lanes] (+)= v * weight [terms][lanes] of one point, where v is read as the reduction
// says.
template <class X, int NV>
static void multiply_plane(const Reduction& reduction, const typename X::T* v,
                           const typename X::T* weight, int64_t count, bool add, typename X::T* m) {
  const int64_t parts = ceil_div(count, X::kTileCols);
  for (int64_t part = 0; part < parts; part++) {
    const int64_t first = count * part / parts, n = count * (part + 1) / parts - first;
    const auto product = with_count<X::kTileCols>(
        n, [](auto tiles) { return product_tile<X, NV, decltype(tiles)::kValue>; });
    product(reduction, v + first * reduction.col_step, weight, add, m + first * NV * X::kLanes);
  }
}

// The same of all points, so many elements apart.
template <class X, int NV, class F>
static void multiply(const Reduction& reduction, const typename X::T* v, int64_t v_plane,
                     const typename X::T* weight, int64_t weight_plane, int64_t count, bool add,
                     typename X::T* m, int64_t m_plane) {
  for (int64_t point = 0; point < F::kPlanes; point++) {
    multiply_plane<X, NV>(reduction, v + point * v_plane, weight + point * weight_plane, count, add,
                          m + point * m_plane);
  }
}

// Calls function(Count<vectors>, first filter) for every block of filters.
template <class X, class Function>
static void for_each_block(int64_t filters, Function function) {
  for (int64_t k0 = 0; k0 < filters; k0 += kFilterBlock<X>) {
    if (filters - k0 > X::kLanes) {
      function(Count<2>{}, k0);
    } else {
      function(Count<1>{}, k0);
    }
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
