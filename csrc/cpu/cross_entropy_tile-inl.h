// Cross-entropy over a tile of the classes, for heads of so many that their logits are never all
// there. A tile's rows are normalised as if it were all of them, and then join their state:
//
//   m = max_c x_c   s = sum_c exp(x_c - m)   mass = sum_c u_c   dot = sum_c u_c (x_c - m)
//
// with csrc/cross_entropy.h's x and u, and 0 in the place of m while m is -inf.
#pragma once

#include "cross_entropy-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// The targets that are in the tile; smooth, as the loss has it, of all rows that count.
template <class X, Targets kTargets>
static void read_targets_of_tile(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                                 const Batch<X>& b) {
  read_targets(a, terms, b);
  if constexpr (kTargets == Targets::kSmoothedIndex) {
    for (int64_t i = 0; i < b.n; i += X::kLanes) {
      const auto counts = X::ge(X::load(b.y + i), X::zero());
      X::store(b.smooth + i, X::blend(counts, X::set1(terms.smooth), X::zero()));
    }
  }
  keep_targets_of_part(a, b);
}

// The state of the rows and what the tile adds to it.
template <class X, Targets kTargets>
static void join_state(const CrossEntropyArgs& a, const LossTerms<X>& terms, const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  T* const maxima = static_cast<T*>(a.maximum) + b.row;
  T* const sums = static_cast<T*>(a.sum) + b.row;
  T* const masses = static_cast<T*>(a.mass) + b.row;
  T* const dots = static_cast<T*>(a.dot) + b.row;
  for (int64_t i = 0; i < b.n; i += X::kLanes) {
    const int left = static_cast<int>(min_of(X::kLanes, b.n - i));
    const V tile_maximum = X::load(b.maximum + i);
    const V tile_reference = reference_of<X>(tile_maximum);
    V tile_mass, tile_dot;
    if constexpr (kTargets == Targets::kProbability) {
      tile_mass = X::load(b.mass + i);
      tile_dot = X::load(b.dot + i);
    } else {
      const auto here = X::ge(X::load(b.y + i), X::zero());
      tile_mass = X::mul(X::set1(terms.share), X::load(b.weight + i));
      tile_dot = X::mul(tile_mass, X::sub(X::load(b.picked + i), tile_reference));
      tile_mass = X::blend(here, tile_mass, X::zero());
      tile_dot = X::blend(here, tile_dot, X::zero());
      if constexpr (kTargets == Targets::kSmoothedIndex) {
        const V smooth = X::load(b.smooth + i);
        const V smoothed = X::mul(smooth, X::load(b.dot + i));
        const auto counts = X::gt(smooth, X::zero());
        tile_dot = X::add(tile_dot, X::blend(counts, smoothed, X::zero()));
        tile_mass = X::fma(smooth, X::load(b.mass + i), tile_mass);
      }
    }
    const V before = X::load(maxima + i, left), mass = X::load(masses + i, left);
    const V maximum = X::max(tile_maximum, before), reference = reference_of<X>(maximum);
    V sum = X::mul(X::load(sums + i, left), exp_of_difference(X{}, X::sub(before, reference)));
    sum = X::fma(X::load(b.sum + i), exp_of_difference(X{}, X::sub(tile_maximum, reference)), sum);
    V dot = X::fma(mass, X::sub(reference_of<X>(before), reference), X::load(dots + i, left));
    dot = X::add(dot, X::fma(tile_mass, X::sub(tile_reference, reference), tile_dot));
    X::store(maxima + i, maximum, left);
    X::store(sums + i, sum, left);
    X::store(masses + i, X::add(mass, tile_mass), left);
    X::store(dots + i, dot, left);
  }
}

static void cross_entropy_tile(const CrossEntropyArgs& a, int64_t begin, int64_t end,
                               void* scratch) {
  with_targets(a, [&](auto x, auto io, auto targets) {
    using X = decltype(x);
    constexpr Targets kTargets = decltype(targets)::value;
    const LossTerms<X> terms(a);
    Batch<X> b(kRowsAtATime, Arena{static_cast<char*>(scratch)});
    for (b.row = begin; b.row < end; b.row += b.n) {
      b.n = min_of(end - b.row, kRowsAtATime);
      if constexpr (kTargets != Targets::kProbability) {
        read_targets_of_tile<X, kTargets>(a, terms, b);
      }
      normalise_rows<X, decltype(io), kTargets>(a, terms, b);
      join_state<X, kTargets>(a, terms, b);
    }
  });
}

// grad_loss times mass exp(x - m) / s - u.
static void cross_entropy_tile_gradient(const CrossEntropyArgs& a, int64_t begin, int64_t end,
                                        void* scratch) {
  with_targets(a, [&](auto x, auto io, auto targets) {
    using X = decltype(x);
    constexpr Targets kTargets = decltype(targets)::value;
    const LossTerms<X> terms(a);
    Batch<X> b(kRowsAtATime, Arena{static_cast<char*>(scratch)});
    for (b.row = begin; b.row < end; b.row += b.n) {
      b.n = min_of(end - b.row, kRowsAtATime);
      if constexpr (kTargets != Targets::kProbability) read_targets(a, terms, b);
      start_gradients<X, kTargets>(a, terms, b);
      if constexpr (kTargets != Targets::kProbability) keep_targets_of_part(a, b);
      gradient_rows<X, decltype(io), kTargets>(a, terms, b);
    }
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
