// What becomes of convolution sums: pool, bias, activation and code, a vector of filters at a time.
#pragma once

#include "conv_rows-inl.h"
#include "math-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// One pooled row of one block of filters: where results go, and what becomes of a pooled vector.
template <class X>
struct RowSink {
  using V = typename X::V;
  typename X::T* row;  // [PW][filters of the block], columns `lanes` apart
  uint8_t* codes;      // [PW][K] at the block's first filter, or null
  int64_t code_step, lanes, valid;
  const typename X::T* bias;  // [lanes]
  Activation activation;
  bool activate_first;

  V activated(V sum, int v) const {
    return activate<X>(activation, X::add(sum, X::load(bias + v * X::kLanes)));
  }

  void put(int64_t pw, int v, V value, V code) const {
    if (!activate_first) {
      const V argument = X::add(value, X::load(bias + v * X::kLanes));
      value = activate<X>(activation, argument);
      code = X::blend(X::ge(X::zero(), argument), X::add(code, X::set1(kBlocked)), code);
    }
    X::store(row + pw * lanes + v * X::kLanes, value);
    const int64_t left = valid - v * X::kLanes;
    if (codes && left > 0) {
      uint8_t* to = codes + pw * code_step + v * X::kLanes;
      if (left >= X::kLanes) {
        X::store(to, code);
      } else {
        X::store(to, code, static_cast<int>(left));
      }
    }
  }
};

// The tie rule, once: a later position wins only if it is greater or NaN. At equal values the first
// stays.
template <class X>
static inline void take_max(typename X::V& value, typename X::V& code, typename X::V candidate,
                            int position) {
  const auto wins = X::either(X::gt(candidate, value), X::is_nan(candidate));
  value = X::blend(wins, candidate, value);
  code = X::blend(wins, X::set1(static_cast<typename X::T>(position)), code);
}

// One term of an average, and its bit of the code.
template <class X>
static inline void take_avg(typename X::V& value, typename X::V& code, typename X::V term,
                            int position) {
  value = X::add(value, term);
  const auto bit =
      X::set1(static_cast<typename X::T>(position < kMaxAvgWindow ? 1 << position : 0));
  code = X::add(code, X::blend(X::ge(X::zero(), term), X::zero(), bit));
}

// A 2 x 2 window whose four sums, row by row, are in registers.
template <class X>
[[gnu::always_inline]] static inline void pool_window(Pool pool, const RowSink<X>& sink,
                                                      typename X::V (&s)[4], int64_t pw, int v) {
  if (sink.activate_first) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) s[i] = sink.activated(s[i], v);
  }
  auto value = s[0], code = X::zero();
  if (pool == Pool::kMax) {
#pragma GCC unroll 4
    for (int i = 1; i < 4; i++) take_max<X>(value, code, s[i], i);
  } else {
    value = X::zero();
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) take_avg<X>(value, code, s[i], i);
    value = X::mul(value, X::set1(0.25));
  }
  sink.put(pw, v, value, code);
}

// Pools one row of windows from convolution rows [slots][Q][NV vectors], of which row h lies in
// slot h % slots.
template <class X, int NV>
static void pool_row(const ConvReLUPoolParams& p, const typename X::T* ring, int64_t slots,
                     int64_t ph, const RowSink<X>& sink) {
  const int64_t lanes = NV * X::kLanes, ring_row = p.Q * lanes;
  const int64_t h0 = ph * p.pool_stride_h - p.pool_padding_h;
  for (int64_t pw = 0; pw < p.PW; pw++) {
    const int64_t w0 = pw * p.pool_stride_w - p.pool_padding_w;
    typename X::V value[NV], code[NV];
    bool empty = true;
    for (int v = 0; v < NV; v++) value[v] = code[v] = X::zero();
    for (int64_t i = 0; i < p.pool_h; i++) {
      const int64_t h = h0 + i * p.pool_dilation_h;
      if (h < 0 || h >= p.P) continue;
      for (int64_t j = 0; j < p.pool_w; j++) {
        const int64_t w = w0 + j * p.pool_dilation_w;
        if (w < 0 || w >= p.Q) continue;
        const typename X::T* at = ring + h % slots * ring_row + w * lanes;
        const int position = static_cast<int>(i * p.pool_w + j);
        for (int v = 0; v < NV; v++) {
          const auto candidate = X::load(at + v * X::kLanes);
          if (p.pool == Pool::kAvg) {
            take_avg<X>(value[v], code[v], candidate, position);
          } else if (empty) {
            value[v] = candidate;
            code[v] = X::set1(static_cast<typename X::T>(position));
          } else {
            take_max<X>(value[v], code[v], candidate, position);
          }
        }
        empty = false;
      }
    }
    if (p.pool == Pool::kAvg) {
      const auto scale = X::set1(static_cast<typename X::T>(1.0 / avg_divisor(p, h0, w0)));
      for (int v = 0; v < NV; v++) value[v] = X::mul(value[v], scale);
    }
    for (int v = 0; v < NV; v++) sink.put(pw, v, value[v], code[v]);
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
