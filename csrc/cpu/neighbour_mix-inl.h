// A sequence at a time, which the nearest cache holds: each of its rows is read once for itself and
// once for every neighbour, and memory sees it once.
#pragma once

#include "math-inl.h"
#include "matrix-inl.h"
#include "neighbour_mix.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct NeighbourMix {
  using T = typename X::T;
  using V = typename X::V;
  static constexpr int kL = X::kLanes;

  const NeighbourMixArgs& a;
  const T* const weight = static_cast<const T*>(a.weight);
  const int64_t size = a.T * a.D;  // of a sequence

  // The neighbours of a position that there are: where their weights begin, and where their rows.
  struct Neighbours {
    int64_t of[kMostNeighbours], at[kMostNeighbours];
    int count = 0;
  };

  Neighbours neighbours(int64_t t) const {
    Neighbours found;
    for (int64_t j = 0; j < a.J; j++) {
      const int64_t place = a.places[j * a.T + t];
      if (place < 0) continue;
      found.of[found.count] = j * a.D;
      found.at[found.count++] = place * a.D;
    }
    return found;
  }

  // A vector of a row, or what is left of one.
  struct Whole {
    V load(const T* from) const { return X::load(from); }
    void store(T* to, V v) const { X::store(to, v); }
  };
  struct Part {
    int count;
    V load(const T* from) const { return X::load(from, count); }
    void store(T* to, V v) const { X::store(to, v, count); }
  };

  // step(d, vector) for every vector of a row, from number d on.
  template <class Step>
  void over_row(Step step) const {
    int64_t d = 0;
    for (; d + kL <= a.D; d += kL) step(d, Whole{});
    if (d < a.D) step(d, Part{static_cast<int>(a.D - d)});
  }

  void forward(int64_t n) const {
    const T* const x = static_cast<const T*>(a.x) + n * size;
    T* const y = static_cast<T*>(a.y) + n * size;
    for (int64_t t = 0; t < a.T; t++) {
      const Neighbours near = neighbours(t);
      over_row([&](int64_t d, auto vector) {
        V sum = vector.load(x + t * a.D + d);
        for (int i = 0; i < near.count; i++)
          sum = X::fma(vector.load(weight + near.of[i] + d), vector.load(x + near.at[i] + d), sum);
        vector.store(y + t * a.D + d, sum);
      });
    }
  }

  // dx[t] = dy[t], and on top of it dx[p] += w dy[t], dw += dy[t] x[p].
  void backward(int64_t n, T* grad_weight) const {
    const T* const x = static_cast<const T*>(a.x) + n * size;
    const T* const dy = static_cast<const T*>(a.grad_y) + n * size;
    T* const dx = static_cast<T*>(a.grad_x) + n * size;
    copy_into<X>(dy, dx, size);
    for (int64_t t = 0; t < a.T; t++) {
      const Neighbours near = neighbours(t);
      over_row([&](int64_t d, auto vector) {
        const V grad = vector.load(dy + t * a.D + d);
        for (int i = 0; i < near.count; i++) {
          T *const to = dx + near.at[i] + d, *const sum = grad_weight + near.of[i] + d;
          vector.store(to, X::fma(vector.load(weight + near.of[i] + d), grad, vector.load(to)));
          vector.store(sum, X::fma(grad, vector.load(x + near.at[i] + d), vector.load(sum)));
        }
      });
    }
  }
};

static void neighbour_mix_forward(const NeighbourMixArgs& a, int64_t begin, int64_t end) {
  with_compute(a.dtype, [&](auto x) {
    const NeighbourMix<decltype(x)> mix{a};
    const int64_t last = min_of(a.N, end * kMixedAtOnce);
    for (int64_t n = begin * kMixedAtOnce; n < last; n++) mix.forward(n);
  });
}

static void neighbour_mix_backward(const NeighbourMixArgs& a, int64_t begin, int64_t end) {
  with_compute(a.dtype, [&](auto x) {
    using T = typename decltype(x)::T;
    const NeighbourMix<decltype(x)> mix{a};
    for (int64_t unit = begin; unit < end; unit++) {
      T* const grad_weight = static_cast<T*>(a.grad_weight) + unit * a.J * a.D;
      fill_zero(grad_weight, a.J * a.D);
      const int64_t last = min_of(a.N, (unit + 1) * kMixedAtOnce);
      for (int64_t n = unit * kMixedAtOnce; n < last; n++) mix.backward(n, grad_weight);
    }
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
