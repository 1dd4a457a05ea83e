// The terms of cross_entropy for one row: the running normaliser, the loss, the gradient's factors.
// csrc/cross_entropy.h has the equations.
//
// Infinities and NaN need no branch. A maximum of -inf stands for "nothing yet": differences are
// then taken from 0, so that -inf counts nothing, and NaN, which fmaxf passes over, arrives in the
// sum. A row of only -inf keeps m = -inf, and x - m is NaN, as in PyTorch.
#pragma once

#include "cuda/cross_entropy_args.cuh"
#include "cuda/cross_entropy_memory.cuh"
#include "cuda/ptx.cuh"

namespace imgfast::cuda {

constexpr float kMinusInfinity = -__builtin_inff();
constexpr int kNoClass = 0x7fffffff;  // later than all classes

// exp(d) in one ex2.
__device__ __forceinline__ float exp_of(float d) {
  constexpr float kLog2E = 1.44269504f;
  return exp2_fast(d * kLog2E);
}

// What differences are taken from.
__device__ __forceinline__ float reference_of(float maximum) {
  return maximum == kMinusInfinity ? 0.0f : maximum;
}

// Of a row, or of a part of one. d = x - reference.
struct Normaliser {
  float maximum = kMinusInfinity;
  float sum = 0;       // of exp(d)
  float dot = 0;       // of u d
  float mass = 0;      // of u
  int top = kNoClass;  // the first class with the maximum, if anybody asks

  // To a maximum that is not below the old one.
  __device__ __forceinline__ void raise(float to) {
    if (!(to > maximum)) return;
    const float reference = reference_of(to);
    if (maximum != kMinusInfinity) {
      sum *= exp_of(maximum - reference);
      dot += mass * (maximum - reference);
    }
    maximum = to;
    top = kNoClass;
  }

  // Adds classes that come later, and whose maximum is not below this one's.
  __device__ __forceinline__ void join(const Normaliser& later) {
    raise(later.maximum);
    sum += later.sum;
    dot += later.dot;
    mass += later.mass;
    if (top == kNoClass) top = later.top;
  }

  __device__ __forceinline__ void merge(const Normaliser& other) {
    const float to = fmaxf(maximum, other.maximum), reference = reference_of(to);
    const float shift = reference_of(maximum) - reference;
    const float other_shift = reference_of(other.maximum) - reference;
    sum = sum * exp_of(maximum - reference) + other.sum * exp_of(other.maximum - reference);
    dot = (dot + mass * shift) + (other.dot + other.mass * other_shift);
    mass += other.mass;
    const int mine = maximum == to ? top : kNoClass;
    const int theirs = other.maximum == to ? other.top : kNoClass;
    top = mine < theirs ? mine : theirs;
    maximum = to;
  }
};

// u_c of N classes from c on, without the term of a class target; t: of probability targets.
template <Targets kTargets, int N>
__device__ __forceinline__ void class_weights(const CrossEntropyArgs& a, int c, const float (&t)[N],
                                              float (&u)[N]) {
#pragma unroll
  for (int k = 0; k < N; k++) {
    u[k] = a.weight ? a.weight[c + k] : 1.0f;
    if constexpr (kTargets == Targets::kProbability) u[k] *= a.share * t[k] + a.smooth;
  }
}

// Adds N classes from c on, none of which is above the maximum.
template <Targets kTargets, int N>
__device__ __forceinline__ void add_classes(const CrossEntropyArgs& a, int c, const float (&x)[N],
                                            const float (&t)[N], Normaliser& n) {
  const float reference = reference_of(n.maximum);
#pragma unroll
  for (int k = 0; k < N; k++) n.sum += exp_of(x[k] - reference);
  if constexpr (kTargets != Targets::kIndex) {
    float u[N];
    class_weights<kTargets>(a, c, t, u);
#pragma unroll
    for (int k = 0; k < N; k++) {
      n.dot += u[k] * (x[k] - reference);
      n.mass += u[k];
    }
  }
  if (a.correct) {
#pragma unroll
    for (int k = 0; k < N; k++) {
      if (x[k] == n.maximum && c + k < n.top) n.top = c + k;
    }
  }
}

// The class targets of a row.
struct RowTargets {
  int y[2] = {-1, -1};            // the class among those that are there, or -1
  bool counts[2] = {true, true};  // whether the row does
  float weight[2] = {0, 0};       // w_y, or 0 where y is -1
};

// Target k of a row, whose class is y; without a class the row keeps what it has.
__device__ __forceinline__ void take_target(const CrossEntropyArgs& a, int k, std::int64_t y,
                                            RowTargets& targets) {
  if (a.is_tile()) {
    targets.counts[k] = y >= 0;
    y -= a.first_class;
    if (!targets.counts[k] || y < 0 || y >= a.C) return;
  } else {
    targets.counts[k] = y != a.ignore_index;
    if (!targets.counts[k]) return;
    assert(y >= 0 && y < a.C);
  }
  targets.y[k] = static_cast<int>(y);
  targets.weight[k] = a.weight ? a.weight[y] : 1.0f;
}

template <Targets kTargets>
__device__ __forceinline__ RowTargets read_targets(const CrossEntropyArgs& a, std::int64_t row) {
  RowTargets targets;
  if constexpr (kTargets != Targets::kProbability) {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      if (k < a.num_targets) take_target(a, k, a.target[k][row], targets);
    }
  }
  return targets;
}

