// conv_relu_pool of a few filters of many channels without a pool, as the last layer of a decoder
// has: forward and both gradients. The other kernels have filters in the lanes, of which one to
// four would leave most empty. Here they are channels:
//
//   forward           y[k] = sum over the lanes of (sum over taps of x[tap] w[k][tap])
//   input gradient    a convolution of the few gradients with the filters turned around, of which
//                     there are as many as x has channels
//   weight gradient   dw[k][tap] = sum over positions of dy[k] x[tap]
//
// All read strips, a few rows of one image. A unit is a row, counted through all images; of the
// forward pass unit_rows rows.
#pragma once

#include "conv_gradient_strip-inl.h"
#include "conv_pool-inl.h"
#include "winograd-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// A strip of x and filters in vectors of channels.
template <class X>
struct FewFilters {
  using T = typename X::T;
  static constexpr int64_t kStripBytes = 24 * 1024;  // to stay in L1
  static constexpr int kSums = 2 * X::kTileCols;     // that stay in registers

  int64_t channels;     // rounded up to whole vectors
  int64_t width, rows;  // columns of a strip, and output rows that are made of one

  FewFilters(const ConvReLUPoolParams& p, int64_t most_rows)
      : channels(round_up(p.C, X::kLanes)), width(p.Q + p.S - 1) {
    const int64_t bytes = width * channels * static_cast<int64_t>(sizeof(T));
    rows = max_of(1, min_of(most_rows, kStripBytes / bytes - (p.R - 1)));
  }

  int64_t strip_size(const ConvReLUPoolParams& p) const {
    return (rows + p.R - 1) * width * channels;
  }
  int64_t filter_size(const ConvReLUPoolParams& p) const { return p.R * p.S * channels; }

  void stage(const ConvReLUPoolParams& p, const View4& x, int64_t n, int64_t row, int64_t count,
             T* strip) const {
    stage_strip<X>(x, p.H, p.W, n, 0, p.C, row - p.padding_h, count + p.R - 1, -p.padding_w, width,
                   channels, strip);
  }
};

// --- forward -----------------------------------------------------------------------------------

template <class X>
struct FewForward : FewFilters<X> {
  using T = typename X::T;
  int64_t parts;  // of an image
  Arena arena;
  T *const strip, *const row;  // row: [Q][K]

  FewForward(const ConvForwardArgs& a, void* scratch)
      : FewFilters<X>(*a.params, a.unit_rows),
        parts(ceil_div(a.params->P, a.unit_rows)),
        arena{static_cast<char*>(scratch)},
        strip(arena.take<T>(this->strip_size(*a.params))),
        row(arena.take<T>(a.params->Q * a.params->K)) {}
};

static int64_t few_forward_pack_size(const ConvForwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    const ConvReLUPoolParams& p = *a.params;
    const int64_t filter = FewFilters<decltype(x)>(p, 1).filter_size(p);
    return p.K * (filter + 1) * static_cast<int64_t>(sizeof(typename decltype(x)::T));
  });
}

static int64_t few_forward_scratch(const ConvForwardArgs& a) {
  return with_compute(a.x.dtype,
                      [&](auto x) { return FewForward<decltype(x)>(a, nullptr).arena.used; });
}

static int64_t few_forward_units(const ConvForwardArgs& a) {
  return a.params->N * ceil_div(a.params->P, a.unit_rows);
}

// [K][R][S][channels], then the bias.
static void few_forward_pack(const ConvForwardArgs& a) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ConvReLUPoolParams& p = *a.params;
    const FewFilters<X> few(p, 1);
    auto* out = static_cast<typename X::T*>(a.packed_weight);
    fill_zero(out, p.K * (few.filter_size(p) + 1));
    for (int64_t k = 0; k < p.K; k++) {
      for (int64_t r = 0; r < p.R; r++, out += p.S * few.channels) {
        read_matrix<X>(a.weight.dtype, at(a.weight, k, 0, r, 0), a.weight.stride[3],
                       a.weight.stride[1], out, few.channels, p.S, p.C);
      }
    }
    pack_bias<X>(a, 0, p.K, out);
  });
}

