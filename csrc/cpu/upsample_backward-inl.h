// Backward of upsample_conv_relu by Winograd's algorithm (upsample_winograd-inl.h).
//
// A unit of work is a row of tiles of x, counted through all images. The gradients at the
// convolution's output of some of them are taken through the activation and transformed, once for
// all: times the filters they give x's gradient, times the transformed x the sums of the weight's.
// Where parities share a product, their gradients are added up before it.
#pragma once

#include "conv_gradient_strip-inl.h"
#include "upsample_winograd-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X, class F>
struct UpsampleBackwardPlan {
  using T = typename X::T;
  static constexpr int64_t kMostBytes = 8 << 20;  // of the tiles of a batch

  UpsampleTiles<X, F> tiles;
  int64_t K, C, channels;             // channels is C rounded up to whole vectors
  int64_t batch_rows;                 // of tiles, at a time
  int64_t g_plane, x_plane, m_plane;  // elements from one point to the next

  explicit UpsampleBackwardPlan(const ConvReLUPoolParams& whole)
      : tiles(whole), K(whole.K), C(whole.C), channels(round_up(whole.C, X::kLanes)) {
    // A batch reads its tiles twice and three matrices of the size of all filters: as many tiles as
    // take as long as these.
    const int64_t numbers = 4 * K + 2 * channels;
    const int64_t most =
        min_of(6 * K * C / numbers, kMostBytes / (F::kPlanes * numbers * int64_t{sizeof(T)}));
    batch_rows =
        min_of(max_of(1, max_of(2 * X::kTileCols, most) / tiles.columns), whole.N * tiles.rows);
    const int64_t batch_tiles = batch_rows * tiles.columns;
    g_plane = odd_lines(batch_tiles * 4 * K);
    x_plane = odd_lines(batch_tiles * channels);
    m_plane = odd_lines(batch_tiles * channels);
  }

  // From filter to channel, and the sums of a slot for them.
  UpsampleFilters<X, F> weight() const { return {K}; }
  int64_t weight_size() const { return weight().size(channels); }
};

template <class X, class F>
struct UpsampleBackwardScratch {
  using T = typename X::T;

  Arena arena;
  GradientStrip<X> gradient;
  T* g;  // [points^2][tiles][4 parts][K]
  T* x;  // [points^2][channel block][tiles][lanes]
  T* m;  // [points^2][channel block][tiles][lanes]
  T *out, *strip;

  UpsampleBackwardScratch(const ConvReLUPoolParams& whole, const UpsampleBackwardPlan<X, F>& plan,
                          void* base)
      : arena{static_cast<char*>(base)},
        gradient(arena, whole, plan.K, plan.K, 2 * F::kPoints, 2 * plan.tiles.width + 2, 1) {
    g = arena.take<T>(F::kPlanes * plan.g_plane);
    x = arena.take<T>(F::kPlanes * plan.x_plane);
    m = arena.take<T>(F::kPlanes * plan.m_plane);
    out = arena.take<T>(F::kHeld * plan.tiles.width * kFilterBlock<X>);
    strip = arena.take<T>(plan.tiles.strip_size());
  }
};

static int64_t upsample_backward_size(const ConvBackwardArgs& a) {
  return with_upsampling(*a.params, [&](auto x, auto f) -> int64_t {
    using X = decltype(x);
    return UpsampleBackwardPlan<X, decltype(f)>(*a.params).weight_size() *
           int64_t{sizeof(typename X::T)};
  });
}

static int64_t upsample_backward_pack_units(const ConvBackwardArgs& a) {
  return ceil_div(a.params->C, kFilterBlock<F32>);
}

// U from filter to channel.
static void upsample_backward_pack(const ConvBackwardArgs& a, int64_t unit_begin,
                                   int64_t unit_end) {
  with_upsampling(*a.params, [&](auto x, auto f) {
    using X = decltype(x);
    View4 turned = a.weight;
    turned.stride[0] = a.weight.stride[1];
    turned.stride[1] = a.weight.stride[0];
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      pack_upsample_filters<X, decltype(f), true>(turned, unit, a.params->C, a.params->K,
                                                  static_cast<typename X::T*>(a.packed_weight));
    }
  });
}

static int64_t upsample_backward_scratch(const ConvBackwardArgs& a) {
  return with_upsampling(*a.params, [&](auto x, auto f) -> int64_t {
    using X = decltype(x);
    using F = decltype(f);
    const UpsampleBackwardPlan<X, F> plan(*a.params);
    return UpsampleBackwardScratch<X, F>(*a.params, plan, nullptr).arena.used;
  });
}

