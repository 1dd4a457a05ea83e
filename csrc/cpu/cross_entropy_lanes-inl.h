// cross_entropy with rows in the lanes: for few classes, which are transposed on their way into a
// tile [classes][rows] in L1, and for classes that lie a plane apart (NCHW), which are read where
// they are. There are no horizontal sums, and every logit comes from memory once: a block of
// classes is in registers while its maximum is taken and then its exponentials, so that planes a
// power of two apart, which evict one another from the cache, do no harm.
#pragma once

#include "count-inl.h"
#include "cross_entropy_batch-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

static constexpr int kClassBlock = 8;  // of which the logits of a vector of rows are in registers
static constexpr int64_t kTileElements = 8192;  // 32 KiB of float
static constexpr int64_t kTileRows = 256;       // a multiple of every number of lanes

// [classes][rows] in a tile or in a tensor.
template <class T>
struct Planes {
  T* data;
  int64_t stride;  // from class to class

  operator Planes<const T>() const { return {data, stride}; }
};

// The normaliser and the picked logit of n rows, over kClasses more classes from c0 on. t: of
// probability targets.
template <class X, Targets kTargets, int kClasses>
static void normalise_block(const LossTerms<X>& terms, Planes<const typename X::T> x,
                            Planes<const typename X::T> t, int64_t c0, const Batch<X>& b) {
  using V = typename X::V;
  const typename X::T* weight = terms.weight ? terms.weight + c0 : nullptr;
  for (int64_t i = 0; i < b.n; i += X::kLanes) {
    V logit[kClasses];
#pragma GCC unroll 8
    for (int k = 0; k < kClasses; k++) logit[k] = X::load(x.data + k * x.stride + i);
    const V before = c0 ? X::load(b.maximum + i) : minus_infinity<X>();
    V maximum = before;
#pragma GCC unroll 8
    for (int k = 0; k < kClasses; k++) maximum = X::max(logit[k], maximum);
    const V reference = reference_of<X>(maximum);

    auto block = RunningSums<X, kTargets>::nothing();
    V picked = X::zero(), y = X::zero();
    if constexpr (kTargets != Targets::kProbability) {
      picked = c0 ? X::load(b.picked + i) : X::zero();
      y = X::load(b.y + i);
    }
#pragma GCC unroll 8
    for (int k = 0; k < kClasses; k++) {
      const V d = X::sub(logit[k], reference);
      block.sum = X::add(block.sum, exp_of_difference(X{}, d));
      if constexpr (block.kWeighs) {
        V u = X::set1(weight ? weight[k] : 1);
        if constexpr (kTargets == Targets::kProbability) {
          u = terms.probability_term(X::load(t.data + k * t.stride + i), u);
        }
        block.weigh(u, d);
      }
      if constexpr (kTargets != Targets::kProbability) {
        const auto here = X::eq(y, X::set1(static_cast<typename X::T>(c0 + k)));
        picked = X::blend(here, logit[k], picked);
      }
    }
    if (c0) {
      auto sums = RunningSums<X, kTargets>::nothing();
      sums.sum = X::load(b.sum + i);
      if constexpr (sums.kWeighs) {
        sums.dot = X::load(b.dot + i);
        sums.mass = X::load(b.mass + i);
      }
      sums.rescale(before, reference);
      block.add(sums);
    }
    X::store(b.maximum + i, maximum);
    X::store(b.sum + i, block.sum);
    if constexpr (block.kWeighs) {
      X::store(b.dot + i, block.dot);
      X::store(b.mass + i, block.mass);
    }
    if constexpr (kTargets != Targets::kProbability) X::store(b.picked + i, picked);
  }
}

template <class X, Targets kTargets>
static void normalise_planes(const LossTerms<X>& terms, Planes<const typename X::T> x,
                             Planes<const typename X::T> t, int64_t c0, int64_t classes,
                             const Batch<X>& b) {
  for (int64_t c = 0; c < classes; c += kClassBlock) {
    const auto block = with_count<kClassBlock>(
        classes - c, [](auto n) { return normalise_block<X, kTargets, decltype(n)::kValue>; });
    block(terms, {x.data + c * x.stride, x.stride}, {t.data + c * t.stride, t.stride}, c0 + c, b);
  }
}

