// cross_entropy with classes in the lanes: for many classes that lie side by side. Rows are taken
// in groups, so that none waits for its own maximum: first all maxima of a group, then all sums.
#pragma once

#include "count-inl.h"
#include "cross_entropy_batch-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Logits that are read twice while in L1: 16 KiB of float, of one row or of several.
static constexpr int64_t kRowBlock = 4096;
static constexpr int kVectorStep = 2;        // vectors of a row that are in flight at once
static constexpr int64_t kRowsAtATime = 64;  // a multiple of every number of lanes
// From here on the lines that two rows share are few enough to stream the others.
static constexpr int64_t kStreamedRow = 2048;

// Up to kLanes neighbouring rows of a tensor.
template <class X, class IO>
struct RowGroup {
  IO* row[X::kLanes];

  RowGroup(const RowsView& view, const CrossEntropyParams& p, int64_t first, int rows) {
    if (!view.data) return;
    int64_t position = first % p.inner;
    row[0] = row_of<IO>(view, p, first);
    for (int r = 1; r < rows; r++) {
      row[r] =
          ++position < p.inner ? row[r - 1] + view.inner_stride : row_of<IO>(view, p, first + r);
      if (position == p.inner) position = 0;
    }
  }
};

// The n <= kLanes numbers at p, then `rest`.
template <class X, class IO>
[[gnu::always_inline]] static inline typename X::V load_tail(const IO* p, int n,
                                                             typename X::T rest) {
  return n == X::kLanes ? X::load(p) : X::blend(X::first(n), X::load(p, n), X::set1(rest));
}

// How n classes are walked: steps of kVectorStep vectors up to `last`, and from there on a step of
// 1 to kVectorStep, the last of which has `tail` lanes.
template <class X>
struct Steps {
  int64_t last;
  int tail;

  Steps(int64_t n, int last_vectors)
      : last((ceil_div(n, X::kLanes) - last_vectors) * X::kLanes),
        tail(static_cast<int>((n - 1) % X::kLanes + 1)) {}

  static int last_vectors(int64_t n) {
    return static_cast<int>((ceil_div(n, X::kLanes) - 1) % kVectorStep + 1);
  }
};

template <class X, int kVectors, class IO>
[[gnu::always_inline]] static inline void step_maximum(const IO* x, int tail,
                                                       typename X::V (&m)[kVectorStep]) {
#pragma GCC unroll 2
  for (int k = 0; k < kVectors; k++) {
    const int n = k + 1 < kVectors ? X::kLanes : tail;
    m[k] = X::max(load_tail<X>(x + k * X::kLanes, n, -__builtin_inff()), m[k]);
  }
}

// By lane: the maximum is over the result's lanes.
template <class X, int kLast, class IO>
[[gnu::always_inline]] static inline typename X::V block_maximum(const IO* x, int64_t n) {
  const Steps<X> steps(n, kLast);
  typename X::V m[kVectorStep];
  for (auto& part : m) part = minus_infinity<X>();
  for (int64_t c = 0; c < steps.last; c += kVectorStep * X::kLanes) {
    step_maximum<X, kVectorStep>(x + c, X::kLanes, m);
  }
  step_maximum<X, kLast>(x + steps.last, steps.tail, m);
  return X::max(m[0], m[1]);
}

// Lane r is the sum, or the maximum, of part[r]'s lanes; 0 from `rows` on. Sums are X::sum's.
template <class X, bool kMaximum>
[[gnu::noinline]] static typename X::V reduce_each(typename X::V (&part)[X::kLanes], int rows) {
  if (rows == X::kLanes) {
    X::transpose(part);
#pragma GCC unroll 8
    for (int half = X::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < half; i++) {
        part[i] = kMaximum ? X::max(part[i], part[i + half]) : X::add(part[i], part[i + half]);
      }
    }
    return part[0];
  }
  typename X::T lanes[X::kLanes] = {};
  for (int r = 0; r < rows; r++) lanes[r] = kMaximum ? X::max(part[r]) : X::sum(part[r]);
  return X::load(lanes);
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