static int64_t upsample_backward_units(const ConvBackwardArgs& a) {
  return with_upsampling(*a.params, [&](auto x, auto f) -> int64_t {
    return a.params->N * UpsampleTiles<decltype(x), decltype(f)>(*a.params).rows;
  });
}

// B' of both parities of 2 kPoints samples, odd ones first, with what they share added up.
template <class X, int kPoints>
[[gnu::always_inline]] static inline void upsample_input(
    const typename X::V (&d)[2 * kPoints], typename X::V (&o)[Upsampling<kPoints>::kProducts]) {
  using V = typename X::V;
  V even[kPoints], odd[kPoints], part[kPoints];
#pragma GCC unroll 8
  for (int i = 0; i < kPoints; i++) {
    even[i] = d[2 * i + 1];
    odd[i] = d[2 * i];
  }
  winograd_input<X>(even, part);
#pragma GCC unroll 8
  for (int i = 0; i < kPoints; i++) o[product_of<kPoints>(0, i)] = part[i];
  winograd_input<X>(odd, part);
  o[kPointOne] = X::add(o[kPointOne], part[kPointOne]);
#pragma GCC unroll 8
  for (int i = 0; i < kPoints; i++) {
    if (i != kPointOne) o[product_of<kPoints>(1, i)] = part[i];
  }
}

// The gradients of one tile and vector of filters, n of them, into the planes of g, parts `step`
// apart.
template <class X, int kPoints, bool kWhole>
[[gnu::noinline]] static void transform_upsampled(const typename X::T* from, int64_t row_step,
                                                  int64_t col_step, int n, typename X::T* g,
                                                  int64_t step, int64_t plane) {
  using V = typename X::V;
  constexpr int kProducts = Upsampling<kPoints>::kProducts;
  V half[2 * kPoints][kProducts];  // [column][product]
  for (int w = 0; w < 2 * kPoints; w++) {
    V column[2 * kPoints];
#pragma GCC unroll 16
    for (int h = 0; h < 2 * kPoints; h++) {
      const typename X::T* at = from + h * row_step + w * col_step;
      column[h] = kWhole ? X::load(at) : X::load(at, n);
    }
    upsample_input<X, kPoints>(column, half[w]);
  }
  for (int point = 0; point < kPoints; point++) {
    for (int part = 0; part < parts_of(point); part++) {
      V row[2 * kPoints], products[kProducts];
      const int product = product_of<kPoints>(part, point);
#pragma GCC unroll 16
      for (int w = 0; w < 2 * kPoints; w++) row[w] = half[w][product];
      upsample_input<X, kPoints>(row, products);
#pragma GCC unroll 8
      for (int column = 0; column < kPoints; column++) {
        for (int i = 0; i < parts_of(column); i++) {
          typename X::T* to =
              g + (point * kPoints + column) * plane + (part * parts_of(column) + i) * step;
          const V value = products[product_of<kPoints>(i, column)];
          if (kWhole) {
            X::store(to, value);
          } else {
            X::store(to, value, n);
          }
        }
      }
    }
  }
}

// Gradients of rows [row, row + rows) of tiles, transformed, and added to the bias's sums.
template <class X, class F>
static void transform_gradients(const ConvBackwardArgs& a, const UpsampleBackwardPlan<X, F>& plan,
                                const UpsampleBackwardScratch<X, F>& s, int64_t row, int64_t rows,
                                typename X::T* bias) {
  using T = typename X::T;
  const UpsampleTiles<X, F>& tiles = plan.tiles;
  const int64_t K = plan.K;
  for (int64_t i = 0; i < rows; i++) {
    const int64_t n = (row + i) / tiles.rows, h0 = (row + i) % tiles.rows * F::kHeld;
    const PlacedRows<T> at = s.gradient.rows(a, n, 0, 2 * h0 - 1, 2 * F::kPoints, -1);
    const int64_t own = 2 * min_of(F::kHeld, tiles.H - h0);
    for (int64_t r = 1; r <= own && bias; r++) {
      add_bias_gradient<X>(at.first + r * at.row, s.gradient.width, at.position, K, bias);
    }
    for (int64_t t = 0; t < tiles.columns; t++) {
      const T* from = at.first + t * 2 * F::kHeld * at.position;
      T* to = s.g + (i * tiles.columns + t) * 4 * K;
      for (int64_t k = 0; k < K; k += X::kLanes) {
        const int left = static_cast<int>(min_of(X::kLanes, K - k));
        if (left == X::kLanes) {
          transform_upsampled<X, F::kPoints, true>(from + k, at.row, at.position, left, to + k, K,
                                                   plan.g_plane);
        } else {
          transform_upsampled<X, F::kPoints, false>(from + k, at.row, at.position, left, to + k, K,
                                                    plan.g_plane);
        }
      }
    }
  }
}

