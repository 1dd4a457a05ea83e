// Forward of upsample_conv_relu by Winograd's algorithm (upsample_winograd-inl.h), fused with bias
// and activation.
//
// A unit of work is a row of tiles of x, counted through all images. Some of them at a time are
// transformed into V [points^2][tiles][channels]; then for one block of filters after the other, as
// many small matrix products with U give M [points][products][tiles][lanes] of even rows, then of
// odd ones, from which the outputs of their parities follow while it is warm. What a row of tiles
// adds to the row below waits in the cache; who begins in the midst of a map makes the row above
// once more.
#pragma once

#include "math-inl.h"
#include "upsample_winograd-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X, class F>
struct UpsampleForwardPlan {
  using T = typename X::T;
  static constexpr int64_t kProductBytes = 256 << 10;  // of a block of filters, to stay in a cache
  static constexpr int64_t kTransformedBytes = 1 << 20;

  UpsampleTiles<X, F> tiles;
  int64_t channels, filters;  // whole vectors
  int64_t batch_rows;         // rows of tiles at a time
  int64_t v_plane, m_plane;   // elements from one point or product to the next
  int64_t carry;              // elements of a parity that wait for the next row

  explicit UpsampleForwardPlan(const ConvReLUPoolParams& whole) : tiles(whole) {
    channels = round_up(whole.C, X::kLanes);
    filters = round_up(whole.K, X::kLanes);
    const int64_t width = sizeof(T), products = F::kPoints * F::kProducts * kFilterBlock<X> * width;
    const int64_t most =
        min_of(kProductBytes / products, kTransformedBytes / (F::kPlanes * channels * width));
    batch_rows = max_of(1, max_of(2 * X::kTileCols, most) / tiles.columns);
    v_plane = odd_lines(batch_rows * tiles.columns * channels);
    m_plane = odd_lines(batch_rows * tiles.columns * kFilterBlock<X>);
    carry = (tiles.width + 1) * filters;
  }

  UpsampleFilters<X, F> weight() const { return {tiles.C}; }
  int64_t weight_size() const { return weight().size(filters); }
};

template <class X, class F>
struct UpsampleForwardScratch {
  using T = typename X::T;

  Arena arena;
  T *v, *m, *carry, *strip;

  UpsampleForwardScratch(const UpsampleForwardPlan<X, F>& plan, void* base)
      : arena{static_cast<char*>(base)} {
    v = arena.take<T>(F::kPlanes * plan.v_plane);
    m = arena.take<T>(F::kPoints * F::kProducts * plan.m_plane);
    carry = arena.take<T>(plan.tiles.rows > 1 ? 4 * plan.carry : 0);
    strip = arena.take<T>(plan.tiles.strip_size());
  }
};

static int64_t upsample_forward_pack_size(const ConvForwardArgs& a) {
  return with_upsampling(*a.params, [&](auto x, auto f) -> int64_t {
    const UpsampleForwardPlan<decltype(x), decltype(f)> plan(*a.params);
    return (plan.weight_size() + plan.filters) * int64_t{sizeof(typename decltype(x)::T)};
  });
}

static int64_t upsample_forward_pack_units(const ConvForwardArgs& a) {
  return ceil_div(a.params->K, kFilterBlock<F32>);
}

// U, then the bias.
static void upsample_forward_pack(const ConvForwardArgs& a, int64_t unit_begin, int64_t unit_end) {
  with_upsampling(*a.params, [&](auto x, auto f) {
    using X = decltype(x);
    const UpsampleForwardPlan<X, decltype(f)> plan(*a.params);
    auto* out = static_cast<typename X::T*>(a.packed_weight);
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      pack_upsample_filters<X, decltype(f), false>(a.weight, unit, a.params->K, a.params->C, out);
    }
    if (unit_begin > 0) return;
    out += plan.weight_size();
    fill_zero(out, plan.filters);
    pack_bias<X>(a, 0, a.params->K, out);
  });
}

static int64_t upsample_forward_scratch(const ConvForwardArgs& a) {
  return with_upsampling(*a.params, [&](auto x, auto f) -> int64_t {
    const UpsampleForwardPlan<decltype(x), decltype(f)> plan(*a.params);
    return UpsampleForwardScratch<decltype(x), decltype(f)>(plan, nullptr).arena.used;
  });
}

static int64_t upsample_forward_units(const ConvForwardArgs& a) {
  return with_upsampling(*a.params, [&](auto x, auto f) -> int64_t {
    return a.params->N * UpsampleTiles<decltype(x), decltype(f)>(*a.params).rows;
  });
}

// The sums of one tile, vector of filters and parity, from the planes [points][products] of the
// products of its rows.
template <class X, int kPoints>
[[gnu::always_inline]] static inline void interpolate_tile(const typename X::T* m, int64_t plane,
                                                           int parity_w,
                                                           typename X::V (&o)[kPoints][kPoints]) {
  constexpr int kProducts = Upsampling<kPoints>::kProducts;
  transform_square<X, kPoints>(
      [&](int h, int w) {
        return X::load(m + (h * kProducts + product_of<kPoints>(parity_w, w)) * plane);
      },
      winograd_interpolate<X, kPoints>, o);
}

