// cross_entropy with classes in the lanes, one row at a time: for many classes that lie side by
// side.
#pragma once

#include "cross_entropy_batch-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Classes of a block: 16 KiB of float, read twice while in L1.
static constexpr int64_t kRowBlock = 4096;
static constexpr int64_t kRowsAtATime = 64;  // a multiple of every number of lanes
// From here on the lines that two rows share are few enough to stream the others.
static constexpr int64_t kStreamedRow = 2048;

// The n < kLanes numbers at p, then `rest`.
template <class X, class IO>
static inline typename X::V load_tail(const IO* p, int n, typename X::T rest) {
  return X::blend(X::first(n), X::load(p, n), X::set1(rest));
}

template <class X, class IO>
static typename X::T maximum_of(const IO* x, int64_t n, typename X::T maximum) {
  constexpr int kL = X::kLanes;
  typename X::V m[4];
  for (auto& part : m) part = X::set1(maximum);
  int64_t c = 0;
  for (; c + 4 * kL <= n; c += 4 * kL) {
    for (int k = 0; k < 4; k++) m[k] = X::max(X::load(x + c + k * kL), m[k]);
  }
  for (; c + kL <= n; c += kL) m[0] = X::max(X::load(x + c), m[0]);
  if (c < n) m[1] = X::max(load_tail<X>(x + c, static_cast<int>(n - c), -__builtin_inff()), m[1]);
  return X::max(X::max(X::max(m[0], m[1]), X::max(m[2], m[3])));
}

// Whether none of the n numbers at x reaches the maximum.
template <class X, class IO>
static bool first_of(const IO* x, int64_t n, typename X::T maximum) {
  const auto m = X::set1(maximum);
  auto reached = X::first(0);
  int64_t c = 0;
  for (; c + X::kLanes <= n; c += X::kLanes) reached = X::either(reached, X::ge(X::load(x + c), m));
  if (c < n) {
    const auto last = load_tail<X>(x + c, static_cast<int>(n - c), -__builtin_inff());
    reached = X::either(reached, X::ge(last, m));
  }
  return !X::any(reached);
}

// u_c of classes [c, c + n), n <= kLanes; nothing beyond.
template <class X, class IO, Targets kTargets>
static inline typename X::V class_weights(const LossTerms<X>& terms, const IO* probabilities,
                                          int64_t c, int n) {
  using V = typename X::V;
  const bool whole = n == X::kLanes;
  V w = X::set1(1);
  if (terms.weight) w = whole ? X::load(terms.weight + c) : X::load(terms.weight + c, n);
  if constexpr (kTargets == Targets::kProbability) {
    w = terms.probability_term(whole ? X::load(probabilities + c) : X::load(probabilities + c, n),
                               w);
  }
  return whole ? w : X::blend(X::first(n), w, X::zero());
}

template <class X, class IO, Targets kTargets>
static void normalise_rows(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                           const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  constexpr int kL = X::kLanes;
  const CrossEntropyParams& p = *a.params;
  for (int64_t i = 0; i < b.n; i++) {
    const IO* x = row_of<const IO>(a.logits, p, b.row + i);
    const IO* t = kTargets == Targets::kProbability
                      ? row_of<const IO>(a.probabilities, p, b.row + i)
                      : nullptr;
    T maximum = -__builtin_inff();
    auto running = RunningSums<X, kTargets>::nothing();
    for (int64_t c0 = 0; c0 < p.C; c0 += kRowBlock) {
      const int64_t end = min_of(c0 + kRowBlock, p.C);
      const V before = X::set1(maximum);
      maximum = maximum_of<X>(x + c0, end - c0, maximum);
      const V reference = reference_of<X>(X::set1(maximum));
      auto block = RunningSums<X, kTargets>::nothing();
      int64_t c = c0;
      for (; c + kL <= end; c += kL) {
        const V d = X::sub(X::load(x + c), reference);
        block.sum = X::add(block.sum, exp_of_difference(X{}, d));
        if constexpr (block.kWeighs) {
          block.weigh(class_weights<X, IO, kTargets>(terms, t, c, kL), d);
        }
      }
      if (c < end) {
        const int n = static_cast<int>(end - c);
        const V last = load_tail<X>(x + c, n, -__builtin_inff());
        block.sum = X::add(block.sum, exp_of_difference(X{}, X::sub(last, reference)));
        if constexpr (block.kWeighs) {  // no weight beyond the row, but 0 * -inf would be NaN
          const V d = load_tail<X>(x + c, n, maximum == -__builtin_inff() ? 0 : maximum);
          block.weigh(class_weights<X, IO, kTargets>(terms, t, c, n), X::sub(d, reference));
        }
      }
      if (c0) running.rescale(before, reference);
      running.add(block);
    }
    b.maximum[i] = maximum;
    b.sum[i] = X::sum(running.sum);
    if constexpr (running.kWeighs) {
      b.dot[i] = X::sum(running.dot);
      b.mass[i] = X::sum(running.mass);
    }
    if constexpr (kTargets != Targets::kProbability) {
      b.picked[i] = b.y[i] < 0 ? T(0) : widen(x[static_cast<int64_t>(b.y[i])]);
    }
  }
}

