// cross_entropy in one pass over the logits, forward and backward; csrc/cross_entropy.h has the
// equations. Log-probabilities and softmax are never written to memory: forward keeps two numbers a
// row, backward writes the gradient once.
//
// Maximum and sum are taken online, block by block (M. Milakov and N. Gimelshein, "Online
// normalizer calculation for softmax", 2018): a block fits L1 or the registers, gives its maximum
// and then its exponentials, so that a logit comes from memory once and is exponentiated once.
#pragma once

#include "cross_entropy_lanes-inl.h"
#include "cross_entropy_rows-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

static constexpr int64_t kFewClasses =
    24;  // up to here transposing costs less than horizontal sums
static constexpr int64_t kChunkElements = 32768;  // logits of one unit of work
static constexpr int64_t kFewRows = 16;           // from here on rows suffice for the threads

static inline bool takes_rows(const CrossEntropyArgs& a) {
  const auto side_by_side = [](const RowsView& view) {
    return !view.data || view.class_stride == 1;
  };
  return a.params->C > kFewClasses && side_by_side(a.logits) && side_by_side(a.probabilities) &&
         side_by_side(a.grad_logits);
}

static int64_t cross_entropy_chunk_rows(const CrossEntropyArgs& a) {
  const int64_t rows = max_of(1, kChunkElements / a.params->C);
  return takes_rows(a) ? rows : round_up(rows, kTileRows);
}

// Probabilities are left to the rows: backward wants their sum over all classes first.
static int64_t cross_entropy_part_classes(const CrossEntropyArgs& a) {
  const int64_t C = a.params->C;
  if (a.params->outer * a.params->inner >= kFewRows || !a.target[0] || !takes_rows(a)) return C;
  return round_up(ceil_div(C, ceil_div(C, kChunkElements)), 16);
}

template <Targets kTargets>
struct TargetsTag {
  static constexpr Targets value = kTargets;
};

// Calls function(compute type, storage type, tag of the kind of targets).
template <class Function>
static auto with_targets(const CrossEntropyArgs& a, Function function) {
  return with_dtype(a.dtype, [&](auto x, auto io) {
    if (!a.target[0]) return function(x, io, TargetsTag<Targets::kProbability>{});
    if (a.params->label_smoothing > 0) {
      return function(x, io, TargetsTag<Targets::kSmoothedIndex>{});
    }
    return function(x, io, TargetsTag<Targets::kIndex>{});
  });
}

// What a call keeps in its scratch: a batch, and the tiles if rows are in the lanes.
template <class X>
struct CrossEntropyScratch {
  Batch<X> batch;
  bool rows;
  Tiles<X> tiles;

  CrossEntropyScratch(const CrossEntropyArgs& a, void* base)
      : batch(max_of(kTileRows, kRowsAtATime), Arena{static_cast<char*>(base)}),
        rows(takes_rows(a)),
        tiles(a, Arena{static_cast<char*>(base), batch.size}) {}

  // Takes the rows from `row` on that make a batch.
  void start(int64_t row, int64_t end) {
    batch.row = row;
    batch.n = rows ? min_of(end - row, kRowsAtATime) : tiles.batch_rows(row, end);
  }
};

static int64_t cross_entropy_scratch(const CrossEntropyArgs& a) {
  return with_dtype(a.dtype, [&](auto x, auto) {
    return CrossEntropyScratch<decltype(x)>(a, nullptr).tiles.size;
  });
}

// The gradient of a batch whose targets have been read, and with probabilities whose mass is there.
// after_forward: the batch has just been normalised.
template <class X, class IO, Targets kTargets>
static void write_gradient(const CrossEntropyArgs& a, const LossTerms<X>& terms,
                           const CrossEntropyScratch<X>& s, bool after_forward) {
  start_gradients<X, kTargets>(a, terms, s.batch);
  if (!s.rows) {
    gradient_lanes<X, IO, kTargets>(terms, s.tiles, s.batch);
    return;
  }
  if (a.params->C < a.params->num_classes) keep_targets_of_part(a, s.batch);
  if (after_forward && keeps_exponentials<X, IO>(a)) {
    gradient_rows<X, IO, kTargets, kSameType<IO, typename X::T>>(a, terms, s.batch);
  } else {
    gradient_rows<X, IO, kTargets>(a, terms, s.batch);
  }
}