// The gradient, from planes to planes, which may be the same.
template <class X, Targets kTargets, bool kStream>
static void gradient_planes(const LossTerms<X>& terms, Planes<const typename X::T> x,
                            Planes<const typename X::T> t, int64_t c0, int64_t classes,
                            const Batch<X>& b, Planes<typename X::T> out) {
  using V = typename X::V;
  for (int64_t c = 0; c < classes; c++) {
    const typename X::T* from = x.data + c * x.stride;
    typename X::T* to = out.data + c * out.stride;
    const V w = X::set1(terms.weight_of(c0 + c));
    const V here = X::set1(static_cast<typename X::T>(c0 + c));
    for (int64_t i = 0; i < b.n; i += X::kLanes) {
      const V d = X::sub(X::load(from + i), X::load(b.maximum + i)), hit = X::load(b.hit + i);
      V grad = X::mul(X::load(b.total + i), exp_of_difference(X{}, d));
      if constexpr (kTargets == Targets::kProbability) {
        const V u = terms.probability_term(X::load(t.data + c * t.stride + i), w);
        grad = X::sub(grad, X::mul(hit, u));
      } else {
        if constexpr (kTargets == Targets::kSmoothedIndex) {
          grad = X::sub(grad, X::mul(X::load(b.smooth + i), w));
        }
        grad = X::blend(X::eq(X::load(b.y + i), here), X::sub(grad, hit), grad);
      }
      if constexpr (kStream) {
        X::stream(to + i, grad);
      } else {
        X::store(to + i, grad);
      }
    }
  }
}

// Between dense rows [rows][C] of very few classes and planes: every vector of the one side is put
// together from the C vectors of the other, where a square transpose would mostly move nothing.
template <class X>
struct Interleave {
  using T = typename X::T;
  using V = typename X::V;
  using M = typename X::M;
  static constexpr int64_t kMost = X::kPermutes ? 4 : 0;  // C * C permutations a vector of rows

  int64_t C;                      // 0 if there are too many
  V index[2][kMost * kMost + 1];  // to planes [plane][vector of rows], to rows the other way round
  M mask[2][kMost * kMost + 1];

  void prepare(int64_t classes) {
    C = classes <= kMost ? classes : 0;
    if constexpr (kMost > 0) {
      for (int64_t part = 0; part < 2 * C * C; part++) {
        const int64_t to = part / C % C, from = part % C;
        uint8_t lane[X::kLanes];
        T belongs[X::kLanes];
        for (int64_t i = 0; i < X::kLanes; i++) {
          // The element's place among the rows, and its plane.
          const int64_t place = part < C * C ? i * C + to : to * X::kLanes + i;
          lane[i] = static_cast<uint8_t>(part < C * C ? place % X::kLanes : place / C);
          belongs[i] = (part < C * C ? place / X::kLanes : place % C) == from;
        }
        index[part / (C * C)][part % (C * C)] = X::load_integers(lane, X::kLanes);
        mask[part / (C * C)][part % (C * C)] = X::gt(X::load(belongs), X::zero());
      }
    }
  }

  // kLanes rows, `step` apart from vector to vector on either side.
  template <bool kToPlanes>
  void move(const T* from, int64_t from_step, T* to, int64_t to_step) const {
    if constexpr (kMost > 0) {
      for (int64_t j = 0; j < C; j++) {
        V joined = X::zero();
        for (int64_t k = 0; k < C; k++) {
          const V moved =
              X::permute(X::load(from + k * from_step), index[kToPlanes ? 0 : 1][j * C + k]);
          joined = X::blend(mask[kToPlanes ? 0 : 1][j * C + k], moved, joined);
        }
        X::store(to + j * to_step, joined);
      }
    }
  }
};

// Classes [c0, c0 + classes) of a batch between memory and a tile. A batch may span several
// samples.
template <class X, class IO, bool kToTile>
static void move_tile(const RowsView& view, const CrossEntropyParams& p, const Batch<X>& b,
                      int64_t c0, int64_t classes, const Interleave<X>& interleave,
                      Planes<typename X::T> tile) {
  for (int64_t done = 0; done < b.n;) {
    const int64_t rows = min_of(b.n - done, p.inner - (b.row + done) % p.inner);
    IO* outside = row_of<IO>(view, p, b.row + done) + c0 * view.class_stride;
    typename X::T* inside = tile.data + done;
    if constexpr (kSameType<IO, typename X::T> || kSameType<IO, const typename X::T>) {
      if (interleave.C == classes && view.class_stride == 1 && view.inner_stride == classes &&
          rows >= X::kLanes) {
        for (int64_t i = 0; i + X::kLanes <= rows; i += X::kLanes) {
          if constexpr (kToTile) {
            interleave.template move<true>(outside + i * classes, X::kLanes, inside + i,
                                           tile.stride);
          } else {
            interleave.template move<false>(inside + i, tile.stride, outside + i * classes,
                                            X::kLanes);
          }
        }
        done += rows / X::kLanes * X::kLanes;
        continue;
      }
    }
    done += rows;
    if (view.inner_stride == 1 && (view.class_stride != 1 || rows > 1)) {
      for (int64_t c = 0; c < classes; c++) {
        if constexpr (kToTile) {
          copy_into<X>(outside + c * view.class_stride, inside + c * tile.stride, rows);
        } else {
          copy_into<X>(inside + c * tile.stride, outside + c * view.class_stride, rows);
        }
      }
    } else if constexpr (kToTile) {
      copy_matrix<X>(outside, view.inner_stride, view.class_stride, inside, 1, tile.stride, rows,
                     classes);
    } else {
      copy_matrix<X>(inside, 1, tile.stride, outside, view.inner_stride, view.class_stride, rows,
                     classes);
    }
  }
}

