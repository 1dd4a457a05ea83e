// A batch of rows of cross_entropy: what is known of each, in arrays, and what is computed once a
// row, by vectors of rows. What is computed once a logit is in cross_entropy_{rows,lanes}-inl.h.
#pragma once

#include "cross_entropy_terms-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// A class target of each row.
template <class T>
struct ClassTargets {
  T *y, *weight, *picked;  // [width] class or -1 if the row does not count; w_y or 0; x_y
  T* hit;                  // backward: the gradient of -x_y
};

template <class X>
struct Batch : ClassTargets<typename X::T> {  // the target, or the first of a pair
  using T = typename X::T;
  int64_t row, n;  // rows [row, row + n); arrays are valid up to whole vectors

  ClassTargets<T> other;          // the second of a pair
  T *maximum, *sum, *dot, *mass;  // [width] the normaliser: see RunningSums
  T* loss;
  T *total, *smooth;  // backward: gradients of exp(x - m) and of -u_c x_c
  int64_t size;       // bytes

  Batch(int64_t width, Arena arena) : row(0), n(0) {
    T** const arrays[] = {&this->y, &this->weight, &this->picked, &this->hit,    &maximum,
                          &sum,     &dot,          &mass,         &loss,         &total,
                          &smooth,  &other.y,      &other.weight, &other.picked, &other.hit};
    for (T** array : arrays) *array = arena.take<T>(round_up(width, X::kLanes));
    size = arena.used;
  }

  const ClassTargets<T>& target(int64_t k) const { return k == 0 ? *this : other; }
};

// y and weight of target k. Returns the first row whose target is not a class, or -1. Classes and
// ignore_index are exact in T; a target that is not is beyond them, and stays there when it is
// rounded.
template <class X>
static int64_t read_targets(const CrossEntropyArgs& a, const LossTerms<X>& terms, int64_t k,
                            const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  const int64_t* target = a.target[k] + b.row;
  const ClassTargets<T>& of = b.target(k);
  const V ignored = X::set1(static_cast<T>(a.params->ignore_index));
  const V classes = X::set1(static_cast<T>(a.params->num_classes));
  auto wrong = X::first(0);
  for (int64_t i = 0; i < b.n; i += X::kLanes) {
    const int left = static_cast<int>(min_of(X::kLanes, b.n - i));
    const V y = X::load(target + i, left);
    const auto ignores = X::eq(y, ignored);
    const V looked_up = X::blend(ignores, X::zero(), y);
    wrong = X::either(wrong, X::either(X::gt(X::zero(), looked_up), X::ge(looked_up, classes)));
    const V none = X::set1(-1);
    X::store(of.y + i, X::blend(X::first(left), X::blend(ignores, none, y), none));
    X::store(of.weight + i,
             X::blend(X::first(left), X::blend(ignores, X::zero(), X::set1(1)), X::zero()));
  }
  if (X::any(wrong)) {
    for (int64_t i = 0;; i++) {
      const int64_t t = target[i];
      if (t != a.params->ignore_index && (t < 0 || t >= a.params->num_classes)) return b.row + i;
    }
  }
  for (int64_t i = 0; terms.weight && i < b.n; i++) {
    if (of.y[i] >= 0) of.weight[i] = terms.weight[static_cast<int64_t>(of.y[i]) - a.first_class];
  }
  return -1;
}

// Of all targets.
template <class X>
static int64_t read_targets(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                            const Batch<X>& b) {
  int64_t bad_row = -1;
  for (int64_t k = 0; k < a.params->num_targets && bad_row < 0; k++) {
    bad_row = read_targets(a, terms, k, b);
  }
  return bad_row;
}

// From here on y counts from the first class of a part, and is -1 too where it is of another.
template <class X>
static void keep_targets_of_part(const CrossEntropyArgs& a, const Batch<X>& b) {
  using T = typename X::T;
  for (int64_t k = 0; k < a.params->num_targets; k++) {
    T* const y = b.target(k).y;
    for (int64_t i = 0; i < b.n; i++) {
      y[i] -= static_cast<T>(a.first_class);
      if (!(y[i] >= 0 && y[i] < static_cast<T>(a.params->C))) y[i] = -1;
    }
  }
}