// One row of tiles of one vector of filters and parity: adds up the sums of neighbours, and puts
// them through bias and activation to y. Writes nothing where it is null.
template <class X, class F, class IO>
[[gnu::noinline]] static void finish_upsampled(const ConvForwardArgs& a,
                                               const UpsampleTiles<X, F>& tiles, int64_t row,
                                               int parity, const typename X::T* m, int64_t m_step,
                                               int64_t m_plane, typename X::V bias, IO* y, int n,
                                               typename X::T* carry, int64_t carry_step) {
  using V = typename X::V;
  constexpr int kPoints = F::kPoints, kHeld = F::kHeld;
  const Activation activation = a.params->activation;
  const int64_t h0 = row % tiles.rows * kHeld;
  const bool last = h0 + kHeld >= tiles.H;
  const int rows = static_cast<int>(last ? tiles.H + 1 - h0 : kHeld);
  IO* to[kPoints];  // rows of y, where there are
  for (int i = 0; i < kPoints; i++) {
    const int64_t at_row = 2 * (h0 + i) - parity / 2;
    const bool exists = y && i < rows && at_row >= 0 && at_row < 2 * tiles.H;
    to[i] = exists ? y + at_row * a.y.stride[2] - parity % 2 * a.y.stride[3] : nullptr;
  }
  V edge[kPoints];  // the last column, which the next tile adds to
#pragma GCC unroll 8
  for (V& sum : edge) sum = X::zero();
  for (int64_t t = 0; t < tiles.columns; t++) {
    const int64_t w0 = t * kHeld;
    const bool end = t + 1 == tiles.columns;
    V o[kPoints][kPoints];
    interpolate_tile<X>(m + t * m_step, m_plane, parity % 2, o);
#pragma GCC unroll 8
    for (int i = 0; i < kPoints; i++) {
      o[i][0] = X::add(o[i][0], edge[i]);
      edge[i] = o[i][kHeld];
    }
    const int cols = static_cast<int>(end ? tiles.W + 1 - w0 : kHeld);
    if (h0 > 0) {
      for (int j = 0; j < cols; j++) {
        o[0][j] = X::add(o[0][j], X::load(carry + (w0 + j) * carry_step));
      }
    }
    if (!last) {
      for (int j = 0; j < cols; j++) X::store(carry + (w0 + j) * carry_step, o[kHeld][j]);
    }
    const int first = w0 == 0 ? parity % 2 : 0;
    const int behind = static_cast<int>(min_of(cols, tiles.W + parity % 2 - w0));
    for (int i = 0; i < rows; i++) {
      if (!to[i]) continue;
      for (int j = first; j < behind; j++) {
        const V value = activate<X>(activation, X::add(o[i][j], bias));
        X::store(to[i] + 2 * (w0 + j) * a.y.stride[3], value, n);
      }
    }
  }
}

static void upsample_forward(const ConvForwardArgs& a, int64_t begin, int64_t end, void* base) {
  with_upsampling(*a.params, [&](auto x, auto f) {
    using X = decltype(x);
    using F = decltype(f);
    using T = typename X::T;
    const UpsampleForwardPlan<X, F> plan(*a.params);
    const UpsampleForwardScratch<X, F> s(plan, base);
    const UpsampleTiles<X, F>& tiles = plan.tiles;
    const auto* weight = static_cast<const T*>(a.packed_weight);
    const T* bias = weight + plan.weight_size();
    const Reduction reduction{1, 0, 1, 0, tiles.C, 0, plan.channels};
    int64_t row = begin % tiles.rows > 0 ? begin - 1 : begin;
    const int64_t step = even_share(end - row, plan.batch_rows);
    for (; row < end; row += step) {
      const int64_t rows = min_of(step, end - row), count = rows * tiles.columns;
      for (int64_t i = 0; i < rows; i++) {
        const auto put = [&](int64_t t, int64_t c) {
          return s.v + (i * tiles.columns + t) * plan.channels + c;
        };
        tiles.transform_row(a.x, row + i, s.strip, put, plan.v_plane);
      }
      for_each_block<X>(plan.filters, [&](auto vectors, int64_t k0) {
        constexpr int NV = decltype(vectors)::kValue;
        constexpr int64_t kLanes = NV * X::kLanes;
        const T* u = weight + plan.weight().block(k0);
        const int64_t u_plane = plan.weight().plane(kLanes);
        for (int parity_h = 0; parity_h < 2; parity_h++) {
          // Odd rows find what they share with even ones where it is.
          for (int point = 0; point < F::kPoints; point++) {
            if (parity_h >= parts_of(point)) continue;
            for_each_product<F::kPoints>([&](int column, int part, int product) {
              const int plane = point * F::kPoints + column;
              const int at = parity_h * parts_of(column) + part;
              multiply_plane<X, NV>(reduction, s.v + plane * plan.v_plane,
                                    u + plane * u_plane + at * tiles.C * kLanes, count, false,
                                    s.m + (point * F::kProducts + product) * plan.m_plane);
            });
          }
          for (int v = 0; v < NV && k0 + v * X::kLanes < a.params->K; v++) {
            const int64_t k = k0 + v * X::kLanes;
            const int n = static_cast<int>(min_of(X::kLanes, a.params->K - k));
            for (int parity = 2 * parity_h; parity < 2 * parity_h + 2; parity++) {
              T* const carry = s.carry + parity * plan.carry + k;
              for (int64_t i = 0; i < rows; i++) {
                with_storage<X>(a.y.dtype, [&](auto io) {
                  using IO = decltype(io);
                  IO* const y =
                      row + i < begin ? nullptr : at<IO>(a.y, (row + i) / tiles.rows, k, 0, 0);
                  finish_upsampled<X, F>(
                      a, tiles, row + i, parity, s.m + i * tiles.columns * kLanes + v * X::kLanes,
                      kLanes, plan.m_plane, X::load(bias + k), y, n, carry, plan.filters);
                });
              }
            }
          }
        }
      });
    }
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