// keep: where the exponentials of the row's classes go, or null.
template <class X, class IO, Targets kTargets, int kVectors>
[[gnu::always_inline]] static inline void step_sums(const LossTerms<X>& terms, const IO* x,
                                                    const IO* t, int64_t c, int tail,
                                                    typename X::T reference, typename X::T* keep,
                                                    RunningSums<X, kTargets>& sums) {
  using V = typename X::V;
#pragma GCC unroll 2
  for (int k = 0; k < kVectors; k++, c += X::kLanes) {
    const int n = k + 1 < kVectors ? X::kLanes : tail;
    // What is read next where rows lie side by side: arithmetic hides the way from memory.
    __builtin_prefetch(x + c + kRowBlock);
    V d = X::sub(load_tail<X>(x + c, n, -__builtin_inff()), X::set1(reference));
    const V e = exp_of_difference(X{}, d);
    if (keep) X::store(keep + c, e, n);
    sums.sum = X::add(sums.sum, e);
    if constexpr (sums.kWeighs) {  // no weight beyond the row, but 0 * -inf would be NaN
      d = X::sub(load_tail<X>(x + c, n, reference), X::set1(reference));
      sums.weigh(class_weights<X, IO, kTargets>(terms, t, c, n), d);
    }
  }
}

// The sums of classes [c0, c0 + n) of a row, by lane.
template <class X, class IO, Targets kTargets, int kLast>
[[gnu::always_inline]] static inline RunningSums<X, kTargets> block_sums(const LossTerms<X>& terms,
                                                                         const IO* x, const IO* t,
                                                                         int64_t c0, int64_t n,
                                                                         typename X::T reference,
                                                                         typename X::T* keep) {
  const Steps<X> steps(n, kLast);
  auto sums = RunningSums<X, kTargets>::nothing();
  for (int64_t c = 0; c < steps.last; c += kVectorStep * X::kLanes) {
    step_sums<X, IO, kTargets, kVectorStep>(terms, x, t, c0 + c, X::kLanes, reference, keep, sums);
  }
  step_sums<X, IO, kTargets, kLast>(terms, x, t, c0 + steps.last, steps.tail, reference, keep,
                                    sums);
  return sums;
}

// The normaliser of rows [i, i + rows) over classes [c0, c0 + n). kKeep: exponentials go to `keep`.
template <class X, class IO, Targets kTargets, int kLast, bool kKeep>
static void normalise_classes(const LossTerms<X>& terms, const RowGroup<X, const IO>& x,
                              const RowGroup<X, const IO>& t,
                              const RowGroup<X, typename X::T>& keep, int64_t c0, int64_t n,
                              const Batch<X>& b, int64_t i, int rows) {
  using V = typename X::V;
  constexpr int kL = X::kLanes;
  V part[kL];
  for (int r = 0; r < rows; r++) part[r] = block_maximum<X, kLast>(x.row[r] + c0, n);
  const V before = c0 ? X::load(b.maximum + i, rows) : minus_infinity<X>();
  const V maximum = X::max(reduce_each<X, true>(part, rows), before);
  const V reference = reference_of<X>(maximum);
  typename X::T references[kL];
  X::store(references, reference);

  V dot[kL], mass[kL];
  for (int r = 0; r < rows; r++) {
    const auto sums = block_sums<X, IO, kTargets, kLast>(
        terms, x.row[r], t.row[r], c0, n, references[r], kKeep ? keep.row[r] : nullptr);
    part[r] = sums.sum;
    if constexpr (sums.kWeighs) {
      dot[r] = sums.dot;
      mass[r] = sums.mass;
    }
  }
  auto block = RunningSums<X, kTargets>::nothing();
  block.sum = reduce_each<X, false>(part, rows);
  if constexpr (block.kWeighs) {
    block.dot = reduce_each<X, false>(dot, rows);
    block.mass = reduce_each<X, false>(mass, rows);
  }
  if (c0) {
    auto sums = RunningSums<X, kTargets>::nothing();
    sums.sum = X::load(b.sum + i, rows);
    if constexpr (sums.kWeighs) {
      sums.dot = X::load(b.dot + i, rows);
      sums.mass = X::load(b.mass + i, rows);
    }
    sums.rescale(before, reference);
    block.add(sums);
  }
  X::store(b.maximum + i, maximum, rows);
  X::store(b.sum + i, block.sum, rows);
  if constexpr (block.kWeighs) {
    X::store(b.dot + i, block.dot, rows);
    X::store(b.mass + i, block.mass, rows);
  }
}

// x_y of rows [i, i + rows), or 0 for a row that does not count.
template <class X, class IO>
static inline void pick_logits(const RowGroup<X, const IO>& x,
                               const ClassTargets<typename X::T>& of, int64_t i, int rows) {
  for (int r = 0; r < rows; r++) {
    const auto y = static_cast<int64_t>(of.y[i + r]);
    of.picked[i + r] = y < 0 ? typename X::T(0) : widen(x.row[r][y]);
  }
}