// The losses, from the normaliser and the picked logits; adds them up.
template <class X, class IO, Targets kTargets>
static void finish_losses(const CrossEntropyArgs& a, const LossTerms<X>& terms, const Batch<X>& b,
                          CrossEntropySums& sums) {
  using T = typename X::T;
  using V = typename X::V;
  const int64_t num_targets = a.params->num_targets;
  for (int64_t k = 0; k < num_targets; k++) {
    const ClassTargets<T>& of = b.target(k);
    const V lam = X::set1(static_cast<T>(a.params->lam[k]));
    V loss_sum = X::zero(), weight_sum = X::zero(), square_sum = X::zero(), count = X::zero();
    for (int64_t i = 0; i < b.n; i += X::kLanes) {
      const V log_sum = log_of_sum(X{}, X::load(b.sum + i));
      auto counts = X::first(static_cast<int>(min_of(X::kLanes, b.n - i)));
      V loss;
      if constexpr (kTargets == Targets::kProbability) {
        loss = X::sub(X::mul(X::load(b.mass + i), log_sum), X::load(b.dot + i));
      } else {
        const V weight = X::load(of.weight + i);
        weight_sum = X::add(weight_sum, weight);
        loss = X::add(X::sub(X::load(b.maximum + i), X::load(of.picked + i)), log_sum);
        loss = X::mul(X::mul(X::set1(terms.share), weight), loss);
        if constexpr (kTargets == Targets::kSmoothedIndex) {
          const V all = X::sub(X::mul(X::set1(terms.weight_sum), log_sum), X::load(b.dot + i));
          loss = X::fma(X::set1(terms.smooth), all, loss);
        }
        counts = X::ge(X::load(of.y + i), X::zero());
      }
      loss = X::blend(counts, loss, X::zero());
      loss_sum = X::add(loss_sum, loss);
      if (terms.z != 0) {
        const V lse = X::add(X::load(b.maximum + i), log_sum);
        const V square = X::blend(counts, X::mul(lse, lse), X::zero());
        square_sum = X::add(square_sum, square);
        count = X::add(count, X::blend(counts, X::set1(1), X::zero()));
        loss = X::fma(X::set1(terms.z), square, loss);
      }
      if (num_targets > 1) {
        loss = X::mul(lam, loss);
        if (k > 0) loss = X::add(X::load(b.loss + i), loss);
      }
      X::store(b.loss + i, loss);
    }
    sums.loss[k] += static_cast<double>(X::sum(loss_sum));
    sums.weight[k] += static_cast<double>(X::sum(weight_sum));
    sums.square[k] += static_cast<double>(X::sum(square_sum));
    sums.count[k] += static_cast<double>(X::sum(count));
  }
  copy_into<X>(b.maximum, static_cast<T*>(a.maximum) + b.row, b.n);
  copy_into<X>(b.sum, static_cast<T*>(a.sum) + b.row, b.n);
  if (!a.loss) return;
  if (a.loss_dtype == a.dtype) {
    copy_into<X>(b.loss, static_cast<IO*>(a.loss) + b.row, b.n);
  } else {
    copy_into<X>(b.loss, static_cast<T*>(a.loss) + b.row, b.n);
  }
}

// total, hit and smooth, from the normaliser; for probabilities mass must be there already, and
// that of a tile's rows is in its state. A row that does not count has gradients of 0, or NaN if it
// has a NaN or a sum that is none: as in PyTorch.
template <class X, Targets kTargets>
static void start_gradients(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                            const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  copy_into<X>(static_cast<const T*>(a.maximum) + b.row, b.maximum, b.n);
  copy_into<X>(static_cast<const T*>(a.sum) + b.row, b.sum, b.n);
  for (int64_t i = 0; i < b.n; i += X::kLanes) {
    const int left = static_cast<int>(min_of(X::kLanes, b.n - i));
    const V grad =
        a.grad_loss ? X::load(static_cast<const T*>(a.grad_loss) + b.row + i, left) : X::set1(1);
    const V sum = X::load(b.sum + i);
    V total = X::zero(), smooth = X::zero(), twice_lse = X::zero();
    if (terms.z != 0) {
      twice_lse = X::add(X::load(b.maximum + i), log_of_sum(X{}, sum));
      twice_lse = X::add(twice_lse, twice_lse);
    }
    for (int64_t k = 0; k < a.params->num_targets; k++) {
      const ClassTargets<T>& of = b.target(k);
      const V scaled = X::mul(grad, X::set1(static_cast<T>(a.grad_scale[k])));
      auto counts = X::first(left);
      V hit = scaled;
      if constexpr (kTargets == Targets::kProbability) {
        if (!a.mass) total = X::mul(hit, X::load(b.mass + i));
      } else {
        counts = X::ge(X::load(of.y + i), X::zero());
        hit = X::mul(X::mul(hit, X::set1(terms.share)), X::load(of.weight + i));
        hit = X::blend(counts, hit, X::zero());
        total = X::add(total, hit);
        if constexpr (kTargets == Targets::kSmoothedIndex) {
          const V spread = X::mul(scaled, X::set1(terms.smooth));
          smooth = X::add(smooth, X::blend(counts, spread, X::zero()));
        }
      }
      X::store(of.hit + i, hit);
      if (terms.z != 0) {
        const V grad_square = X::mul(grad, X::set1(static_cast<T>(a.grad_z_scale[k])));
        total = X::add(total, X::blend(counts, X::mul(grad_square, twice_lse), X::zero()));
      }
    }
    if constexpr (kTargets == Targets::kSmoothedIndex) {
      X::store(b.smooth + i, smooth);
      total = X::fma(smooth, X::set1(terms.weight_sum), total);
    }
    if (a.mass) {  // of all classes, where not all are here
      total = X::mul(grad, X::load(static_cast<const T*>(a.mass) + b.row + i, left));
    }
    if (a.grad_lse) {
      total = X::add(total, X::load(static_cast<const T*>(a.grad_lse) + b.row + i, left));
    }
    X::store(b.total + i, X::div(total, sum));
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
