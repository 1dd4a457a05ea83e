// norm(x) = (x - mean(x)) / sqrt(var(x) + kNormEpsilon), as layer_norm without weights, of matrices
// [rows][width] in the cache: rows of D numbers, and zeros behind them up to whole vectors.
//
// One pass over all rows for each step: rows do not wait for one another, as the steps of a row do.
#pragma once

#include <cmath>

#include "matrix-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

inline constexpr double kNormEpsilon = 1e-5;

// The first lanes of a vector, another's in the place of the others.
template <class X>
static inline typename X::V first_lanes(int64_t lanes, typename X::V v,
                                        typename X::V otherwise = X::zero()) {
  return lanes >= X::kLanes ? v : X::blend(X::first(static_cast<int>(lanes)), v, otherwise);
}

// Rows become norm(row); rate is what they were divided by, inverted.
template <class X>
static void normalise_rows(typename X::T* matrix, int64_t rows, int64_t width, int64_t D,
                           typename X::T* rate) {
  using T = typename X::T;
  using V = typename X::V;
  constexpr int kL = X::kLanes;
  const T share = 1 / static_cast<T>(D);
  for (int64_t t = 0; t < rows; t++) {
    const T* const row = matrix + t * width;
    V sum = X::load(row);
    for (int64_t d = kL; d < width; d += kL) sum = X::add(sum, X::load(row + d));
    rate[t] = X::sum(sum) * share;
  }
  for (int64_t t = 0; t < rows; t++) {
    T* const row = matrix + t * width;
    const V middle = X::set1(rate[t]);
    V squares = X::zero();
    for (int64_t d = 0; d < width; d += kL) {
      const V away = first_lanes<X>(D - d, X::sub(X::load(row + d), middle));
      X::store(row + d, away);
      squares = X::fma(away, away, squares);
    }
    rate[t] = X::sum(squares) * share;
  }
  for (int64_t t = 0; t < rows; t++) {
    rate[t] = 1 / std::sqrt(rate[t] + static_cast<T>(kNormEpsilon));
    T* const row = matrix + t * width;
    const V factor = X::set1(rate[t]);
    for (int64_t d = 0; d < width; d += kL) X::store(row + d, X::mul(X::load(row + d), factor));
  }
}

// From the gradient g at y = norm(x) to that at x: rate (g - mean(g) - y mean(g y)). means and
// slopes have room for a number of each row.
template <class X>
static void through_normalise_rows(typename X::T* gradient, const typename X::T* normalised,
                                   const typename X::T* rate, int64_t rows, int64_t width,
                                   int64_t D, typename X::T* means, typename X::T* slopes) {
  using T = typename X::T;
  using V = typename X::V;
  constexpr int kL = X::kLanes;
  const T share = 1 / static_cast<T>(D);
  for (int64_t t = 0; t < rows; t++) {
    const T* const row = gradient + t * width;
    const T* const y = normalised + t * width;
    V sum = X::zero(), along = X::zero();
    for (int64_t d = 0; d < width; d += kL) {
      sum = X::add(sum, X::load(row + d));
      along = X::fma(X::load(row + d), X::load(y + d), along);
    }
    means[t] = X::sum(sum) * share;
    slopes[t] = -X::sum(along) * share;
  }
  for (int64_t t = 0; t < rows; t++) {
    T* const row = gradient + t * width;
    const T* const y = normalised + t * width;
    const V middle = X::set1(means[t]), slope = X::set1(slopes[t]), factor = X::set1(rate[t]);
    for (int64_t d = 0; d < width; d += kL) {
      const V away = X::sub(X::load(row + d), middle);
      X::store(row + d, X::mul(factor, X::fma(slope, X::load(y + d), away)));
    }
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
