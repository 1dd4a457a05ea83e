// Elementary functions and activations over vectors.
//
// float: exp by range reduction x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor polynomial of
// degree 7 (relative error below 1e-8 before rounding); tanh near 0 by the rational-free odd
// polynomial of Cephes (S. Moshier); erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).
// double serves gradient checks, and takes libm's lane by lane.
#pragma once

#include <cmath>

#include "../conv_relu_pool.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X, class Function>
static inline typename X::V by_lane(typename X::V a, Function function) {
  typename X::T lanes[X::kLanes];
  X::store(lanes, a);
  for (auto& lane : lanes) lane = function(lane);
  return X::load(lanes);
}

static inline F32::V exp_of(F32, F32::V x) {
  using X = F32;
  x = X::max(X::set1(-104.0f), X::min(X::set1(89.0f), x));  // NaN passes: it stands second
  const X::V n = X::round(X::mul(x, X::set1(1.44269504f)));
  X::V r = X::fma(n, X::set1(-0.693145752f), x);
  r = X::fma(n, X::set1(-1.42860677e-6f), r);
  static constexpr float kTaylor[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6,
                                      0.5f,       1.0f,       1.0f};
  X::V p = X::set1(1.0f / 5040);
  for (float c : kTaylor) p = X::fma(p, r, X::set1(c));
  return X::scale2(p, n);
}

static inline F64::V exp_of(F64, F64::V x) {
  return by_lane<F64>(x, [](double a) { return std::exp(a); });
}

static inline F32::V tanh_of(F32, F32::V x) {
  using X = F32;
  const X::V magnitude = X::abs(x);
  const X::V e = exp_of(X{}, X::mul(X::set1(-2.0f), magnitude));
  const X::V far = X::copy_sign(X::div(X::sub(X::set1(1.0f), e), X::add(X::set1(1.0f), e)), x);
  const X::V z = X::mul(x, x);
  static constexpr float kCephes[] = {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                                      -3.33332819422e-1f};
  X::V p = X::set1(-5.70498872745e-3f);
  for (float c : kCephes) p = X::fma(p, z, X::set1(c));
  const X::V near = X::fma(X::mul(p, z), x, x);
  return X::blend(X::gt(X::set1(0.625f), magnitude), near, far);
}

static inline F64::V tanh_of(F64, F64::V x) {
  return by_lane<F64>(x, [](double a) { return std::tanh(a); });
}

static inline F32::V erf_of(F32, F32::V x) {
  using X = F32;
  const X::V magnitude = X::abs(x);
  const X::V one = X::set1(1.0f);
  const X::V t = X::div(one, X::fma(X::set1(0.3275911f), magnitude, one));
  static constexpr float kStegun[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  X::V p = X::set1(1.061405429f);
  for (float c : kStegun) p = X::fma(p, t, X::set1(c));
  const X::V tail = X::mul(X::mul(p, t), exp_of(X{}, X::mul(X::set1(-1.0f), X::mul(x, x))));
  return X::copy_sign(X::sub(one, tail), x);
}

static inline F64::V erf_of(F64, F64::V x) {
  return by_lane<F64>(x, [](double a) { return std::erf(a); });
}

template <class X>
static inline typename X::V sigmoid_of(typename X::V x) {
  const auto one = X::set1(1);
  return X::div(one, X::add(one, exp_of(X{}, X::sub(X::zero(), x))));
}

template <class X>
[[gnu::noinline]] static typename X::V activate_smooth(Activation activation, typename X::V v) {
  switch (activation) {
    case Activation::kSigmoid:
      return sigmoid_of<X>(v);
    case Activation::kTanh:
      return tanh_of(X{}, v);
    case Activation::kGELU: {
      const auto half = X::mul(X::set1(0.5), v);
      return X::fma(half, erf_of(X{}, X::mul(v, X::set1(0.70710678118654752))), half);
    }
    case Activation::kSiLU:
      return X::mul(v, sigmoid_of<X>(v));
    default:
      return v;
  }
}

// ReLU and leaky ReLU keep NaN: X::max gives its second operand back, and a comparison with NaN is
// false.
template <class X>
[[gnu::always_inline]] static inline typename X::V activate(Activation activation,
                                                            typename X::V v) {
  if (activation == Activation::kReLU) return X::max(X::zero(), v);
  if (activation == Activation::kNone) return v;
  if (activation == Activation::kLeakyReLU) {
    return X::blend(X::gt(X::zero(), v), X::mul(v, X::set1(kLeakyReLUSlope)), v);
  }
  return activate_smooth<X>(activation, v);
}

}  // namespace imgfast::cpu::IMGFAST_ISA