// Whether the forward pass leaves exponentials where the gradient will be: if it is to follow while
// they are in the cache, and all were taken from one maximum.
template <class X, class IO>
static bool keeps_exponentials(const CrossEntropyArgs& a) {
  return kSameType<IO, typename X::T> && a.params->C <= kRowBlock && !a.streams &&
         a.grad_logits.data;
}

template <class X, class IO, Targets kTargets>
static void normalise_rows(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                           const Batch<X>& b) {
  const CrossEntropyParams& p = *a.params;
  const bool keeps = keeps_exponentials<X, IO>(a);
  const RowsView kept = keeps ? a.grad_logits : RowsView{};
  const int64_t group = max_of(1, min_of(X::kLanes, kRowBlock / p.C));
  const auto last_block = with_count<kVectorStep>(Steps<X>::last_vectors(p.C), [=](auto n) {
    return keeps ? normalise_classes<X, IO, kTargets, decltype(n)::kValue, true>
                 : normalise_classes<X, IO, kTargets, decltype(n)::kValue, false>;
  });
  for (int64_t i = 0; i < b.n; i += group) {
    const int rows = static_cast<int>(min_of(group, b.n - i));
    const RowGroup<X, const IO> x(a.logits, p, b.row + i, rows);
    const RowGroup<X, const IO> t(a.probabilities, p, b.row + i, rows);
    const RowGroup<X, typename X::T> keep(kept, p, b.row + i, rows);
    int64_t c = 0;
    for (; c + kRowBlock < p.C; c += kRowBlock) {
      normalise_classes<X, IO, kTargets, kVectorStep, false>(terms, x, t, keep, c, kRowBlock, b, i,
                                                             rows);
    }
    last_block(terms, x, t, keep, c, p.C - c, b, i, rows);
    for (int64_t k = 0; kTargets != Targets::kProbability && k < p.num_targets; k++) {
      pick_logits<X, IO>(x, b.target(k), i, rows);
    }
  }
}

