// The rows kernel of cross_entropy: one row at a time, lanes are classes. For many classes that lie
// side by side.
#pragma once

#include "cross_entropy_terms-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

static constexpr int64_t kRowBlock =
    4096;  // classes of a block: 16 KiB of float, read twice while in L1

// The n < kLanes numbers at p, then `rest`.
template <class X, class IO>
static inline typename X::V load_tail(const IO* p, int n, typename X::T rest) {
  typename X::T lanes[X::kLanes];
  for (auto& lane : lanes) lane = rest;
  X::store(lanes, X::load(p, n), n);
  return X::load(lanes);
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
  if (!whole) {
    typename X::T lanes[X::kLanes];
    X::store(lanes, w);
    w = X::load(lanes, n);
  }
  return w;
}

template <class X, class IO, Targets kTargets>
static CrossEntropySums forward_rows(const CrossEntropyArgs& a, int64_t begin, int64_t end, void*) {
  using T = typename X::T;
  using V = typename X::V;
  constexpr int kL = X::kLanes;
  const CrossEntropyParams& p = *a.params;
  const LossTerms<X> terms(a);
  CrossEntropySums sums{0, 0, -1};

  for (int64_t row = begin; row < end; row++) {
    const IO* x = row_of<const IO>(a.logits, p, row);
    const IO* probabilities = nullptr;
    IndexTarget target(p, p.ignore_index);
    if constexpr (kTargets == Targets::kProbability) {
      probabilities = row_of<const IO>(a.probabilities, p, row);
    } else {
      target = IndexTarget(p, a.target[row]);
      if (!target.valid) {
        sums.bad_row = row;
        return sums;
      }
    }

    T maximum = -__builtin_inff();
    auto running = RunningSums<X, kTargets>::nothing();
    for (int64_t c0 = 0; c0 < p.C; c0 += kRowBlock) {
      const int64_t end_class = min_of(c0 + kRowBlock, p.C);
      const V before = X::set1(maximum);
      maximum = maximum_of<X>(x + c0, end_class - c0, maximum);
      const V reference = reference_of<X>(X::set1(maximum));
      auto block = RunningSums<X, kTargets>::nothing();
      int64_t c = c0;
      for (; c + kL <= end_class; c += kL) {
        const V d = X::sub(X::load(x + c), reference);
        block.sum = X::add(block.sum, exp_of_difference(X{}, d));
        if constexpr (block.kWeighs) {
          block.weigh(class_weights<X, IO, kTargets>(terms, probabilities, c, kL), d);
        }
      }
      if (c < end_class) {
        const int n = static_cast<int>(end_class - c);
        const V last = load_tail<X>(x + c, n, -__builtin_inff());
        block.sum = X::add(block.sum, exp_of_difference(X{}, X::sub(last, reference)));
        if constexpr (block.kWeighs) {  // no weight beyond the row, but 0 * -inf would be NaN
          const V d = load_tail<X>(x + c, n, maximum == -__builtin_inff() ? 0 : maximum);
          block.weigh(class_weights<X, IO, kTargets>(terms, probabilities, c, n),
                      X::sub(d, reference));
        }
      }
      if (c0) running.rescale(before, reference);
      running.add(block);
    }

    const T sum = X::sum(running.sum);
    const double log_sum = std::log(static_cast<double>(sum));
    static_cast<T*>(a.maximum)[row] = maximum;
    static_cast<T*>(a.sum)[row] = sum;
    double loss = 0;
    if constexpr (kTargets == Targets::kProbability) {
      loss = X::sum(running.mass) * log_sum - X::sum(running.dot);
    } else if (target.counts) {
      const T picked = widen(x[target.y]);
      const T weight = terms.weight_of(target.y);
      loss = terms.share * weight * (static_cast<double>(maximum - picked) + log_sum);
      if constexpr (kTargets == Targets::kSmoothedIndex) {
        loss += terms.smooth * (terms.weight_sum * log_sum - X::sum(running.dot));
      }
      sums.weight += weight;
    }
    sums.loss += loss;
    const T rounded = static_cast<T>(loss);
    write_losses<X, IO>(a, &rounded, row, 1);
  }
  return sums;
}

template <class X, class IO, Targets kTargets>
static int64_t backward_rows(const CrossEntropyArgs& a, int64_t begin, int64_t end, void*) {
  using T = typename X::T;
  using V = typename X::V;
  constexpr int kL = X::kLanes;
  const CrossEntropyParams& p = *a.params;
  const LossTerms<X> terms(a);

  for (int64_t row = begin; row < end; row++) {
    const IO* x = row_of<const IO>(a.logits, p, row);
    IO* out = row_of<IO>(a.grad_logits, p, row);
    const IO* probabilities = nullptr;
    const T maximum = static_cast<const T*>(a.maximum)[row],
            sum = static_cast<const T*>(a.sum)[row];
    const T grad =
        a.grad_loss ? static_cast<const T*>(a.grad_loss)[row] : static_cast<T>(a.grad_scale);
    IndexTarget target(p, p.ignore_index);
    T hit = grad, smooth = grad, total;  // gradients of -x_y, of -u_c x_c and of exp(x - m)
    if constexpr (kTargets == Targets::kProbability) {
      probabilities = row_of<const IO>(a.probabilities, p, row);
      V mass = X::zero();
      for (int64_t c = 0; c < p.C; c += kL) {
        const int n = static_cast<int>(min_of(kL, p.C - c));
        mass = X::add(mass, class_weights<X, IO, kTargets>(terms, probabilities, c, n));
      }
      total = grad * X::sum(mass);
    } else {
      target = IndexTarget(p, a.target[row]);
      if (!target.valid) return row;
      hit = target.counts ? grad * terms.share * terms.weight_of(target.y) : 0;
      smooth = target.counts ? grad * terms.smooth : 0;
      total = kTargets == Targets::kIndex ? hit : hit + smooth * terms.weight_sum;
      // A row that does not count, and in which no NaN must be passed on.
      if (!target.counts && maximum - maximum == 0 && sum - sum == 0) {
        fill_zero(out, p.C);
        continue;
      }
    }
    total /= sum;

    const V m = X::set1(maximum), scale = X::set1(total);
    const auto gradient = [&](V logits, int64_t c, int n) {
      V g = X::mul(scale, exp_of_difference(X{}, X::sub(logits, m)));
      if constexpr (kTargets != Targets::kIndex) {
        g = X::sub(
            g, X::mul(X::set1(smooth), class_weights<X, IO, kTargets>(terms, probabilities, c, n)));
      }
      return g;
    };
    int64_t c = 0;
    for (; c + kL <= p.C; c += kL) X::store(out + c, gradient(X::load(x + c), c, kL));
    if (c < p.C) {
      const int n = static_cast<int>(p.C - c);
      X::store(out + c, gradient(X::load(x + c, n), c, n), n);
    }
    if constexpr (kTargets != Targets::kProbability) {  // anew, since 1 - p must not be rounded
                                                        // twice in bfloat16
      const int64_t y = target.y;
      X::store(out + y, X::sub(gradient(X::load(x + y, 1), y, 1), X::set1(hit)), 1);
    }
  }
  return -1;
}

}  // namespace imgfast::cpu::IMGFAST_ISA