// Neighbouring outputs of one filter, `step` apart.
template <class X, int kColumns>
[[gnu::noinline]] static void few_forward_tile(const ConvReLUPoolParams& p, const typename X::T* in,
                                               const typename X::T* weight, int64_t channels,
                                               int64_t width, typename X::T bias,
                                               typename X::T* out, int64_t step) {
  typename X::V sums[kColumns];
#pragma GCC unroll 24
  for (auto& sum : sums) sum = X::zero();
  for (int64_t r = 0; r < p.R; r++, in += width * channels) {
    const typename X::T* from = in;
    for (int64_t i = 0; i < p.S * channels; i += X::kLanes, from += X::kLanes) {
      const auto w = X::load(weight + i);
#pragma GCC unroll 24
      for (int j = 0; j < kColumns; j++) sums[j] = X::fma(w, X::load(from + j * channels), sums[j]);
    }
    weight += p.S * channels;
  }
#pragma GCC unroll 24
  for (int j = 0; j < kColumns; j++) out[j * step] = X::sum(sums[j]) + bias;
}

static void few_forward(const ConvForwardArgs& a, int64_t unit_begin, int64_t unit_end,
                        void* scratch) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    using T = typename X::T;
    const ConvReLUPoolParams& p = *a.params;
    const FewForward<X> few(a, scratch);
    const int64_t channels = few.channels, filter = few.filter_size(p);
    const auto* weight = static_cast<const T*>(a.packed_weight);
    const auto* bias = weight + p.K * filter;
    const int64_t tiles = ceil_div(p.Q, few.kSums);
    for (int64_t unit = unit_begin; unit < unit_end; unit++) {
      const int64_t n = unit / few.parts, begin = unit % few.parts * a.unit_rows;
      const int64_t end = min_of(begin + a.unit_rows, p.P);
      for (int64_t row = begin; row < end; row++) {
        if ((row - begin) % few.rows == 0)
          few.stage(p, a.x, n, row, min_of(few.rows, end - row), few.strip);
        const T* in = few.strip + (row - begin) % few.rows * few.width * channels;
        for (int64_t k = 0; k < p.K; k++) {
          for (int64_t t = 0; t < tiles; t++) {  // as even as can be
            const int64_t q = p.Q * t / tiles, columns = p.Q * (t + 1) / tiles - q;
            const auto tile = with_count<FewFilters<X>::kSums>(
                columns, [](auto count) { return few_forward_tile<X, decltype(count)::kValue>; });
            tile(p, in + q * channels, weight + k * filter, channels, few.width, bias[k],
                 few.row + q * p.K + k, p.K);
          }
        }
        for (int64_t i = 0; i < p.Q * p.K && p.activation != Activation::kNone; i += X::kLanes) {
          const int left = static_cast<int>(min_of(X::kLanes, p.Q * p.K - i));
          X::store(few.row + i, activate<X>(p.activation, X::load(few.row + i, left)), left);
        }
        write_matrix<X>(few.row, p.K, a.y.dtype, at(a.y, n, 0, row, 0), a.y.stride[3],
                        a.y.stride[1], p.Q, p.K);
      }
    }
  });
}

// --- input gradient ----------------------------------------------------------------------------

template <class X>
struct FewInput {
  using T = typename X::T;
  static constexpr int64_t kRows = 4;  // of grad_x that are made of one strip

  int64_t filters, width;  // C rounded up to whole vectors, columns of a strip
  Arena arena;
  GradientStrip<X> gradient;
  T* const row;  // [W][filters of a block]

  FewInput(const ConvReLUPoolParams& p, void* scratch)
      : filters(round_up(p.C, X::kLanes)),
        width(p.W + p.S - 1),
        arena{static_cast<char*>(scratch)},
        gradient(arena, p, p.K, p.K, kRows + p.R - 1, max_of(width, p.Q), 1),
        row(arena.take<T>(p.W * kFilterBlock<X>)) {}
};

static int64_t few_input_pack_size(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    const ConvReLUPoolParams& p = *a.params;
    return FewInput<decltype(x)>(p, nullptr).filters * p.R * p.S * p.K *
           static_cast<int64_t>(sizeof(typename decltype(x)::T));
  });
}

static int64_t few_input_scratch(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype,
                      [&](auto x) { return FewInput<decltype(x)>(*a.params, nullptr).arena.used; });
}

static int64_t few_input_units(const ConvBackwardArgs& a) { return a.params->N * a.params->H; }

