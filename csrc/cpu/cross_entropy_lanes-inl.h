// The lanes kernel of cross_entropy: a tile [classes][rows] in L1, lanes are rows. For few classes,
// which are transposed on their way into the tile, and for classes that lie a plane apart (NCHW).
// It needs no horizontal sums and takes all logarithms of a tile at once. The tile also keeps
// planes a power of two apart from evicting one another: every logit is read from where it lies
// once.
#pragma once

#include "cross_entropy_terms-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

struct LanesPlan {
  static constexpr int64_t kElements = 8192;  // of a tile: 32 KiB of float
  int64_t width, classes;                     // of a tile; rows are a whole number of vectors

  explicit LanesPlan(int64_t C) : width(256) {
    while (width > 64 && width * C > kElements) width /= 2;
    classes = min_of(C, kElements / width);
  }
};

template <class X>
struct LanesScratch {
  using T = typename X::T;
  T *tile, *targets;              // [classes][width], each
  T *maximum, *sum, *dot, *mass;  // [width] from here on: the running normaliser
  T *counts, *weight, *picked;    // 1 or 0 if ignored; w_y or 0; x_y
  T* loss;
  T *total, *hit, *smooth;  // backward: gradients of exp(x - m), -x_y and -w_c x_c
  int64_t size;

  LanesScratch(const CrossEntropyArgs& a, const LanesPlan& plan, void* base) {
    Arena arena{static_cast<char*>(base)};
    tile = arena.take<T>(plan.classes * plan.width);
    targets = arena.take<T>(a.target ? 0 : plan.classes * plan.width);
    T** const arrays[] = {&maximum, &sum,  &dot,   &mass, &counts, &weight,
                          &picked,  &loss, &total, &hit,  &smooth};
    for (T** array : arrays) *array = arena.take<T>(plan.width);
    size = arena.used;
  }
};

// Classes [c0, c0 + classes) of rows [row, row + n) between memory and a tile. A tile may span
// several samples.
template <class X, class IO, bool kToTile>
static void move_tile(const RowsView& view, const CrossEntropyParams& p, int64_t row, int64_t n,
                      int64_t c0, int64_t classes, typename X::T* tile, int64_t width) {
  for (int64_t done = 0; done < n;) {
    const int64_t rows = min_of(n - done, p.inner - (row + done) % p.inner);
    IO* outside = row_of<IO>(view, p, row + done) + c0 * view.class_stride;
    typename X::T* inside = tile + done;
    done += rows;
    if (view.inner_stride == 1 && (view.class_stride != 1 || rows > 1)) {
      for (int64_t c = 0; c < classes; c++) {
        if constexpr (kToTile) {
          copy_into<X>(outside + c * view.class_stride, inside + c * width, rows);
        } else {
          copy_into<X>(inside + c * width, outside + c * view.class_stride, rows);
        }
      }
    } else if constexpr (kToTile) {
      copy_matrix<X>(outside, view.inner_stride, view.class_stride, inside, 1, width, rows,
                     classes);
    } else {
      copy_matrix<X>(inside, 1, width, outside, view.inner_stride, view.class_stride, rows,
                     classes);
    }
  }
}

// counts, weight and picked of rows [row, row + n).
// Returns the first row whose target is not a class, or -1.
template <class X, class IO>
static int64_t read_targets(const CrossEntropyArgs& a, const LossTerms<X>& terms, int64_t row,
                            int64_t n, const LanesScratch<X>& s) {
  const CrossEntropyParams& p = *a.params;
  int64_t position = row % p.inner;
  const IO* x = row_of<const IO>(a.logits, p, row);
  for (int64_t i = 0; i < n; i++) {
    const IndexTarget target(p, a.target[row + i]);
    if (!target.valid) return row + i;
    s.counts[i] = target.counts ? 1 : 0;
    s.weight[i] = target.counts ? terms.weight_of(target.y) : 0;
    s.picked[i] = widen(x[target.y * a.logits.class_stride]);
    x += a.logits.inner_stride;
    if (++position == p.inner) {
      position = 0;
      x = row_of<const IO>(a.logits, p, row + i + 1);
    }
  }
  return -1;
}

