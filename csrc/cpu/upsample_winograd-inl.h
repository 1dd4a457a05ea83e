// Winograd's algorithm for a convolution of 3 x 3 taps behind a nearest-neighbour upsampling by 2,
// the algebra of it. Along one dimension, with taps w0 w1 w2, full convolutions of x with two taps
// make the outputs of both parities,
//
//   s0 = x * (w1 + w2, w0)   y[2 i] = s0[i]        s1 = x * (w2, w0 + w1)   y[2 i - 1] = s1[i]
//
// and a tile of m samples adds m + 1 numbers to each, of which neighbours share one. They are
// products of polynomials, found from their values at m + 1 points (Cook and Toom; the transpose
// of F(m, 2), whose points and matrices these are):
//
//   S = B [ (E w) * (G x) ]
//   grad_w = E' [ (B' grad_S) * (G x) ]
//   grad_x = A' [ (B' grad_S) * (G w) ]
//
// with A, B, G of winograd-inl.h and values E = diag(scale)^-1 G. At the point 1 both parities'
// filters have the value w0 + w1 + w2, so they share that product: 2 (m + 1) - 1 in place of
// 2 (m + 1), squared in two dimensions.
#pragma once

#include "upsample_conv_relu.h"
#include "winograd_tiles-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Tiles of as many samples a dimension as a Winograd filter has taps.
template <int points>
struct Upsampling {
  static constexpr int kPoints = points, kHeld = points - 1;
  static constexpr int kPlanes = points * points;
  static constexpr int kProducts = 2 * points - 1;  // of one dimension
};

inline constexpr int kPointOne = 1;  // which of the points is 1

// Parities that have a product of their own at a point, and which of these is whose.
constexpr int parts_of(int point) { return point == kPointOne ? 1 : 2; }
constexpr int part_of(int parity, int point) { return point == kPointOne ? 0 : parity; }

// Products of one dimension in an order: of even, then what odd has besides.
template <int kPoints>
constexpr int product_of(int parity, int point) {
  if (parity == 0 || point == kPointOne) return point;
  return kPoints + point - (point > kPointOne);
}

// How filters lie that are products' factors, or sums for their gradients: [filter block][points^2]
// [4 parts][depth][lanes of the block]. A point has as many of the parts as products.
template <class X, class F>
struct UpsampleFilters {
  int64_t depth;

  // Elements from one point of a block to the next.
  int64_t plane(int64_t lanes) const { return odd_lines(4 * depth * lanes); }
  // The block of filter k0.
  int64_t block(int64_t k0) const {
    return k0 / kFilterBlock<X> * F::kPlanes * plane(kFilterBlock<X>);
  }
  // Of so many filters, whole vectors.
  int64_t size(int64_t filters) const {
    const int64_t last = filters % kFilterBlock<X>;
    return block(filters) + (last > 0 ? F::kPlanes * plane(last) : 0);
  }
};

// Calls function(compute type, Upsampling) for the maps of a call.
template <class Function>
static inline auto with_upsampling(const ConvReLUPoolParams& whole, Function function) {
  const int64_t points = upsample_points(whole.H / 2, whole.W / 2);
  if (points == 5) return function(F32{}, Upsampling<5>{});
  if (points == 6) return function(F32{}, Upsampling<6>{});
  return function(F32{}, Upsampling<8>{});
}

// E g: the values of two taps.
template <class X, int kPoints>
[[gnu::always_inline]] static inline void winograd_values(const typename X::V (&g)[2],
                                                          typename X::V (&o)[kPoints]) {
  o[0] = g[0];
  o[1] = X::add(g[0], g[1]);
  o[2] = X::sub(g[0], g[1]);
  o[3] = X::fma(X::set1(2), g[1], g[0]);
  if (kPoints > 5) o[4] = X::fma(X::set1(-2), g[1], g[0]);
  if (kPoints == 8) {
    o[kPoints - 3] = X::fma(X::set1(0.5), g[1], g[0]);
    o[kPoints - 2] = X::fma(X::set1(-0.5), g[1], g[0]);
  }
  o[kPoints - 1] = g[1];
}