// The filters turned around, from filter to channel: [block of channels][R][S][K][lanes].
static void few_input_pack(const ConvBackwardArgs& a) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ConvReLUPoolParams& p = *a.params;
    const int64_t* stride = a.weight.stride;
    auto* out = static_cast<typename X::T*>(a.packed_weight);
    for_each_block<X>(FewInput<X>(p, nullptr).filters, [&](auto vectors, int64_t c0) {
      const int64_t lanes = decltype(vectors)::kValue * X::kLanes;
      const View4 turned = {at(a.weight, 0, c0, p.R - 1, p.S - 1),
                            {stride[1], stride[0], -stride[2], -stride[3]},
                            a.weight.dtype};
      pack_filters<X>(p.R, p.S, turned, p.K, min_of(lanes, p.C - c0), lanes, out);
      out += p.R * p.S * p.K * lanes;
    });
  });
}

template <class X, int NV, int TC>
[[gnu::noinline]] static void few_input_tile(const Reduction& reduction, const typename X::T* in,
                                             const typename X::T* weight, typename X::T* out,
                                             int64_t step) {
  Tile<X, NV, 1, TC> tile;
  convolve_tile<false>(reduction, in, weight, tile);
  tile.for_each([&](auto& sum, int i) { X::store(out + i / NV * step + i % NV * X::kLanes, sum); });
}

static void few_input(const ConvBackwardArgs& a, int64_t unit_begin, int64_t unit_end,
                      void* scratch) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    using T = typename X::T;
    const ConvReLUPoolParams& p = *a.params;
    const FewInput<X> few(p, scratch);
    const int64_t line = few.gradient.width * p.K;
    const Reduction reduction{.rows = p.R,
                              .row_step = line,
                              .segments = 1,
                              .segment_step = 0,
                              .length = p.S * p.K,
                              .out_row_step = line,
                              .col_step = p.K};
    const int64_t tiles = ceil_div(p.W, X::kTileCols);
    for (int64_t unit = unit_begin; unit < unit_end;) {
      const int64_t n = unit / p.H, h0 = unit % p.H;
      const int64_t rows = min_of(min_of(few.kRows, p.H - h0), unit_end - unit);
      few.gradient.expand(a, n, 0, h0 + p.padding_h - (p.R - 1), rows + p.R - 1,
                          p.padding_w - (p.S - 1));
      for (int64_t i = 0; i < rows; i++) {
        const T* weight = static_cast<const T*>(a.packed_weight);
        for_each_block<X>(few.filters, [&](auto vectors, int64_t c0) {
          constexpr int NV = decltype(vectors)::kValue;
          constexpr int64_t lanes = NV * X::kLanes;
          const int64_t valid = min_of(lanes, p.C - c0);
          const bool to_x = writes_to<X>(a.grad_x, lanes, valid);
          T* const out = to_x ? at<T>(a.grad_x, n, c0, h0 + i, 0) : few.row;
          const int64_t step = to_x ? a.grad_x.stride[3] : lanes;
          for (int64_t t = 0; t < tiles; t++) {  // as even as can be
            const int64_t w = p.W * t / tiles, columns = p.W * (t + 1) / tiles - w;
            const auto tile = with_count<X::kTileCols>(
                columns, [](auto count) { return few_input_tile<X, NV, decltype(count)::kValue>; });
            tile(reduction, few.gradient.strip + i * line + w * p.K, weight, out + w * step, step);
          }
          if (!to_x) {
            write_matrix<X>(few.row, lanes, a.grad_x.dtype, at(a.grad_x, n, c0, h0 + i, 0),
                            a.grad_x.stride[3], a.grad_x.stride[1], p.W, valid);
          }
          weight += p.R * p.S * p.K * lanes;
        });
      }
      unit += rows;
    }
  });
}

// --- weight gradient ---------------------------------------------------------------------------

template <class X>
struct FewWeight : FewFilters<X> {
  using T = typename X::T;
  static constexpr int64_t kMostRows = 8;
  Arena arena;
  GradientRows<X> gradient;
  T* const strip;
  int64_t* const offset;  // of each tap

  FewWeight(const ConvReLUPoolParams& p, void* scratch)
      : FewFilters<X>(p, min_of(kMostRows, p.P)),
        arena{static_cast<char*>(scratch)},
        gradient(arena, p, p.K, this->rows),
        strip(arena.take<T>(this->strip_size(p))),
        offset(arena.take<int64_t>(p.R * p.S)) {}
};

static int64_t few_weight_partial_size(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    const ConvReLUPoolParams& p = *a.params;
    return p.K * FewFilters<decltype(x)>(p, 1).filter_size(p) *
           static_cast<int64_t>(sizeof(typename decltype(x)::T));
  });
}