template <class X, class IO, Targets kTargets>
static CrossEntropySums forward_lanes(const CrossEntropyArgs& a, int64_t begin, int64_t end,
                                      void* base) {
  using T = typename X::T;
  using V = typename X::V;
  const CrossEntropyParams& p = *a.params;
  const LanesPlan plan(p.C);
  const LanesScratch<X> s(a, plan, base);
  const LossTerms<X> terms(a);
  const int64_t width = plan.width;
  CrossEntropySums sums{0, 0, -1};

  for (int64_t row = begin; row < end; row += width) {
    const int64_t n = min_of(width, end - row);
    if constexpr (kTargets != Targets::kProbability) {
      sums.bad_row = read_targets<X, IO>(a, terms, row, n, s);
      if (sums.bad_row >= 0) return sums;
    }

    for (int64_t c0 = 0; c0 < p.C; c0 += plan.classes) {
      const int64_t classes = min_of(plan.classes, p.C - c0);
      move_tile<X, const IO, true>(a.logits, p, row, n, c0, classes, s.tile, width);
      if constexpr (kTargets == Targets::kProbability) {
        move_tile<X, const IO, true>(a.probabilities, p, row, n, c0, classes, s.targets, width);
      }
      // The last vector may reach beyond n, where whatever is computed is never read.
      for (int64_t i = 0; i < n; i += X::kLanes) {
        const T* x = s.tile + i;
        const V before = c0 ? X::load(s.maximum + i) : minus_infinity<X>();
        V maximum = before;
        for (int64_t c = 0; c < classes; c++) maximum = X::max(X::load(x + c * width), maximum);
        const V reference = reference_of<X>(maximum);

        auto block = RunningSums<X, kTargets>::nothing();
        for (int64_t c = 0; c < classes; c++) {
          const V d = X::sub(X::load(x + c * width), reference);
          block.sum = X::add(block.sum, exp_of_difference(X{}, d));
          if constexpr (block.kWeighs) {
            V u = X::set1(terms.weight_of(c0 + c));
            if constexpr (kTargets == Targets::kProbability) {
              u = terms.probability_term(X::load(s.targets + c * width + i), u);
            }
            block.weigh(u, d);
          }
        }
        auto running = RunningSums<X, kTargets>::nothing();
        if (c0) {
          running.sum = X::load(s.sum + i);
          if constexpr (running.kWeighs) {
            running.dot = X::load(s.dot + i);
            running.mass = X::load(s.mass + i);
          }
          running.rescale(before, reference);
        }
        running.add(block);
        X::store(s.maximum + i, maximum);
        X::store(s.sum + i, running.sum);
        if constexpr (running.kWeighs) {
          X::store(s.dot + i, running.dot);
          X::store(s.mass + i, running.mass);
        }
      }
    }

    V loss_sum = X::zero(), weight_sum = X::zero();
    for (int64_t i = 0; i < n; i += X::kLanes) {
      const int left = static_cast<int>(min_of(X::kLanes, n - i));
      const V log_sum = log_of_sum(X{}, X::load(s.sum + i));
      V loss;
      if constexpr (kTargets == Targets::kProbability) {
        loss = X::sub(X::mul(X::load(s.mass + i), log_sum), X::load(s.dot + i));
      } else {
        const V weight = X::load(s.weight + i, left);
        weight_sum = X::add(weight_sum, weight);
        loss = X::add(X::sub(X::load(s.maximum + i), X::load(s.picked + i)), log_sum);
        loss = X::mul(X::mul(X::set1(terms.share), weight), loss);
        if constexpr (kTargets == Targets::kSmoothedIndex) {
          const V all = X::sub(X::mul(X::set1(terms.weight_sum), log_sum), X::load(s.dot + i));
          loss = X::fma(X::set1(terms.smooth), all, loss);
        }
        loss = X::blend(X::eq(X::load(s.counts + i), X::zero()), X::zero(), loss);
      }
      X::store(s.loss + i, loss);
      loss_sum = X::add(loss_sum, X::load(s.loss + i, left));
    }
    sums.loss += static_cast<double>(X::sum(loss_sum));
    sums.weight += static_cast<double>(X::sum(weight_sum));
    copy_into<X>(s.maximum, static_cast<T*>(a.maximum) + row, n);
    copy_into<X>(s.sum, static_cast<T*>(a.sum) + row, n);
    write_losses<X, IO>(a, s.loss, row, n);
  }
  return sums;
}

