// A sequence at a time, which the nearest cache holds: its rows are normalised there, each of them
// is read once for itself and once for every neighbour, and memory sees it once. A position itself
// is the first of its neighbours, with the gain for a weight.
#pragma once

#include "math-inl.h"
#include "matrix-inl.h"
#include "neighbour_mix.h"
#include "norm-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct NeighbourMix {
  using T = typename X::T;
  using V = typename X::V;
  static constexpr int kL = X::kLanes;

  // The neighbours of a position that there are: their numbers, and where they are.
  struct Neighbours {
    int64_t number[1 + kMostNeighbours], place[1 + kMostNeighbours];
    int count;
  };

  const NeighbourMixArgs& a;
  const int64_t width = round_up(a.D, kL);  // of a row
  Arena arena;
  Neighbours* const neighbours = arena.take<Neighbours>(a.T);
  T* const weight = arena.take<T>((1 + a.J) * width);  // of norm(x)
  T *const normed = arena.take<T>(a.T * width), *const rate = arena.take<T>(a.T);
  // Backward alone:
  T* const grad = arena.take<T>(a.T * width);
  T *const means = arena.take<T>(a.T), *const slopes = arena.take<T>(a.T);

  NeighbourMix(const NeighbourMixArgs& args, void* scratch)
      : a(args), arena{static_cast<char*>(scratch)} {}

  void begin() const {
    fill_zero(weight, (1 + a.J) * width);  // what lies behind a row must not make numbers there
    const T *const gain = static_cast<const T*>(a.gain), *const of =
                                                             static_cast<const T*>(a.weight);
    for (int64_t d = 0; d < a.D; d++) {
      weight[d] = gain[d];
      for (int64_t j = 0; j < a.J; j++) weight[(1 + j) * width + d] = gain[d] * of[j * a.D + d];
    }
    for (int64_t t = 0; t < a.T; t++) {
      Neighbours& near = neighbours[t];
      near.number[0] = 0, near.place[0] = t, near.count = 1;
      for (int64_t j = 0; j < a.J; j++) {
        const int64_t place = a.places[j * a.T + t];
        if (place < 0) continue;
        near.number[near.count] = 1 + j, near.place[near.count++] = place;
      }
    }
  }

  const T* sequence(const void* tensor, int64_t n) const {
    return static_cast<const T*>(tensor) + n * a.T * a.D;
  }
  T* sequence(void* tensor, int64_t n) const { return static_cast<T*>(tensor) + n * a.T * a.D; }

  void normalise(int64_t n) const {
    const T* const x = sequence(a.x, n);
    if (width != a.D) fill_zero(normed, a.T * width);
    copy_matrix<X>(x, a.D, 1, normed, width, 1, a.T, a.D);
    normalise_rows<X>(normed, a.T, width, a.D, rate);
  }

  void forward(int64_t n) const {
    T* const y = sequence(a.y, n);
    normalise(n);
    for (int64_t t = 0; t < a.T; t++) {
      const Neighbours& near = neighbours[t];
      for_each_vector<X>(a.D, [&](int64_t d, auto vector) {
        V sum = X::mul(X::load(weight + d), X::load(normed + t * width + d));
        for (int i = 1; i < near.count; i++) {
          sum = X::fma(X::load(weight + near.number[i] * width + d),
                       X::load(normed + near.place[i] * width + d), sum);
        }
        vector.store(y + t * a.D + d, sum);
      });
    }
  }

  // At norm(x): dn[p] += w dy[t]. sums: of dy[t] n[p].
  void backward(int64_t n, T* sums) const {
    const T* const dy = sequence(a.grad_y, n);
    normalise(n);
    fill_zero(grad, a.T * width);
    for (int64_t t = 0; t < a.T; t++) {
      const Neighbours& near = neighbours[t];
      for_each_vector<X>(a.D, [&](int64_t d, auto vector) {
        const V g = vector.load(dy + t * a.D + d);
        for (int i = 0; i < near.count; i++) {
          const int64_t at = near.place[i] * width + d;
          T* const sum = sums + near.number[i] * a.D + d;
          const V w = X::load(weight + near.number[i] * width + d);
          X::store(grad + at, X::fma(w, g, X::load(grad + at)));
          vector.store(sum, X::fma(g, X::load(normed + at), vector.load(sum)));
        }
      });
    }
    through_normalise_rows<X>(grad, normed, rate, a.T, width, a.D, means, slopes);
    T* const dx = sequence(a.grad_x, n);
    if (a.grad_too == nullptr) {
      copy_matrix<X>(grad, width, 1, dx, a.D, 1, a.T, a.D);
      return;
    }
    const T* const too = sequence(a.grad_too, n);
    for (int64_t t = 0; t < a.T; t++) {
      for_each_vector<X>(a.D, [&](int64_t d, auto vector) {
        const int64_t at = t * a.D + d;
        vector.store(dx + at, X::add(X::load(grad + t * width + d), vector.load(too + at)));
      });
    }
  }

  // dg = s[own] + sum over j of w[j] s[j]   dw[j] = g s[j]
  static void reduce(const NeighbourMixArgs& a) {
    T *const sums = static_cast<T*>(a.sums), *const grad_gain = static_cast<T*>(a.grad_gain);
    const int64_t size = (1 + a.J) * a.D;
    if (a.units() == 0) {
      fill_zero(grad_gain, a.D);
      fill_zero(static_cast<T*>(a.grad_weight), a.J * a.D);
      return;
    }
    for (int64_t unit = 1; unit < a.units(); unit++)
      for (int64_t i = 0; i < size; i++) sums[i] += sums[unit * size + i];
    const T *const gain = static_cast<const T*>(a.gain), *of = static_cast<const T*>(a.weight);
    for (int64_t d = 0; d < a.D; d++) grad_gain[d] = sums[d];
    for (int64_t j = 0; j < a.J; j++, of += a.D) {
      const T* const sum = sums + (1 + j) * a.D;
      T* const grad_weight = static_cast<T*>(a.grad_weight) + j * a.D;
      for (int64_t d = 0; d < a.D; d++) {
        grad_gain[d] += of[d] * sum[d];
        grad_weight[d] = gain[d] * sum[d];
      }
    }
  }
};