static int64_t few_weight_scratch(const ConvBackwardArgs& a) {
  return with_compute(
      a.x.dtype, [&](auto x) { return FewWeight<decltype(x)>(*a.params, nullptr).arena.used; });
}

// Sums of one filter and vector of channels at kTaps taps, over rows x Q positions.
template <class X, int kTaps>
[[gnu::noinline]] static void few_weight_tile(const typename X::T* x, int64_t x_row,
                                              const int64_t* offset, int64_t channels,
                                              const typename X::T* grad, int64_t K, int64_t rows,
                                              int64_t Q, typename X::T* sums) {
  typename X::V sum[kTaps];
#pragma GCC unroll 24
  for (int t = 0; t < kTaps; t++) sum[t] = X::load(sums + t * channels);
  for (int64_t row = 0; row < rows; row++, x += x_row) {
    const typename X::T* from[kTaps];
#pragma GCC unroll 24
    for (int t = 0; t < kTaps; t++) from[t] = x + offset[t];
    for (int64_t i = 0; i < Q * channels; i += channels, grad += K) {
      const auto g = X::set1(*grad);
#pragma GCC unroll 24
      for (int t = 0; t < kTaps; t++) sum[t] = X::fma(g, X::load(from[t] + i), sum[t]);
    }
  }
#pragma GCC unroll 24
  for (int t = 0; t < kTaps; t++) X::store(sums + t * channels, sum[t]);
}

static void few_weight(const ConvBackwardArgs& a, int64_t row_begin, int64_t row_end, int64_t slot,
                       void* scratch) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    using T = typename X::T;
    constexpr int kMostTaps = 9;  // whose places and sums stay in registers
    const ConvReLUPoolParams& p = *a.params;
    const FewWeight<X> few(p, scratch);
    const int64_t channels = few.channels, line = few.width * channels, taps = p.R * p.S;
    T* const weight = a.partial_weight
                          ? static_cast<T*>(a.partial_weight) + slot * p.K * few.filter_size(p)
                          : nullptr;
    T* const bias = a.partial_bias ? static_cast<T*>(a.partial_bias) + slot * p.K : nullptr;
    for (int64_t t = 0; t < taps; t++) few.offset[t] = t / p.S * line + t % p.S * channels;
    const int64_t passes = ceil_div(taps, kMostTaps);
    for (int64_t row = row_begin; row < row_end;) {
      const int64_t n = row / p.P, p0 = row % p.P;
      const int64_t rows = min_of(min_of(few.rows, p.P - p0), row_end - row);
      row += rows;
      few.gradient.stage(a, n, 0, p0, p0 + rows);
      if (bias) add_bias_gradient<X>(few.gradient.grad, rows * p.Q, p.K, p.K, bias);
      if (!weight) continue;
      few.stage(p, a.x, n, p0, rows, few.strip);
      for (int64_t k = 0; k < p.K; k++) {
        T* const sums = weight + k * few.filter_size(p);
        for (int64_t c = 0; c < channels; c += X::kLanes) {
          for (int64_t pass = 0; pass < passes; pass++) {
            const int64_t t = taps * pass / passes, count = taps * (pass + 1) / passes - t;
            const auto tile = with_count<kMostTaps>(
                count, [](auto n) { return few_weight_tile<X, decltype(n)::kValue>; });
            tile(few.strip + c, line, few.offset + t, channels, few.gradient.grad + k, p.K, rows,
                 p.Q, sums + t * channels + c);
          }
        }
      }
    }
  });
}

static void few_weight_reduce(const ConvBackwardArgs& a, int64_t slots) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    using T = typename X::T;
    const ConvReLUPoolParams& p = *a.params;
    const FewFilters<X> few(p, 1);
    if (T* sums = static_cast<T*>(a.partial_weight)) {
      add_slots<X>(sums, p.K * few.filter_size(p), slots);
      for (int64_t k = 0; k < p.K; k++) {
        for (int64_t r = 0; r < p.R; r++, sums += p.S * few.channels) {
          write_matrix<X>(sums, few.channels, a.grad_weight.dtype, at(a.grad_weight, k, 0, r, 0),
                          a.grad_weight.stride[3], a.grad_weight.stride[1], p.S, p.C);
        }
      }
    }
    reduce_bias_gradient<X>(a, slots);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