static CrossEntropySums cross_entropy_forward(const CrossEntropyArgs& a, int64_t begin, int64_t end,
                                              void* scratch) {
  return with_targets(a, [&](auto x, auto io, auto targets) {
    using X = decltype(x);
    using IO = decltype(io);
    constexpr Targets kTargets = decltype(targets)::value;
    const LossTerms<X> terms(a);
    CrossEntropyScratch<X> s(a, scratch);
    CrossEntropySums sums{};
    sums.bad_row = -1;
    for (int64_t row = begin; row < end; row += s.batch.n) {
      s.start(row, end);
      if constexpr (kTargets != Targets::kProbability) {
        sums.bad_row = read_targets(a, terms, s.batch);
        if (sums.bad_row >= 0) return sums;
      }
      if (a.parts) {
        join_parts<X, IO, kTargets>(a, s.batch);
      } else if (s.rows) {
        normalise_rows<X, IO, kTargets>(a, terms, s.batch);
      } else {
        normalise_lanes<X, IO, kTargets>(terms, s.tiles, s.batch);
      }
      finish_losses<X, IO, kTargets>(a, terms, s.batch, sums);
      if (a.correct && s.rows) mark_correct_rows<X, IO>(a, s.batch);
      if (a.correct && !s.rows) mark_correct_lanes<X, IO>(s.tiles, s.batch);
      if (a.grad_logits.data && !a.parts) write_gradient<X, IO, kTargets>(a, terms, s, true);
    }
    X::end_streams();
    return sums;
  });
}

// What join_parts wants of one.
static void cross_entropy_normalise_part(const CrossEntropyArgs& a, int64_t begin, int64_t end,
                                         void* scratch) {
  with_targets(a, [&](auto x, auto io, auto targets) {
    using X = decltype(x);
    using T = typename X::T;
    constexpr Targets kTargets = decltype(targets)::value;
    const LossTerms<X> terms(a);
    Batch<X> b(kRowsAtATime, Arena{static_cast<char*>(scratch)});
    for (b.row = begin; b.row < end; b.row += b.n) {
      b.n = min_of(end - b.row, kRowsAtATime);
      normalise_rows<X, decltype(io), kTargets>(a, terms, b);
      copy_into<X>(b.maximum, static_cast<T*>(a.maximum) + b.row, b.n);
      copy_into<X>(b.sum, static_cast<T*>(a.sum) + b.row, b.n);
      if constexpr (kTargets == Targets::kIndex) continue;
      copy_into<X>(b.dot, static_cast<T*>(a.dot) + b.row, b.n);
      copy_into<X>(b.mass, static_cast<T*>(a.mass) + b.row, b.n);
    }
  });
}

static int64_t cross_entropy_backward(const CrossEntropyArgs& a, int64_t begin, int64_t end,
                                      void* scratch) {
  return with_targets(a, [&](auto x, auto io, auto targets) {
    using X = decltype(x);
    using IO = decltype(io);
    constexpr Targets kTargets = decltype(targets)::value;
    const LossTerms<X> terms(a);
    CrossEntropyScratch<X> s(a, scratch);
    for (int64_t row = begin; row < end; row += s.batch.n) {
      s.start(row, end);
      if constexpr (kTargets != Targets::kProbability) {
        const int64_t bad_row = read_targets(a, terms, s.batch);
        if (bad_row >= 0) return bad_row;
      } else if (s.rows) {
        sum_probabilities_rows<X, IO>(a, terms, s.batch);
      } else {
        sum_probabilities_lanes<X, IO>(terms, s.tiles, s.batch);
      }
      write_gradient<X, IO, kTargets>(a, terms, s, false);
    }
    X::end_streams();
    return int64_t{-1};
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