// What rows add up to, for each target.
template <class Number>
struct SumsOf {
  static constexpr int kCount = 8;
  Number number[kCount];

  __device__ Number& loss(int k) { return number[k]; }
  __device__ Number& weight(int k) { return number[2 + k]; }  // w_y of rows that count
  __device__ Number& square(int k) { return number[4 + k]; }  // lse^2 of those
  __device__ Number& count(int k) { return number[6 + k]; }   // and their number
};
using RowSums = SumsOf<float>;

// The loss of a row, which joins the sums. picked: the logits of its targets.
template <Targets kTargets>
__device__ __forceinline__ float finish_loss(const CrossEntropyArgs& a, const Normaliser& n,
                                             const RowTargets& targets, const float (&picked)[2],
                                             RowSums& sums) {
  const float log_sum = logf(n.sum);
  float row_loss = 0;
#pragma unroll
  for (int k = 0; k < 2; k++) {
    if (k == a.num_targets || !targets.counts[k]) continue;
    float loss;
    if constexpr (kTargets == Targets::kProbability) {
      loss = n.mass * log_sum - n.dot;
    } else {
      loss = a.share * targets.weight[k] * (n.maximum - picked[k] + log_sum);
      if constexpr (kTargets == Targets::kSmoothedIndex) {
        loss += a.smooth * (n.mass * log_sum - n.dot);
      }
    }
    sums.loss(k) += loss;
    sums.weight(k) += kTargets == Targets::kProbability ? 1 : targets.weight[k];
    sums.count(k) += 1;
    if (a.z_loss != 0) {
      const float lse = n.maximum + log_sum;
      sums.square(k) += lse * lse;
      loss += a.z_loss * lse * lse;
    }
    row_loss += a.lam[k] * loss;
  }
  return row_loss;
}

// Whether the target's logit is the first of the largest. NaN is the first of none.
__device__ __forceinline__ float is_correct(const Normaliser& n, const RowTargets& targets) {
  return targets.y[0] == n.top && n.sum == n.sum ? 1.0f : 0.0f;
}

// Everything about a row that forward leaves behind.
template <Targets kTargets>
__device__ __forceinline__ void write_row(const CrossEntropyArgs& a, std::int64_t row,
                                          const Normaliser& n, const RowTargets& targets,
                                          const float (&picked)[2], RowSums& sums) {
  const float loss = finish_loss<kTargets>(a, n, targets, picked, sums);
  a.maximum[row] = n.maximum;
  a.sum[row] = n.sum;
  if (a.correct) a.correct[row] = is_correct(n, targets);
  if (a.reduction == Reduction::kNone) store_number(a.loss, a.loss_dtype, row, loss);
}