// Transforms x in rows [row, row + rows) of tiles.
template <class X, class F>
static void transform_samples(const ConvBackwardArgs& a, const UpsampleBackwardPlan<X, F>& plan,
                              const UpsampleBackwardScratch<X, F>& s, int64_t row, int64_t rows) {
  const UpsampleTiles<X, F>& tiles = plan.tiles;
  for (int64_t i = 0; i < rows; i++) {
    const auto put = [&](int64_t t, int64_t c) {
      const int64_t c0 = c / kFilterBlock<X> * kFilterBlock<X>;
      const int64_t lanes = min_of(kFilterBlock<X>, plan.channels - c0);
      return s.x + c0 * rows * tiles.columns + (i * tiles.columns + t) * lanes + c - c0;
    };
    tiles.transform_row(a.x, row + i, s.strip, put, plan.x_plane);
  }
}

// The products of all points of so many tiles: for x's gradient, and the sums for the weight's,
// which begin with them or are added to.
template <class X, class F>
static void multiply_gradients(const ConvBackwardArgs& a, const UpsampleBackwardPlan<X, F>& plan,
                               const UpsampleBackwardScratch<X, F>& s, int64_t tiles, bool add,
                               typename X::T* sums) {
  using T = typename X::T;
  const auto* filters = static_cast<const T*>(a.packed_weight);
  for (int point = 0; point < F::kPoints; point++) {
    for (int column = 0; column < F::kPoints; column++) {
      const int64_t plane = point * F::kPoints + column, K = plan.K;
      const int64_t terms = parts_of(point) * parts_of(column) * K;
      const T* g = s.g + plane * plan.g_plane;
      for_each_block<X>(plan.channels, [&](auto vectors, int64_t c0) {
        constexpr int NV = decltype(vectors)::kValue;
        const int64_t at = plan.weight().block(c0) + plane * plan.weight().plane(NV * X::kLanes);
        if (a.grad_x.data) {
          multiply_plane<X, NV>({1, 0, 1, 0, terms, 0, 4 * K}, g, filters + at, tiles, false,
                                s.m + plane * plan.m_plane + c0 * tiles);
        }
        if (sums) {
          multiply_plane<X, NV>({1, 0, 1, 0, tiles, 0, 1, 4 * K}, g,
                                s.x + plane * plan.x_plane + c0 * tiles, terms, add, sums + at);
        }
      });
    }
  }
}

// x's gradient in rows [row, row + rows) of tiles, from the products.
template <class X, class F>
static void finish_gradient_x(const ConvBackwardArgs& a, const UpsampleBackwardPlan<X, F>& plan,
                              const UpsampleBackwardScratch<X, F>& s, int64_t row, int64_t rows) {
  using T = typename X::T;
  constexpr int kHeld = F::kHeld;
  const UpsampleTiles<X, F>& tiles = plan.tiles;
  for_each_block<X>(plan.channels, [&](auto vectors, int64_t c0) {
    constexpr int NV = decltype(vectors)::kValue;
    constexpr int64_t lanes = NV * X::kLanes;
    const int64_t valid = min_of(lanes, plan.C - c0);
    const bool to_x = writes_to<X>(a.grad_x, lanes, valid);
    const int64_t row_step = to_x ? a.grad_x.stride[2] : tiles.width * lanes;
    const int64_t col_step = to_x ? a.grad_x.stride[3] : lanes;
    const T* m = s.m + c0 * rows * tiles.columns;
    for (int64_t i = 0; i < rows; i++) {
      const int64_t n = (row + i) / tiles.rows, h0 = (row + i) % tiles.rows * kHeld;
      const int64_t count = min_of(kHeld, tiles.H - h0);
      T* out = to_x ? at<T>(a.grad_x, n, c0, h0, 0) : s.out;
      for (int64_t t = 0; t < tiles.columns; t++, m += lanes) {
        const int64_t w0 = t * kHeld;
        for (int v = 0; v < NV; v++) {
          typename X::V o[kHeld][kHeld];
          transform_output<X, F::kPoints>(m + v * X::kLanes, plan.m_plane, o);
          T* to = out + w0 * col_step + v * X::kLanes;
          for_each_output<kHeld, kHeld>(
              count, min_of(kHeld, tiles.W - w0),
              [&](int64_t r, int64_t j) { X::store(to + r * row_step + j * col_step, o[r][j]); });
        }
      }
      for (int64_t r = 0; r < count && !to_x; r++) {
        write_matrix<X>(s.out + r * row_step, lanes, a.grad_x.dtype, at(a.grad_x, n, c0, h0 + r, 0),
                        a.grad_x.stride[3], a.grad_x.stride[1], tiles.W, valid);
      }
    }
  });
}

