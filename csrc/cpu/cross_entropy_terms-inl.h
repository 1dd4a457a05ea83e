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

// 2^(i / kLanes) in lane i, the bits of a float, less i / kLanes in units of its exponent.
template <class X>
struct FractionalPowers {
  static constexpr int kShift = 23 - __builtin_ctz(X::kLanes);

  float lanes[X::kLanes];

  constexpr FractionalPowers() : lanes() {
    constexpr uint32_t kSixteenths[] = {0x3f800000, 0x3f85aac3, 0x3f8b95c2, 0x3f91c3d3,
                                        0x3f9837f0, 0x3f9ef532, 0x3fa5fed7, 0x3fad583f,
                                        0x3fb504f3, 0x3fbd08a4, 0x3fc5672a, 0x3fce248c,
                                        0x3fd744fd, 0x3fe0ccdf, 0x3feac0c7, 0x3ff5257d};
    for (uint32_t i = 0; i < X::kLanes; i++) {
      lanes[i] = __builtin_bit_cast(float, kSixteenths[i * 16 / X::kLanes] - (i << kShift));
    }
  }
};

// exp(d) for d <= 0, -inf and NaN; 0 where it is less than the normal numbers.
//
// d log2(e) = n + f. If there is a permutation, n is a multiple of 1 / kLanes: its fraction chooses
// 2^n's mantissa out of a register, and 2^f - 1 over |f| <= 1/16 is a minimax polynomial of degree
// 3 without a constant (error 2.5e-8). Otherwise n is whole and the polynomial has degree 6 over
// |f| <= 1/2 (1.6e-8). f comes from one fused multiplication.
template <class X>
static inline typename X::V exp_of_difference(X, typename X::V d) {
  using V = typename X::V;
  if constexpr (kSameType<X, F64>) {
    return exp_of(X{}, d);
  } else if constexpr (X::kPermutes) {
    typedef uint32_t Bits __attribute__((vector_size(sizeof(V))));
    static constexpr FractionalPowers<X> kPowers;
    const V log2e = X::set1(1.44269504f);
    const V magic = X::set1(12582912.0f / X::kLanes);  // 1.5 * 2^23: its last place is 1 / kLanes
    const V shifted = X::fma(d, log2e, magic);
    const V f = X::fma(d, log2e, X::sub(magic, shifted));
    V p = X::fma(X::set1(5.549622e-2f), f, X::set1(2.4025763e-1f));
    p = X::mul(X::fma(p, f, X::set1(6.9314721e-1f)), f);
    const Bits mantissa = (Bits)X::permute(X::load(kPowers.lanes), shifted);
    const V power = (V)(mantissa + ((Bits)shifted << kPowers.kShift));
    return X::blend(X::gt(X::set1(-87.33f), d), X::zero(), X::fma(power, p, power));
  } else {
    const V log2e = X::set1(1.44269504f), magic = X::set1(12582912.0f);
    d = X::max(X::set1(-104.0f), d);  // NaN passes: it stands second
    const V n = X::sub(X::fma(d, log2e, magic), magic);
    const V f = X::fma(d, log2e, X::sub(X::zero(), n));
    static constexpr float kMinimax[] = {1.33988750e-3f, 9.61843692e-3f, 5.55033237e-2f,
                                         2.40226477e-1f, 6.93147182e-1f, 1.0f};
    V p = X::set1(1.53533620e-4f);
    for (float c : kMinimax) p = X::fma(p, f, X::set1(c));
    return X::scale2(p, n);
  }
}

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
