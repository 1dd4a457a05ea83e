// cross_entropy in one pass over the logits, forward and backward; csrc/cross_entropy.h has the
// equations. Log-probabilities and softmax are never written to memory: forward keeps two numbers a
// row, backward writes the gradient once.
//
// Maximum and sum are taken online, block by block (M. Milakov and N. Gimelshein, "Online
// normalizer calculation for softmax", 2018): a block fits L1, gives its maximum and then its
// exponentials, so that a logit comes from memory once and is exponentiated once.
#pragma once

#include "cross_entropy_lanes-inl.h"
#include "cross_entropy_rows-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

static constexpr int64_t kFewClasses =
    128;  // up to here transposing costs less than horizontal sums
static constexpr int64_t kChunkElements = 32768;  // logits of one unit of work

static inline bool takes_rows(const CrossEntropyArgs& a) {
  const auto side_by_side = [](const RowsView& view) {
    return !view.data || view.class_stride == 1;
  };
  return a.params->C > kFewClasses && side_by_side(a.logits) && side_by_side(a.probabilities) &&
         side_by_side(a.grad_logits);
}

static int64_t cross_entropy_chunk_rows(const CrossEntropyArgs& a) {
  const int64_t rows = max_of(1, kChunkElements / a.params->C);
  return takes_rows(a) ? rows : round_up(rows, LanesPlan(a.params->C).width);
}

static int64_t cross_entropy_scratch(const CrossEntropyArgs& a) {
  if (takes_rows(a)) return 0;
  return with_dtype(a.dtype, [&](auto x, auto) {
    using X = decltype(x);
    return LanesScratch<X>(a, LanesPlan(a.params->C), nullptr).size;
  });
}

template <Targets kTargets>
struct TargetsTag {
  static constexpr Targets value = kTargets;
};

// Calls function(compute type, storage type, tag of the kind of targets).
template <class Function>
static auto with_targets(const CrossEntropyArgs& a, Function function) {
  return with_dtype(a.dtype, [&](auto x, auto io) {
    if (!a.target) return function(x, io, TargetsTag<Targets::kProbability>{});
    if (a.params->label_smoothing > 0) {
      return function(x, io, TargetsTag<Targets::kSmoothedIndex>{});
    }
    return function(x, io, TargetsTag<Targets::kIndex>{});
  });
}

static CrossEntropySums cross_entropy_forward(const CrossEntropyArgs& a, int64_t begin, int64_t end,
                                              void* scratch) {
  return with_targets(a, [&](auto x, auto io, auto targets) {
    const auto kernel = takes_rows(a)
                            ? forward_rows<decltype(x), decltype(io), decltype(targets)::value>
                            : forward_lanes<decltype(x), decltype(io), decltype(targets)::value>;
    return kernel(a, begin, end, scratch);
  });
}

static int64_t cross_entropy_backward(const CrossEntropyArgs& a, int64_t begin, int64_t end,
                                      void* scratch) {
  return with_targets(a, [&](auto x, auto io, auto targets) {
    const auto kernel = takes_rows(a)
                            ? backward_rows<decltype(x), decltype(io), decltype(targets)::value>
                            : backward_lanes<decltype(x), decltype(io), decltype(targets)::value>;
    return kernel(a, begin, end, scratch);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
