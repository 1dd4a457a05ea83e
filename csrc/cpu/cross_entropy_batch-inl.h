// A batch of rows of cross_entropy: what is known of each, in arrays, and what is computed once a
// row, by vectors of rows. What is computed once a logit is in cross_entropy_{rows,lanes}-inl.h.
#pragma once

#include "cross_entropy_terms-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct Batch {
  using T = typename X::T;
  int64_t row, n;  // rows [row, row + n); arrays are valid up to whole vectors

  T *y, *weight, *picked;         // [width] class or -1 if the row does not count; w_y or 0; x_y
  T *maximum, *sum, *dot, *mass;  // [width] the normaliser: see RunningSums
  T* loss;
  T *total, *hit, *smooth;  // backward: gradients of exp(x - m), -x_y and -u_c x_c
  int64_t size;             // bytes

  Batch(int64_t width, Arena arena) : row(0), n(0) {
    T** const arrays[] = {&y,    &weight, &picked, &maximum, &sum,   &dot,
                          &mass, &loss,   &total,  &hit,     &smooth};
    for (T** array : arrays) *array = arena.take<T>(round_up(width, X::kLanes));
    size = arena.used;
  }
};

// y and weight. Returns the first row whose target is not a class, or -1. Classes and ignore_index
// are exact in T; a target that is not is beyond them, and stays there when it is rounded.
template <class X>
static int64_t read_targets(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                            const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  const int64_t* target = a.target + b.row;
  const V ignored = X::set1(static_cast<T>(a.params->ignore_index));
  const V classes = X::set1(static_cast<T>(a.params->C));
  auto wrong = X::first(0);
  for (int64_t i = 0; i < b.n; i += X::kLanes) {
    const int left = static_cast<int>(min_of(X::kLanes, b.n - i));
    const V y = X::load(target + i, left);
    const auto ignores = X::eq(y, ignored);
    const V looked_up = X::blend(ignores, X::zero(), y);
    wrong = X::either(wrong, X::either(X::gt(X::zero(), looked_up), X::ge(looked_up, classes)));
    const V none = X::set1(-1);
    X::store(b.y + i, X::blend(X::first(left), X::blend(ignores, none, y), none));
    X::store(b.weight + i,
             X::blend(X::first(left), X::blend(ignores, X::zero(), X::set1(1)), X::zero()));
  }
  if (X::any(wrong)) {
    for (int64_t i = 0;; i++) {
      const int64_t t = target[i];
      if (t != a.params->ignore_index && (t < 0 || t >= a.params->C)) return b.row + i;
    }
  }
  for (int64_t i = 0; terms.weight && i < b.n; i++) {
    if (b.y[i] >= 0) b.weight[i] = terms.weight[static_cast<int64_t>(b.y[i])];
  }
  return -1;
}

// The losses, from the normaliser and the picked logits; adds them up.
template <class X, class IO, Targets kTargets>
static void finish_losses(const CrossEntropyArgs& a, const LossTerms<X>& terms, const Batch<X>& b,
                          CrossEntropySums& sums) {
  using V = typename X::V;
  V loss_sum = X::zero(), weight_sum = X::zero();
  for (int64_t i = 0; i < b.n; i += X::kLanes) {
    const V log_sum = log_of_sum(X{}, X::load(b.sum + i));
    V loss;
    if constexpr (kTargets == Targets::kProbability) {
      loss = X::sub(X::mul(X::load(b.mass + i), log_sum), X::load(b.dot + i));
    } else {
      const V weight = X::load(b.weight + i);
      weight_sum = X::add(weight_sum, weight);
      loss = X::add(X::sub(X::load(b.maximum + i), X::load(b.picked + i)), log_sum);
      loss = X::mul(X::mul(X::set1(terms.share), weight), loss);
      if constexpr (kTargets == Targets::kSmoothedIndex) {
        const V all = X::sub(X::mul(X::set1(terms.weight_sum), log_sum), X::load(b.dot + i));
        loss = X::fma(X::set1(terms.smooth), all, loss);
      }
      loss = X::blend(X::ge(X::load(b.y + i), X::zero()), loss, X::zero());
    }
    X::store(b.loss + i, loss);
    const int left = static_cast<int>(min_of(X::kLanes, b.n - i));
    loss_sum = X::add(loss_sum, left == X::kLanes ? loss : X::load(b.loss + i, left));
  }
  sums.loss += static_cast<double>(X::sum(loss_sum));
  sums.weight += static_cast<double>(X::sum(weight_sum));
  copy_into<X>(b.maximum, static_cast<typename X::T*>(a.maximum) + b.row, b.n);
  copy_into<X>(b.sum, static_cast<typename X::T*>(a.sum) + b.row, b.n);
  if (!a.loss) return;
  if (a.loss_dtype == a.dtype) {
    copy_into<X>(b.loss, static_cast<IO*>(a.loss) + b.row, b.n);
  } else {
    copy_into<X>(b.loss, static_cast<typename X::T*>(a.loss) + b.row, b.n);
  }
}

// total, hit and smooth, from the normaliser; for probabilities mass must be there already. A row
// that does not count has gradients of 0, or NaN if it has a NaN or a sum that is none: as in
// PyTorch.
template <class X, Targets kTargets>
static void start_gradients(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                            const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  copy_into<X>(static_cast<const T*>(a.maximum) + b.row, b.maximum, b.n);
  copy_into<X>(static_cast<const T*>(a.sum) + b.row, b.sum, b.n);
  for (int64_t i = 0; i < b.n; i += X::kLanes) {
    const int left = static_cast<int>(min_of(X::kLanes, b.n - i));
    const V grad = a.grad_loss ? X::load(static_cast<const T*>(a.grad_loss) + b.row + i, left)
                               : X::set1(static_cast<T>(a.grad_scale));
    V hit = grad, total;
    if constexpr (kTargets == Targets::kProbability) {
      total = X::mul(grad, X::load(b.mass + i));
    } else {
      const auto counts = X::ge(X::load(b.y + i), X::zero());
      hit = X::mul(X::mul(grad, X::set1(terms.share)), X::load(b.weight + i));
      hit = X::blend(counts, hit, X::zero());
      total = hit;
      if constexpr (kTargets == Targets::kSmoothedIndex) {
        const V smooth = X::blend(counts, X::mul(grad, X::set1(terms.smooth)), X::zero());
        X::store(b.smooth + i, smooth);
        total = X::fma(smooth, X::set1(terms.weight_sum), total);
      }
    }
    X::store(b.hit + i, hit);
    X::store(b.total + i, X::div(total, X::load(b.sum + i)));
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
