// The terms of cross_entropy: exponentials and logarithms, the constants of a call, and the running
// normaliser.
//
// Infinities and NaN need no branch. A maximum of -inf stands for "nothing yet": differences are
// then taken to 0, so that -inf counts nothing and NaN still arrives in the sum. A row of only -inf
// keeps m = -inf, and x - m is NaN, as in PyTorch.
#pragma once

#include "cross_entropy.h"
#include "math-inl.h"
#include "matrix-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

enum class Targets { kIndex, kSmoothedIndex, kProbability };

// exp(d) for d <= 0, -inf and NaN, a third cheaper than exp_of: 2^f over |f| <= 1/2 by a minimax
// polynomial of degree 6 with p(0) = 1 (relative error 1.6e-8 before rounding), f = d log2(e) - n
// from one fused multiplication.
static inline F32::V exp_of_difference(F32, F32::V d) {
  using X = F32;
  const X::V log2e = X::set1(1.44269504f),
             magic = X::set1(12582912.0f);  // 1.5 * 2^23: its last place is 1
  d = X::max(X::set1(-104.0f), d);          // NaN passes: it stands second
  const X::V n = X::sub(X::fma(d, log2e, magic), magic);
  const X::V f = X::fma(d, log2e, X::sub(X::zero(), n));
  static constexpr float kMinimax[] = {1.33988750e-3f, 9.61843692e-3f, 5.55033237e-2f,
                                       2.40226477e-1f, 6.93147182e-1f, 1.0f};
  X::V p = X::set1(1.53533620e-4f);
  for (float c : kMinimax) p = X::fma(p, f, X::set1(c));
  return X::scale2(p, n);
}

static inline F64::V exp_of_difference(F64, F64::V d) { return exp_of(F64{}, d); }

// log(a) for a >= 1, 0 and NaN, which is all that a sum of exponentials can be whose largest term
// is 1; polynomial of Cephes (S. Moshier).
static inline F32::V log_of_sum(F32, F32::V a) {
  using X = F32;
  typedef uint32_t Bits __attribute__((vector_size(sizeof(X::V))));  // wraps, whatever a may be
  typedef int32_t Ints __attribute__((vector_size(sizeof(X::V))));
  const Bits bits = (Bits)a;
  const Ints exponent = (Ints)(bits - 0x3f3504f3u) >> 23;  // a / 2^it in [sqrt(1/2), sqrt(2))
  const X::V n = (X::V) __builtin_convertvector(exponent, X::V);
  const X::V f = X::sub((X::V)(bits - ((Bits)exponent << 23)), X::set1(1.0f));
  const X::V z = X::mul(f, f);
  static constexpr float kCephes[] = {-1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f,
                                      1.4249322787e-1f,  -1.6668057665e-1f, 2.0000714765e-1f,
                                      -2.4999993993e-1f, 3.3333331174e-1f};
  X::V p = X::set1(7.0376836292e-2f);
  for (float c : kCephes) p = X::fma(p, f, X::set1(c));
  p = X::mul(X::mul(p, f), z);
  p = X::fma(n, X::set1(-2.12194440e-4f), p);
  p = X::fma(X::set1(-0.5f), z, p);
  p = X::fma(n, X::set1(0.693359375f), X::add(f, p));
  p = X::blend(X::is_nan(a), a, p);
  return X::blend(X::eq(a, X::zero()), X::set1(-__builtin_inff()), p);
}

static inline F64::V log_of_sum(F64, F64::V a) {
  return by_lane<F64>(a, [](double lane) { return std::log(lane); });
}

template <class X>
static inline typename X::V minus_infinity() {
  return X::set1(-__builtin_inff());
}

// What differences are taken to: the maximum, or 0 while it is -inf.
template <class X>
static inline typename X::V reference_of(typename X::V maximum) {
  return X::blend(X::eq(maximum, minus_infinity<X>()), X::zero(), maximum);
}

// The sums of a row, or of kLanes rows or parts of one, relative to one reference.
template <class X, Targets kTargets>
struct RunningSums {
  using V = typename X::V;
  static constexpr bool kWeighs = kTargets != Targets::kIndex;

  V sum;   // of exp(d), d = x - reference
  V dot;   // of u d
  V mass;  // of u

  // Not a constructor, nor initialisers of the members: GCC compiles those that it writes itself
  // without the target pragma.
  static RunningSums nothing() { return {X::zero(), X::zero(), X::zero()}; }

  // From the old maximum to a new reference that is not below it.
  void rescale(V maximum, V reference) {
    sum = X::mul(sum, exp_of_difference(X{}, X::sub(maximum, reference)));
    if constexpr (kWeighs) {
      const V shift = X::sub(maximum, reference);
      const auto nothing_yet = X::eq(maximum, minus_infinity<X>());
      dot = X::fma(mass, X::blend(nothing_yet, X::zero(), shift), dot);
    }
  }

  // Blocks are summed apart and then together: the error of 20000 terms in a row would show.
  void add(const RunningSums& block) {
    sum = X::add(sum, block.sum);
    dot = X::add(dot, block.dot);
    mass = X::add(mass, block.mass);
  }

  void weigh(V u, V d) {
    dot = X::fma(u, d, dot);
    mass = X::add(mass, u);
  }
};

// The constants of a call.
template <class X>
struct LossTerms {
  using T = typename X::T;
  const T* weight;  // [C] or null
  T share;          // 1 - e
  T smooth;         // e / C
  T weight_sum;
  T z;  // z_loss

  explicit LossTerms(const CrossEntropyArgs& a)
      : weight(static_cast<const T*>(a.weight)),
        share(static_cast<T>(1 - a.params->label_smoothing)),
        smooth(
            static_cast<T>(a.params->label_smoothing / static_cast<double>(a.params->num_classes))),
        weight_sum(static_cast<T>(a.weight_sum)),
        z(static_cast<T>(a.params->z_loss)) {}

  T weight_of(int64_t c) const { return weight ? weight[c] : T(1); }

  // u_c of a probability t_c
  typename X::V probability_term(typename X::V t, typename X::V w) const {
    return X::mul(w, X::fma(X::set1(share), t, X::set1(smooth)));
  }
};

static inline float widen(float a) { return a; }
static inline double widen(double a) { return a; }
static inline float widen(BFloat16 a) { return to_float(a); }
static inline float widen(Float16 a) { return to_float(a); }

template <class IO>
static inline IO* row_of(const RowsView& view, const CrossEntropyParams& p, int64_t row) {
  return static_cast<IO*>(view.data) + row / p.inner * view.outer_stride +
         row % p.inner * view.inner_stride;
}

template <class X>
static inline bool is_aligned(const typename X::T* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(typename X::V) == 0;
}

}  // namespace imgfast::cpu::IMGFAST_ISA