// Where the lanes kernel finds a batch's planes: in the tensors, if those hold the compute type and
// neighbouring rows side by side, or in tiles.
template <class X>
struct Tiles {
  using T = typename X::T;
  const CrossEntropyArgs& a;
  const CrossEntropyParams& p;
  int64_t width;    // rows of a batch, at most
  int64_t classes;  // of a tile
  bool in_place;    // unless a sample's positions end in the middle of a vector
  T *logits, *targets;
  int64_t size;  // bytes
  Interleave<X> interleave;

  Tiles(const CrossEntropyArgs& a, Arena arena) : a(a), p(*a.params), width(kTileRows) {
    const auto side_by_side = [](const RowsView& view) {
      return !view.data || view.inner_stride == 1;
    };
    in_place = (a.dtype == DType::kFloat32 || a.dtype == DType::kFloat64) && p.inner >= X::kLanes &&
               side_by_side(a.logits) && side_by_side(a.probabilities) &&
               side_by_side(a.grad_logits);
    while (!in_place && width > 4 * X::kLanes && width * p.C > kTileElements) width /= 2;
    classes = min_of(p.C, kTileElements / width);
    logits = arena.take<T>(classes * width);
    targets = arena.take<T>(a.target[0] ? 0 : classes * width);
    size = arena.used;
    if (arena.base) interleave.prepare(in_place ? 0 : p.C);
  }

  int64_t batch_rows(int64_t row, int64_t end) const {
    const int64_t rows = min_of(end - row, width);
    if (!in_place) return rows;
    const int64_t of_sample = min_of(rows, p.inner - row % p.inner);
    return of_sample < X::kLanes ? of_sample : of_sample / X::kLanes * X::kLanes;
  }

  bool reads_in_place(const Batch<X>& b) const { return in_place && b.n % X::kLanes == 0; }

  // Classes that are taken at once.
  int64_t class_step(const Batch<X>& b) const { return reads_in_place(b) ? p.C : classes; }

  Planes<T> place(const RowsView& view, const Batch<X>& b, int64_t c0) const {
    return {row_of<T>(view, p, b.row) + c0 * view.class_stride, view.class_stride};
  }

  template <class IO>
  Planes<T> read(const RowsView& view, const Batch<X>& b, int64_t c0, int64_t count,
                 T* tile) const {
    if (reads_in_place(b)) return place(view, b, c0);
    move_tile<X, const IO, true>(view, p, b, c0, count, interleave, {tile, width});
    return {tile, width};
  }
};

// Calls function(logits, targets, first class, classes) for all of a batch's classes; targets are
// those of probabilities.
template <class X, class IO, Targets kTargets, class Function>
static void for_each_block(const Tiles<X>& tiles, const Batch<X>& b, Function function) {
  const CrossEntropyArgs& a = tiles.a;
  const int64_t C = tiles.p.C, step = tiles.class_step(b);
  for (int64_t c0 = 0; c0 < C; c0 += step) {
    const int64_t count = min_of(step, C - c0);
    Planes<typename X::T> t{};
    if constexpr (kTargets == Targets::kProbability) {
      t = tiles.template read<IO>(a.probabilities, b, c0, count, tiles.targets);
    }
    function(tiles.template read<IO>(a.logits, b, c0, count, tiles.logits), t, c0, count);
  }
}

// The logits of the second of a pair; those of the first are met on the way.
template <class X, class IO>
static void pick_other(const Tiles<X>& tiles, const Batch<X>& b) {
  const RowsView& logits = tiles.a.logits;
  for (int64_t i = 0; i < b.n; i++) {
    const auto y = static_cast<int64_t>(b.other.y[i]);
    const IO* x = row_of<const IO>(logits, tiles.p, b.row + i);
    b.other.picked[i] = y < 0 ? typename X::T(0) : widen(x[y * logits.class_stride]);
  }
}