static void upsample_backward(const ConvBackwardArgs& a, int64_t begin, int64_t end, int64_t slot,
                              void* base) {
  with_upsampling(*a.params, [&](auto x, auto f) {
    using X = decltype(x);
    using F = decltype(f);
    using T = typename X::T;
    const UpsampleBackwardPlan<X, F> plan(*a.params);
    const UpsampleBackwardScratch<X, F> s(*a.params, plan, base);
    T* bias = a.partial_bias ? static_cast<T*>(a.partial_bias) + slot * plan.K : nullptr;
    if (bias) fill_zero(bias, plan.K);
    T* sums =
        a.partial_weight ? static_cast<T*>(a.partial_weight) + slot * plan.weight_size() : nullptr;
    const int64_t step = even_share(end - begin, plan.batch_rows);
    for (int64_t row = begin; row < end; row += step) {
      const int64_t rows = min_of(step, end - row);
      transform_gradients<X, F>(a, plan, s, row, rows, bias);
      if (sums) transform_samples<X, F>(a, plan, s, row, rows);
      multiply_gradients<X, F>(a, plan, s, rows * plan.tiles.columns, row > begin, sums);
      if (a.grad_x.data) finish_gradient_x<X, F>(a, plan, s, row, rows);
    }
  });
}

// Of a vector of channels: what the sums of one parity, at `sums` for its part of each point, give
// its two taps a dimension.
template <class X, int kPoints>
static void add_parity_taps(const typename X::T* sums, int64_t slots, int64_t slot_size,
                            int64_t plane, int64_t part_step, int parity,
                            typename X::V (&taps)[3][3]) {
  typename X::V o[2][2];
  transform_square<X, kPoints>(
      [&](int h, int w) {
        // What parities share is a gradient at w0 + w1 + w2: even's, and not odd's as well.
        const bool odd_h = parity / 2 == 1, odd_w = parity % 2 == 1;
        if ((odd_h && h == kPointOne) || (odd_w && w == kPointOne)) return X::zero();
        const int part = part_of(odd_h, h) * parts_of(w) + part_of(odd_w, w);
        const typename X::T* from = sums + (h * kPoints + w) * plane + part * part_step;
        auto sum = X::load(from);
        for (int64_t slot = 1; slot < slots; slot++) {
          sum = X::add(sum, X::load(from + slot * slot_size));
        }
        return sum;
      },
      winograd_output<X, kPoints, 2>, o);
  // Taps up to the parity are those of the sample before.
  for (int r = 0; r < 3; r++) {
    for (int t = 0; t < 3; t++) {
      const int before_h = r <= parity / 2, before_w = t <= parity % 2;
      taps[r][t] = X::add(taps[r][t], o[before_h][before_w]);
    }
  }
}

// Of filters [k_begin, k_end); and all of the bias's gradient with the first of them.
static void upsample_backward_reduce(const ConvBackwardArgs& a, int64_t slots, int64_t k_begin,
                                     int64_t k_end) {
  with_upsampling(*a.params, [&](auto x, auto f) {
    using X = decltype(x);
    using F = decltype(f);
    using T = typename X::T;
    const UpsampleBackwardPlan<X, F> plan(*a.params);
    if (k_begin == 0) reduce_bias_gradient<X>(a, slots);
    if (!a.partial_weight) return;
    const int64_t* stride = a.grad_weight.stride;
    for_each_block<X>(plan.channels, [&](auto vectors, int64_t c0) {
      constexpr int64_t lanes = decltype(vectors)::kValue * X::kLanes;
      const T* block = static_cast<const T*>(a.partial_weight) + plan.weight().block(c0);
      for (int64_t k = k_begin; k < k_end; k++) {
        for (int64_t c = 0; c < min_of(lanes, plan.C - c0); c += X::kLanes) {
          typename X::V taps[3][3];
          for (auto& row : taps) row[0] = row[1] = row[2] = X::zero();
          for (int parity = 0; parity < 4; parity++) {
            add_parity_taps<X, F::kPoints>(block + k * lanes + c, slots, plan.weight_size(),
                                           plan.weight().plane(lanes), plan.K * lanes, parity,
                                           taps);
          }
          T rows[9 * X::kLanes];
          for (int i = 0; i < 9; i++) X::store(rows + i * X::kLanes, taps[i / 3][i % 3]);
          for (int r = 0; r < 3; r++) {
            write_matrix<X>(rows + 3 * r * X::kLanes, X::kLanes, a.grad_weight.dtype,
                            at(a.grad_weight, k, c0 + c, r, 0), stride[3], stride[1], 3,
                            min_of(X::kLanes, plan.C - c0 - c));
          }
        }
      }
    });
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