// B m: from products at the points to the coefficients.
template <class X, int kPoints>
[[gnu::always_inline]] static inline void winograd_interpolate(const typename X::V (&m)[kPoints],
                                                               typename X::V (&o)[kPoints]) {
  using V = typename X::V;
  const V two = X::set1(2), minus2 = X::set1(-2), half = X::set1(0.5), quarter = X::set1(0.25);
  if constexpr (kPoints == 5) {
    const V a = X::add(m[0], m[2]), b = X::add(m[1], m[3]);
    o[0] = X::add(m[0], m[0]);
    o[3] = X::fma(minus2, m[4], X::add(a, b));
    o[1] = X::fma(two, X::add(X::sub(m[2], m[1]), m[4]), X::sub(X::zero(), X::add(m[0], m[3])));
    o[2] = X::fma(minus2, a, X::sub(X::zero(), X::add(X::add(m[1], m[2]), m[4])));
    o[4] = m[4];
  } else {
    const V a = X::add(m[1], m[2]), b = X::sub(m[1], m[2]);
    const V c = X::add(m[3], m[4]), d = X::sub(m[3], m[4]);
    if constexpr (kPoints == 8) {
      const V e = X::add(m[5], m[6]), f = X::sub(m[5], m[6]);
      const V p = X::set1(5.25), q = X::set1(-4.25);
      o[0] = m[0];
      o[1] = X::fma(half, d, X::fma(two, f, X::sub(b, m[7])));
      o[2] = X::fma(quarter, c, X::fma(X::set1(4), e, X::sub(a, X::mul(p, m[0]))));
      o[3] = X::fma(X::set1(-2.5), X::add(d, f), X::fma(q, b, X::mul(p, m[7])));
      o[4] = X::fma(X::set1(-1.25), c, X::fma(X::set1(-5), e, X::fma(q, a, X::mul(p, m[0]))));
      o[5] = X::fma(two, d, X::fma(half, f, X::sub(b, X::mul(p, m[7]))));
      o[6] = X::sub(X::add(X::add(a, c), e), m[0]);
      o[7] = m[7];
    } else {
      const V four = X::set1(4), minus4 = X::set1(-4), minus5 = X::set1(-5);
      o[0] = X::mul(four, m[0]);
      o[1] = X::fma(four, X::sub(m[5], b), X::mul(minus2, d));
      o[2] = X::fma(minus5, m[0], X::fma(minus4, a, X::sub(X::zero(), c)));
      o[3] = X::fma(minus5, m[5], X::fma(two, d, b));
      o[4] = X::add(X::add(m[0], a), c);
      o[5] = m[5];
    }
  }
}

// One dimension of filters: from three taps to the products of both parities, as E or as G has it.
template <class X, int kPoints, bool kScaled>
[[gnu::always_inline]] static inline void upsample_taps(
    const typename X::V (&w)[3], typename X::V (&o)[Upsampling<kPoints>::kProducts]) {
  using V = typename X::V;
  const V taps[2][2] = {{X::add(w[1], w[2]), w[0]}, {w[2], X::add(w[0], w[1])}};
#pragma GCC unroll 2
  for (int parity = 0; parity < 2; parity++) {
    V values[kPoints];
    if constexpr (kScaled) {
      winograd_filter<X>(taps[parity], values);
    } else {
      winograd_values<X>(taps[parity], values);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kPoints; i++) o[product_of<kPoints>(parity, i)] = values[i];
  }
}

// Calls function(point, part, product) for the products of one dimension.
template <int kPoints, class Function>
[[gnu::always_inline]] static inline void for_each_product(Function function) {
  for (int point = 0; point < kPoints; point++) {
    for (int part = 0; part < parts_of(point); part++) {
      function(point, part, product_of<kPoints>(part, point));
    }
  }
}

// 3 x 3 taps of one vector of filters, `step` apart, into the parts of all points' planes.
template <class X, int kPoints, bool kScaled>
[[gnu::noinline]] static void transform_upsample_filter(const typename X::T* taps, int64_t step,
                                                        typename X::T* u, int64_t plane,
                                                        int64_t part_step) {
  using V = typename X::V;
  constexpr int kProducts = Upsampling<kPoints>::kProducts;
  V half[3][kProducts];  // [column][product]
#pragma GCC unroll 3
  for (int s = 0; s < 3; s++) {
    const V column[3] = {X::load(taps + s * step), X::load(taps + (3 + s) * step),
                         X::load(taps + (6 + s) * step)};
    upsample_taps<X, kPoints, kScaled>(column, half[s]);
  }
  for_each_product<kPoints>([&](int point, int part, int product) {
    const V row[3] = {half[0][product], half[1][product], half[2][product]};
    V products[kProducts];
    upsample_taps<X, kPoints, kScaled>(row, products);
    for_each_product<kPoints>([&](int column, int column_part, int column_product) {
      typename X::T* to = u + (point * kPoints + column) * plane;
      X::store(to + (part * parts_of(column) + column_part) * part_step, products[column_product]);
    });
  });
}