static int64_t neighbour_mix_scratch(const NeighbourMixArgs& a) {
  return with_compute(a.dtype,
                      [&](auto x) { return NeighbourMix<decltype(x)>(a, nullptr).arena.used; });
}

static void neighbour_mix_forward(const NeighbourMixArgs& a, int64_t begin, int64_t end,
                                  void* scratch) {
  with_compute(a.dtype, [&](auto x) {
    const NeighbourMix<decltype(x)> mix(a, scratch);
    mix.begin();
    const int64_t last = min_of(a.N, end * kMixedAtOnce);
    for (int64_t n = begin * kMixedAtOnce; n < last; n++) mix.forward(n);
  });
}

static void neighbour_mix_backward(const NeighbourMixArgs& a, int64_t begin, int64_t end,
                                   void* scratch) {
  with_compute(a.dtype, [&](auto x) {
    using T = typename decltype(x)::T;
    const NeighbourMix<decltype(x)> mix(a, scratch);
    mix.begin();
    for (int64_t unit = begin; unit < end; unit++) {
      T* const sums = static_cast<T*>(a.sums) + unit * (1 + a.J) * a.D;
      fill_zero(sums, (1 + a.J) * a.D);
      const int64_t last = min_of(a.N, (unit + 1) * kMixedAtOnce);
      for (int64_t n = unit * kMixedAtOnce; n < last; n++) mix.backward(n, sums);
    }
  });
}

static void neighbour_mix_reduce(const NeighbourMixArgs& a) {
  with_compute(a.dtype, [&](auto x) { NeighbourMix<decltype(x)>::reduce(a); });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