template <class X, class IO, Targets kTargets>
static void normalise_lanes(const LossTerms<X>& terms, const Tiles<X>& tiles, const Batch<X>& b) {
  for_each_block<X, IO, kTargets>(tiles, b, [&](auto x, auto t, int64_t c0, int64_t count) {
    normalise_planes<X, kTargets>(terms, x, t, c0, count, b);
  });
  if (tiles.p.num_targets > 1) pick_other<X, IO>(tiles, b);
}

// Whether the target's logit is the first of the largest. NaN is the first of none.
template <class X, class IO>
static void mark_correct_lanes(const Tiles<X>& tiles, const Batch<X>& b) {
  using T = typename X::T;
  using V = typename X::V;
  T* const correct = b.mass;
  for (int64_t i = 0; i < b.n; i++) {
    correct[i] = b.y[i] >= 0 && b.picked[i] == b.maximum[i] && b.sum[i] == b.sum[i];
  }
  for_each_block<X, IO, Targets::kIndex>(tiles, b, [&](auto x, auto, int64_t c0, int64_t count) {
    for (int64_t c = 0; c < count; c++) {
      const V here = X::set1(static_cast<T>(c0 + c));
      for (int64_t i = 0; i < b.n; i += X::kLanes) {
        const V so_far = X::load(correct + i);
        const V later = X::blend(X::gt(X::load(b.y + i), here), X::zero(), so_far);
        const auto reaches = X::ge(X::load(x.data + c * x.stride + i), X::load(b.maximum + i));
        X::store(correct + i, X::blend(reaches, later, so_far));
      }
    }
  });
  copy_into<X>(correct, static_cast<T*>(tiles.a.correct) + b.row, b.n);
}

// mass of a batch.
template <class X, class IO>
static void sum_probabilities_lanes(const LossTerms<X>& terms, const Tiles<X>& tiles,
                                    const Batch<X>& b) {
  const int64_t C = tiles.p.C, step = tiles.class_step(b);
  fill_zero(b.mass, round_up(b.n, X::kLanes));
  for (int64_t c0 = 0; c0 < C; c0 += step) {
    const int64_t count = min_of(step, C - c0);
    const auto t = tiles.template read<IO>(tiles.a.probabilities, b, c0, count, tiles.targets);
    for (int64_t c = 0; c < count; c++) {
      const auto w = X::set1(terms.weight_of(c0 + c));
      for (int64_t i = 0; i < b.n; i += X::kLanes) {
        const auto u = terms.probability_term(X::load(t.data + c * t.stride + i), w);
        X::store(b.mass + i, X::add(X::load(b.mass + i), u));
      }
    }
  }
}

// The gradient of the second of a pair's logits, which have a gradient already.
template <class X>
static void subtract_other(const Batch<X>& b, int64_t c0, int64_t classes,
                           Planes<typename X::T> out) {
  for (int64_t i = 0; i < b.n; i++) {
    const int64_t c = static_cast<int64_t>(b.other.y[i]) - c0;
    if (b.other.y[i] >= 0 && c >= 0 && c < classes) out.data[c * out.stride + i] -= b.other.hit[i];
  }
}

template <class X, class IO, Targets kTargets>
static void gradient_lanes(const LossTerms<X>& terms, const Tiles<X>& tiles, const Batch<X>& b) {
  const RowsView& view = tiles.a.grad_logits;
  for_each_block<X, IO, kTargets>(tiles, b, [&](auto x, auto t, int64_t c0, int64_t count) {
    const bool pair = tiles.p.num_targets > 1;
    if (!tiles.reads_in_place(b)) {
      gradient_planes<X, kTargets, false>(terms, x, t, c0, count, b, x);
      if (pair) subtract_other(b, c0, count, x);
      move_tile<X, IO, false>(view, tiles.p, b, c0, count, tiles.interleave, x);
      return;
    }
    const auto out = tiles.place(view, b, c0);
    if (tiles.a.streams && is_aligned<X>(out.data) && out.stride % X::kLanes == 0) {
      gradient_planes<X, kTargets, true>(terms, x, t, c0, count, b, out);
    } else {
      gradient_planes<X, kTargets, false>(terms, x, t, c0, count, b, out);
    }
    if (pair) subtract_other(b, c0, count, out);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