// One block of U of a view [filter][channel][3][3]; the last block is padded with zero filters.
template <class X, class F, bool kScaled>
static void pack_upsample_filters(const View4& weight, int64_t block, int64_t filters,
                                  int64_t channels, typename X::T* u) {
  constexpr int64_t kChannels = 16;  // at a time, in the cache of a core
  typename X::T taps[9 * kChannels * kFilterBlock<X>];
  const int64_t k0 = block * kFilterBlock<X>;
  const int64_t valid = min_of(kFilterBlock<X>, filters - k0), lanes = round_up(valid, X::kLanes);
  const UpsampleFilters<X, F> to{channels};
  u += to.block(k0);
  for (int64_t c0 = 0; c0 < channels; c0 += kChannels) {
    const int64_t count = min_of(kChannels, channels - c0);
    pack_filters<X>(3, 3, view_at(weight, k0, c0, 0, 0), count, valid, lanes, taps);
    for (int64_t i = 0; i < count * lanes; i += X::kLanes) {
      transform_upsample_filter<X, F::kPoints, kScaled>(taps + i, count * lanes, u + c0 * lanes + i,
                                                        to.plane(lanes), channels * lanes);
    }
  }
}

// Of so many, the size of parts of at most `most` that are as equal as can be.
static inline int64_t even_share(int64_t count, int64_t most) {
  return ceil_div(count, max_of(1, ceil_div(count, most)));
}

// The tiles of x of a call, and its rows of tiles, which are counted through all images.
template <class X, class F>
struct UpsampleTiles {
  using T = typename X::T;

  int64_t H, W, C;
  int64_t rows, columns, width;  // tiles of an image; samples that a row of tiles spans

  explicit UpsampleTiles(const ConvReLUPoolParams& whole)
      : H(whole.H / 2),
        W(whole.W / 2),
        C(whole.C),
        rows(ceil_div(H, F::kHeld)),
        columns(ceil_div(W, F::kHeld)),
        width(columns * F::kHeld) {}

  int64_t strip_size() const { return F::kHeld * width * C; }

  // G x of one row of tiles: put(t, c) is where that of tile t goes, of channels from c on. Strip
  // is for rows that do not lie in memory as the kernel has them.
  template <class Put>
  void transform_row(const View4& x, int64_t row, T* strip, Put put, int64_t plane) const {
    const int64_t n = row / rows, h0 = row % rows * F::kHeld, count = min_of(F::kHeld, H - h0);
    const T* from = strip;
    int64_t row_step = width * C, col_step = C;
    if (is_computed_as_stored<X>(x.dtype) && x.stride[1] == 1) {
      from = at<const T>(x, n, 0, h0, 0);
      row_step = x.stride[2];
      col_step = x.stride[3];
    } else {
      stage_strip<X>(x, H, W, n, 0, C, h0, count, 0, width, C, strip);
    }
    for (int64_t t = 0; t < columns; t++, from += F::kHeld * col_step) {
      const int cols = static_cast<int>(min_of(F::kHeld, W - t * F::kHeld));
      for (int64_t c = 0; c < C; c += X::kLanes) {
        const int64_t left = C - c;
        if (left >= X::kLanes) {
          transform_filter<X, F::kPoints, F::kHeld, true>(from + c, row_step, col_step,
                                                          static_cast<int>(count), cols, X::kLanes,
                                                          put(t, c), plane);
        } else {
          transform_filter<X, F::kPoints, F::kHeld, false>(
              from + c, row_step, col_step, static_cast<int>(count), cols, static_cast<int>(left),
              put(t, c), plane);
        }
      }
    }
  }
};

}  // namespace imgfast::cpu::IMGFAST_ISA
