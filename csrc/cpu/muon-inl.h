// A matrix at a time, which the second cache holds with its transpose. All polynomials are of the
// first u u^T, or u^T u where that is smaller, and so are their products, which therefore are
// symmetric: a product of two computes the tiles that reach above the diagonal, and mirrors them.
//
// Matrices are padded with zeros to whole tiles and vectors; what lies in rows behind the last one
// stays in such rows.
#pragma once

#include <cmath>

#include "matrix-inl.h"
#include "muon.h"
#include "product_tile-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct Muon {
  using T = typename X::T;
  using V = typename X::V;
  static constexpr int kRows = X::kTileCols, kL = X::kLanes;

  const MuonArgs& a;
  const MuonMatrix& m;
  const int64_t side = min_of(m.K, m.L);
  const int64_t row = odd_lines(m.L), column = odd_lines(m.K);  // with what they are padded
  const int64_t square_row = odd_lines(side);
  Arena arena;
  T* const u = arena.take<T>(round_up(m.K, kRows) * row);
  // The transpose of u; once u u^T is made, the result.
  T* const across =
      arena.take<T>(max_of(round_up(m.L, kRows) * column, round_up(m.K, kRows) * row));
  T *gram = square(), *factor = square(), *product = square(), *spare = square();

  Muon(const MuonArgs& args, const MuonMatrix& matrix, void* scratch)
      : a(args), m(matrix), arena{static_cast<char*>(scratch)} {}

  T* square() { return arena.template take<T>(round_up(side, kRows) * square_row); }

  // --- products ----------------------------------------------------------------------------------

  // c = left right, all rows or those of tiles that reach above the diagonal.
  static void multiply(const T* left, int64_t left_row, const T* right, int64_t right_row, T* c,
                       int64_t c_row, int64_t rows, int64_t columns, int64_t terms,
                       bool above = false) {
    for (int64_t j = 0; j < columns; j += 2 * kL) {
      const bool two = j + kL < columns;
      const int64_t end = above ? min_of(rows, j + (two ? 2 : 1) * kL) : rows;
      const auto tile = two ? product_tile<X, 2> : product_tile<X, 1>;
      for (int64_t i = 0; i < end; i += kRows)
        tile(left + i * left_row, left_row, 1, right + j, right_row, c + i * c_row + j, c_row,
             terms);
    }
  }

  // c = left right of symmetric c, [side][side].
  void multiply_symmetric(const T* left, int64_t left_row, const T* right, int64_t right_row, T* c,
                          int64_t terms) const {
    multiply(left, left_row, right, right_row, c, square_row, side, side, terms, true);
    for (int64_t j = 0; j < side; j += kL) {
      const int64_t end = min_of(side, j + kL);
      for (int64_t i = j; i < end; i++)
        for (int64_t k = j; k < i; k++) c[i * square_row + k] = c[k * square_row + i];
      transpose_into<X>(c + j * square_row + end, square_row, c + end * square_row + j, square_row,
                        end - j, side - end);
    }
  }

  void multiply_squares(const T* left, const T* right, T* c) const {
    multiply_symmetric(left, square_row, right, square_row, c, side);
  }

  // --- a step ------------------------------------------------------------------------------------

  // step(place in the tensors, place in a padded matrix, vector) for every vector.
  template <class Step>
  void over_vectors(Step step) const {
    for (int64_t k = 0; k < m.K; k++) {
      for_each_vector<X>(m.L,
                         [&](int64_t l, auto vector) { step(k * m.L + l, k * row + l, vector); });
    }
  }

  void average() const {
    const T* const grad = static_cast<const T*>(m.grad);
    T* const average = static_cast<T*>(m.average);
    const V share = X::set1(static_cast<T>(1 - a.momentum));
    fill_zero(u, round_up(m.K, kRows) * row);
    over_vectors([&](int64_t at, int64_t padded, auto vector) {
      const V g = vector.load(grad + at), old = vector.load(average + at);
      const V b = X::fma(share, X::sub(g, old), old);
      vector.store(average + at, b);
      vector.store(u + padded, X::fma(share, X::sub(g, b), b));
    });
    fill_zero(across, round_up(m.L, kRows) * column);
    transpose_into<X>(u, row, across, column, m.K, m.L);
  }

  // factor = x + y gram + z spare
  void combine(const double* coefficients) const {
    const V y = X::set1(static_cast<T>(coefficients[1])),
            z = X::set1(static_cast<T>(coefficients[2]));
    for (int64_t i = 0; i < side * square_row; i += kL)
      X::store(factor + i, X::fma(y, X::load(gram + i), X::mul(z, X::load(spare + i))));
    for (int64_t i = 0; i < side; i++)
      factor[i * (square_row + 1)] += static_cast<T>(coefficients[0]);
  }

  // product = (u u^T)^(-1/2) norm(u), roughly; returns 1 / norm(u).
  T inverse_root() {
    if (m.K <= m.L) {
      multiply_symmetric(u, row, across, column, gram, m.L);
    } else {
      multiply_symmetric(across, column, u, row, gram, m.K);
    }
    T squares = 0;
    for (int64_t i = 0; i < side; i++) squares += gram[i * (square_row + 1)];
    // As max(), but that what is no number stays none.
    if (squares < static_cast<T>(1e-14)) squares = static_cast<T>(1e-14);
    const V share = X::set1(1 / squares);
    for (int64_t i = 0; i < side * square_row; i += kL)
      X::store(gram + i, X::mul(X::load(gram + i), share));
    for (int64_t number = 0; number < a.polynomials; number++) {
      if (number > 0) {
        multiply_squares(factor, gram, spare);
        multiply_squares(spare, factor, gram);
      }
      multiply_squares(gram, gram, spare);
      combine(a.coefficients + 3 * number);
      if (number > 0) {
        multiply_squares(factor, product, spare);
        T* const made = spare;
        spare = product, product = made;
      } else {
        copy_into<X>(factor, product, side * square_row);
      }
    }
    return 1 / std::sqrt(squares);
  }

  void update() {
    average();
    const T scale = inverse_root() * std::sqrt(static_cast<T>(max_of(m.K, m.L)));
    T* const result = across;
    if (m.K <= m.L) {
      multiply(product, square_row, u, row, result, row, m.K, m.L, side);
    } else {
      multiply(u, row, product, square_row, result, row, m.K, m.L, side);
    }
    T* const weight = static_cast<T*>(m.weight);
    const V keep = X::set1(static_cast<T>(a.keep)), step = X::set1(-static_cast<T>(a.step) * scale);
    over_vectors([&](int64_t at, int64_t padded, auto vector) {
      const V kept = X::mul(keep, vector.load(weight + at));
      vector.store(weight + at, X::fma(step, X::load(result + padded), kept));
    });
  }
};

static int64_t muon_scratch(const MuonArgs& a, const MuonMatrix& m) {
  return with_compute(a.dtype, [&](auto x) { return Muon<decltype(x)>(a, m, nullptr).arena.used; });
}

static void muon_update(const MuonArgs& a, const MuonMatrix& m, void* scratch) {
  with_compute(a.dtype, [&](auto x) { Muon<decltype(x)>(a, m, scratch).update(); });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