// The state of a tile's row and what the tile adds to it.
template <Targets kTargets>
__device__ __forceinline__ void join_state(const CrossEntropyArgs& a, std::int64_t row,
                                           Normaliser tile, const RowTargets& targets,
                                           float picked) {
  if constexpr (kTargets != Targets::kProbability) {
    const float smooth = kTargets == Targets::kSmoothedIndex && targets.counts[0] ? a.smooth : 0.0f;
    // Not smooth * dot where it is 0: dot may be infinite.
    tile.dot = smooth > 0 ? smooth * tile.dot : 0.0f;
    tile.mass = smooth * tile.mass;
    if (targets.y[0] >= 0) {
      const float u = a.share * targets.weight[0];
      tile.dot += u * (picked - reference_of(tile.maximum));
      tile.mass += u;
    }
  }
  Normaliser state;
  state.maximum = a.maximum[row];
  state.sum = a.sum[row];
  state.mass = a.mass[row];
  state.dot = a.dot[row];
  state.merge(tile);
  a.maximum[row] = state.maximum;
  a.sum[row] = state.sum;
  a.mass[row] = state.mass;
  a.dot[row] = state.dot;
}

// A row's gradient is total exp(x_c - maximum) - spread u_c, less hit at the class y.
struct RowGradient {
  float maximum, total, spread;
  float hit[2];
  int y[2];
};

// What the gradient of a row is multiplied by for target k, at the loss or at lse^2.
template <Targets kTargets>
__device__ __forceinline__ float mean_divisor(const CrossEntropyArgs& a, int index) {
  if (a.reduction != Reduction::kMean) return 1.0f;
  if (kTargets == Targets::kProbability) return static_cast<float>(a.rows);
  return a.divisors[index];
}

// Of all classes, as smoothing wants it.
__device__ __forceinline__ float weight_sum(const CrossEntropyArgs& a) {
  if (a.is_tile()) return 0;  // its state has the sum of the u_c
  return a.weight ? *a.weight_sum : static_cast<float>(a.C);
}

// sum and maximum are forward's; mass: of the u_c of all classes, but for kIndex, which has none.
template <Targets kTargets>
__device__ __forceinline__ RowGradient start_gradient(const CrossEntropyArgs& a, std::int64_t row,
                                                      const RowTargets& targets, float maximum,
                                                      float sum, float mass) {
  RowGradient g{maximum, 0, 0, {0, 0}, {targets.y[0], targets.y[1]}};
  const bool each_row = a.reduction == Reduction::kNone;
  const float grad =
      a.grad_loss ? load_number(a.grad_loss, a.loss_dtype, each_row ? row : 0) : 1.0f;
#pragma unroll
  for (int k = 0; k < 2; k++) {
    if (k == a.num_targets || !targets.counts[k]) continue;
    const float scaled = __fdividef(grad * a.lam[k], mean_divisor<kTargets>(a, k));
    if constexpr (kTargets == Targets::kProbability) {
      g.spread = scaled;
    } else {
      g.hit[k] = scaled * a.share * targets.weight[k];
      g.total += g.hit[k];
      if constexpr (kTargets == Targets::kSmoothedIndex) g.spread += scaled * a.smooth;
    }
    if (a.z_loss != 0) {
      const float twice_lse = 2 * (maximum + logf(sum));
      g.total +=
          __fdividef(grad * a.lam[k] * a.z_loss, mean_divisor<kTargets>(a, 2 + k)) * twice_lse;
    }
  }
  if constexpr (kTargets != Targets::kIndex) g.total += g.spread * mass;
  // A tile holds only some of the classes: the state's mass is of all of them, and of the target.
  if (a.is_tile()) g.total = grad * a.mass[row];
  if (a.grad_lse) g.total += a.grad_lse[row];
  g.total = __fdividef(g.total, sum);
  return g;
}

// Turns the logits of N classes from c on into their gradient; t: of probability targets.
template <Targets kTargets, int N>
__device__ __forceinline__ void gradient_of(const CrossEntropyArgs& a, const RowGradient& g, int c,
                                            const float (&t)[N], float (&x)[N]) {
#pragma unroll
  for (int k = 0; k < N; k++) x[k] = g.total * exp_of(x[k] - g.maximum);
  if constexpr (kTargets != Targets::kIndex) {
    float u[N];
    class_weights<kTargets>(a, c, t, u);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] -= g.spread * u[k];
  }
  // Before it is rounded: 1 - p in bfloat16 would not be.
  if constexpr (kTargets != Targets::kProbability) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (g.y[i] < c || g.y[i] >= c + N) continue;
#pragma unroll
      for (int k = 0; k < N; k++) x[k] -= c + k == g.y[i] ? g.hit[i] : 0.0f;
    }
  }
}

}  // namespace imgfast::cuda