// mass of rows [row, row + n). Leaves the targets of a single block of classes in the tile.
template <class X, class IO>
static void sum_probabilities(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                              const LanesPlan& plan, int64_t row, int64_t n,
                              const LanesScratch<X>& s) {
  const CrossEntropyParams& p = *a.params;
  fill_zero(s.mass, plan.width);
  for (int64_t c0 = 0; c0 < p.C; c0 += plan.classes) {
    const int64_t classes = min_of(plan.classes, p.C - c0);
    move_tile<X, const IO, true>(a.probabilities, p, row, n, c0, classes, s.targets, plan.width);
    for (int64_t i = 0; i < n; i += X::kLanes) {
      auto mass = X::load(s.mass + i);
      for (int64_t c = 0; c < classes; c++) {
        const auto w = X::set1(terms.weight_of(c0 + c));
        mass = X::add(mass, terms.probability_term(X::load(s.targets + c * plan.width + i), w));
      }
      X::store(s.mass + i, mass);
    }
  }
}

template <class X, class IO, Targets kTargets>
static int64_t backward_lanes(const CrossEntropyArgs& a, int64_t begin, int64_t end, void* base) {
  using T = typename X::T;
  using V = typename X::V;
  const CrossEntropyParams& p = *a.params;
  const LanesPlan plan(p.C);
  const LanesScratch<X> s(a, plan, base);
  const LossTerms<X> terms(a);
  const int64_t width = plan.width;
  const bool one_block = plan.classes == p.C;

  for (int64_t row = begin; row < end; row += width) {
    const int64_t n = min_of(width, end - row);
    copy_into<X>(static_cast<const T*>(a.maximum) + row, s.maximum, n);
    copy_into<X>(static_cast<const T*>(a.sum) + row, s.sum, n);
    if constexpr (kTargets == Targets::kProbability) {
      sum_probabilities<X, IO>(a, terms, plan, row, n, s);
    }
    for (int64_t i = 0; i < n; i++) {
      const T grad =
          a.grad_loss ? static_cast<const T*>(a.grad_loss)[row + i] : static_cast<T>(a.grad_scale);
      if constexpr (kTargets == Targets::kProbability) {
        s.hit[i] = grad;
        s.total[i] = grad * s.mass[i] / s.sum[i];
      } else {
        const IndexTarget target(p, a.target[row + i]);
        if (!target.valid) return row + i;
        s.hit[i] = target.counts ? grad * terms.share * terms.weight_of(target.y) : 0;
        s.smooth[i] = target.counts ? grad * terms.smooth : 0;
        const T total =
            kTargets == Targets::kIndex ? s.hit[i] : s.hit[i] + s.smooth[i] * terms.weight_sum;
        s.total[i] = total / s.sum[i];  // NaN, not 0, if an ignored row has a NaN: as in PyTorch
      }
    }

    for (int64_t c0 = 0; c0 < p.C; c0 += plan.classes) {
      const int64_t classes = min_of(plan.classes, p.C - c0);
      move_tile<X, const IO, true>(a.logits, p, row, n, c0, classes, s.tile, width);
      if (kTargets == Targets::kProbability && !one_block) {
        move_tile<X, const IO, true>(a.probabilities, p, row, n, c0, classes, s.targets, width);
      }
      for (int64_t i = 0; i < n; i += X::kLanes) {
        T* x = s.tile + i;
        const V maximum = X::load(s.maximum + i), total = X::load(s.total + i);
        for (int64_t c = 0; c < classes; c++) {
          V grad = X::mul(total, exp_of_difference(X{}, X::sub(X::load(x + c * width), maximum)));
          if constexpr (kTargets == Targets::kSmoothedIndex) {
            grad = X::sub(grad, X::mul(X::load(s.smooth + i), X::set1(terms.weight_of(c0 + c))));
          } else if constexpr (kTargets == Targets::kProbability) {
            const V u = terms.probability_term(X::load(s.targets + c * width + i),
                                               X::set1(terms.weight_of(c0 + c)));
            grad = X::sub(grad, X::mul(X::load(s.hit + i), u));
          }
          X::store(x + c * width, grad);
        }
      }
      if constexpr (kTargets !=
                    Targets::kProbability) {  // before rounding, or 1 - p is lost in bfloat16
        for (int64_t i = 0; i < n; i++) {
          const IndexTarget target(p, a.target[row + i]);
          if (target.y >= c0 && target.y < c0 + classes)
            s.tile[(target.y - c0) * width + i] -= s.hit[i];
        }
      }
      move_tile<X, IO, false>(a.grad_logits, p, row, n, c0, classes, s.tile, width);
    }
  }
  return -1;
}

}  // namespace imgfast::cpu::IMGFAST_ISA