// Whether the target's logit is the first of the largest. NaN is the first of none.
template <class X, class IO>
static void mark_correct_rows(const CrossEntropyArgs& a, const Batch<X>& b) {
  using T = typename X::T;
  T* correct = static_cast<T*>(a.correct) + b.row;
  for (int64_t i = 0; i < b.n; i++) {
    const IO* x = row_of<const IO>(a.logits, *a.params, b.row + i);
    const bool largest = b.y[i] >= 0 && b.picked[i] == b.maximum[i] && b.sum[i] == b.sum[i];
    correct[i] = largest && first_of<X>(x, static_cast<int64_t>(b.y[i]), b.maximum[i]);
  }
}

// mass of a batch.
template <class X, class IO>
static void sum_probabilities_rows(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                                   const Batch<X>& b) {
  const CrossEntropyParams& p = *a.params;
  for (int64_t i = 0; i < b.n; i++) {
    const IO* t = row_of<const IO>(a.probabilities, p, b.row + i);
    auto mass = X::zero();
    for (int64_t c = 0; c < p.C; c += X::kLanes) {
      const int n = static_cast<int>(min_of(X::kLanes, p.C - c));
      mass = X::add(mass, class_weights<X, IO, Targets::kProbability>(terms, t, c, n));
    }
    b.mass[i] = X::sum(mass);
  }
}

template <class X, class IO, Targets kTargets>
static void gradient_rows(const CrossEntropyArgs& a, const LossTerms<X>& terms, const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  constexpr int kL = X::kLanes;
  const CrossEntropyParams& p = *a.params;
  for (int64_t i = 0; i < b.n; i++) {
    const IO* x = row_of<const IO>(a.logits, p, b.row + i);
    IO* out = row_of<IO>(a.grad_logits, p, b.row + i);
    const IO* t = nullptr;
    V weighed = X::zero();  // the gradient of -u_c x_c
    if constexpr (kTargets == Targets::kProbability) {
      t = row_of<const IO>(a.probabilities, p, b.row + i);
      weighed = X::set1(b.hit[i]);
    } else {
      if (b.total[i] == 0 && b.y[i] < 0) {  // a row that does not count, without a NaN
        fill_zero(out, p.C);
        continue;
      }
      if constexpr (kTargets == Targets::kSmoothedIndex) weighed = X::set1(b.smooth[i]);
    }
    const int64_t y = kTargets == Targets::kProbability ? -1 : static_cast<int64_t>(b.y[i]);
    // Only where it is needed below: here it is a cache miss that the whole row waits for.
    const T picked = kSameType<IO, T> || y < 0 ? T(0) : widen(x[y]);
    const int64_t other = a.params->num_targets > 1 ? static_cast<int64_t>(b.other.y[i]) : -1;
    const T other_picked = kSameType<IO, T> || other < 0 ? T(0) : widen(x[other]);
    const V maximum = X::set1(b.maximum[i]), total = X::set1(b.total[i]);
    const auto gradient = [&](V logits, int64_t c, int n) {
      V g = X::mul(total, exp_of_difference(X{}, X::sub(logits, maximum)));
      if constexpr (kTargets != Targets::kIndex) {
        g = X::sub(g, X::mul(weighed, class_weights<X, IO, kTargets>(terms, t, c, n)));
      }
      return g;
    };
    int64_t c = 0;
    if constexpr (kSameType<IO, T>) {
      if (a.streams && p.C >= kStreamedRow) {  // from the first aligned vector on
        const auto past = reinterpret_cast<uintptr_t>(out) % sizeof(V);
        const int head = static_cast<int>((sizeof(V) - past) % sizeof(V) / sizeof(T));
        X::store(out, gradient(X::load(x, head), 0, head), head);
        for (c = head; c + kL <= p.C; c += kL) X::stream(out + c, gradient(X::load(x + c), c, kL));
      }
    }
    for (; c + kL <= p.C; c += kL) X::store(out + c, gradient(X::load(x + c), c, kL));
    if (c < p.C) {
      const int n = static_cast<int>(p.C - c);
      X::store(out + c, gradient(X::load(x + c, n), c, n), n);
    }
    // Narrow types anew: 1 - p must not be rounded twice, and x may be what has been written.
    if (y >= 0) {
      if constexpr (kSameType<IO, T>) {
        out[y] -= b.hit[i];
      } else {
        const T hit = other == y ? b.hit[i] + b.other.hit[i] : b.hit[i];
        X::store(out + y, X::sub(gradient(X::set1(picked), y, 1), X::set1(hit)), 1);
      }
    }
    if (other >= 0) {
      if constexpr (kSameType<IO, T>) {
        out[other] -= b.other.hit[i];
      } else if (other != y) {
        const V g = gradient(X::set1(other_picked), other, 1);
        X::store(out + other, X::sub(g, X::set1(b.other.hit[i])), 1);
      }
    }
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