// The normaliser of a batch, of those of the parts of its classes, in their order.
template <class X, class IO, Targets kTargets>
static void join_parts(const CrossEntropyArgs& a, const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  const CrossEntropyParams& p = *a.params;
  const int64_t rows = p.outer * p.inner;
  for (int64_t i = 0; i < b.n; i += X::kLanes) {
    const int left = static_cast<int>(min_of(X::kLanes, b.n - i));
    auto sums = RunningSums<X, kTargets>::nothing();
    V maximum = minus_infinity<X>();
    for (int64_t k = 0; k < a.num_parts; k++) {
      const T* const part = static_cast<const T*>(a.parts) + 4 * k * rows + b.row + i;
      const V part_maximum = X::load(part, left), before = maximum;
      maximum = X::max(part_maximum, before);
      const V reference = reference_of<X>(maximum);
      auto of_part = RunningSums<X, kTargets>::nothing();
      of_part.sum = X::load(part + rows, left);
      if constexpr (of_part.kWeighs) {
        of_part.dot = X::load(part + 2 * rows, left);
        of_part.mass = X::load(part + 3 * rows, left);
      }
      sums.rescale(before, reference);
      of_part.rescale(part_maximum, reference);
      sums.add(of_part);
    }
    X::store(b.maximum + i, maximum);
    X::store(b.sum + i, sums.sum);
    X::store(b.dot + i, sums.dot);
    X::store(b.mass + i, sums.mass);
    const RowGroup<X, const IO> x(a.logits, p, b.row + i, left);
    for (int64_t k = 0; k < p.num_targets; k++) pick_logits<X, IO>(x, b.target(k), i, left);
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

// The gradient of row i of a batch, without what x_y adds. kKept: from exponentials at x.
template <class X, class IO, Targets kTargets, bool kKept>
[[gnu::always_inline]] static inline void gradient_row(const LossTerms<X>& terms, const Batch<X>& b,
                                                       int64_t i, bool streams, int64_t C,
                                                       const IO* x, const IO* t, IO* out) {
  using T = typename X::T;
  using V = typename X::V;
  constexpr int kL = X::kLanes;
  const V maximum = X::set1(b.maximum[i]), total = X::set1(b.total[i]);
  V weighed = X::zero();  // the gradient of -u_c x_c
  if constexpr (kTargets == Targets::kProbability) weighed = X::set1(b.hit[i]);
  if constexpr (kTargets == Targets::kSmoothedIndex) weighed = X::set1(b.smooth[i]);
  const auto gradient = [&](V g, int64_t c, int n) {
    if constexpr (!kKept) g = exp_of_difference(X{}, X::sub(g, maximum));
    g = X::mul(total, g);
    if constexpr (kTargets != Targets::kIndex) {
      g = X::sub(g, X::mul(weighed, class_weights<X, IO, kTargets>(terms, t, c, n)));
    }
    return g;
  };
  int64_t c = 0;
  if constexpr (kSameType<IO, T>) {
    if (streams) {  // from the first aligned vector on
      const auto past = reinterpret_cast<uintptr_t>(out) % sizeof(V);
      const int head = static_cast<int>((sizeof(V) - past) % sizeof(V) / sizeof(T));
      X::store(out, gradient(X::load(x, head), 0, head), head);
      for (c = head; c + kL <= C; c += kL) X::stream(out + c, gradient(X::load(x + c), c, kL));
    }
  }
  for (; c + kL <= C; c += kL) X::store(out + c, gradient(X::load(x + c), c, kL));
  if (c < C) {
    const int n = static_cast<int>(C - c);
    X::store(out + c, gradient(X::load(x + c, n), c, n), n);
  }
}

// picked of rows [i, i + rows) becomes the gradient of x_y: anew from the logit, since 1 - p must
// not be rounded twice, and before a row is written, since that may be where its logits are.
template <class X, class IO, Targets kTargets>
static void pick_gradients(const RowGroup<X, const IO>& x, const Batch<X>& b,
                           const ClassTargets<typename X::T>& of, int64_t i, int rows) {
  using V = typename X::V;
  pick_logits<X, IO>(x, of, i, rows);
  const V d = X::sub(X::load(of.picked + i), X::load(b.maximum + i));
  V grad = X::mul(X::load(b.total + i), exp_of_difference(X{}, d));
  if constexpr (kTargets == Targets::kSmoothedIndex) {
    grad = X::sub(grad, X::mul(X::load(b.smooth + i), X::load(of.weight + i)));
  }
  X::store(of.picked + i, X::sub(grad, X::load(of.hit + i)));
}

// kKept: the exponentials are where the gradient will be.
template <class X, class IO, Targets kTargets, bool kKept = false>
static void gradient_rows(const CrossEntropyArgs& a, const LossTerms<X>& terms, const Batch<X>& b) {
  using T = typename X::T;
  constexpr int64_t kL = X::kLanes;
  const CrossEntropyParams& p = *a.params;
  const bool streams = a.streams && p.C >= kStreamedRow;
  for (int64_t first = 0; first < b.n; first += kL) {
    const int rows = static_cast<int>(min_of(kL, b.n - first));
    const RowGroup<X, const IO> x(kKept ? a.grad_logits : a.logits, p, b.row + first, rows);
    const RowGroup<X, const IO> t(a.probabilities, p, b.row + first, rows);
    const RowGroup<X, IO> out(a.grad_logits, p, b.row + first, rows);
    // Only where it is needed: here x_y is a cache miss, after its row it is not.
    constexpr bool kAnew = kTargets != Targets::kProbability && !kSameType<IO, T>;
    for (int64_t k = 0; kAnew && k < p.num_targets; k++) {
      pick_gradients<X, IO, kTargets>(x, b, b.target(k), first, rows);
    }
    for (int r = 0; r < rows; r++) {
      const int64_t i = first + r;
      if constexpr (kTargets != Targets::kProbability) {
        const bool smooths = kTargets == Targets::kSmoothedIndex && b.smooth[i] != 0;
        if (b.total[i] == 0 && b.y[i] < 0 && !smooths) {  // nothing counts, and there is no NaN
          fill_zero(out.row[r], p.C);
          continue;
        }
      }
      gradient_row<X, IO, kTargets, kKept>(terms, b, i, streams, p.C, x.row[r], t.row[r],
                                           out.row[r]);
      if constexpr (kTargets != Targets::kProbability) {
        for (int64_t k = 0; k < p.num_targets; k++) {
          const ClassTargets<T>& of = b.target(k);
          if (of.y[i] < 0) continue;
          IO* const hit = out.row[r] + static_cast<int64_t>(of.y[i]);
          if constexpr (kAnew) {
            const T both = k > 0 && of.y[i] == b.y[i] ? b.hit[i] : T(0);
            X::store(hit, X::set1(of.picked[i] - both), 1);
          } else {
            *hit -= of.hit[i];
          }
        }
      }
    }
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
