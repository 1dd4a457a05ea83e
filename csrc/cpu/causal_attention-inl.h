// A head of a sequence at a time, all of it in the cache: rows are padded with zeros to whole
// vectors and tiles, so that one tile of products serves everything. What lies above the diagonal
// is left out a block of rows at a time. Backward computes the probabilities again, from the
// log-sum-exps:
//
//   dP = dO V^T   dS = scale P (dP - rowsum(P dP))   dV = P^T dO   dq = dS k   dk = dS^T q
#pragma once

#include <cmath>

#include "causal_attention.h"
#include "math-inl.h"
#include "matrix-inl.h"
#include "norm-inl.h"
#include "product_tile-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct CausalAttention {
  using T = typename X::T;
  using V = typename X::V;
  static constexpr int kRows = X::kTileCols, kL = X::kLanes;

  const CausalAttentionArgs& a;
  const int64_t rows = round_up(a.T, kRows);  // of a matrix of positions
  const int64_t width = round_up(a.D, kL);    // of a row of a head
  const int64_t across = round_up(rows, kL);  // of a row of scores
  Arena arena;
  T *const queries = head(), *const keys = head(), *const values = head();
  T *const query_rate = arena.take<T>(rows), *const key_rate = arena.take<T>(rows);
  T* const keys_across = arena.take<T>(width * across);
  T* const scores = arena.take<T>(rows * across);
  T* const result = head();
  T *const tops = arena.take<T>(rows), *const totals = arena.take<T>(rows);
  // Backward alone:
  T *const means = arena.take<T>(rows), *const slopes = arena.take<T>(rows);
  T *const grad = head(), *const values_across = arena.take<T>(width * across);
  T* const grad_scores = arena.take<T>(rows * across);

  CausalAttention(const CausalAttentionArgs& args, void* scratch)
      : a(args), arena{static_cast<char*>(scratch)} {}

  T* head() { return arena.template take<T>(rows * width); }

  // --- rows between tensors and scratch ----------------------------------------------------------

  // Position 0 of queries (0), keys (1) or values (2) of a unit; the next one is 3 H D further on.
  int64_t place(int64_t unit, int64_t part) const {
    return (unit / a.H * a.T * 3 + part) * a.H * a.D + unit % a.H * a.D;
  }
  int64_t place_in_output(int64_t unit) const {
    return unit / a.H * a.T * a.H * a.D + unit % a.H * a.D;
  }

  // Rows of a head lie apart, where no processor guesses the next one: they are asked for while the
  // unit before is at work, and those to be written while their own is.
  template <int kWrite>
  void ask_for(const void* tensor, int64_t place, int64_t stride) const {
    const char* row = reinterpret_cast<const char*>(static_cast<const T*>(tensor) + place);
    const int64_t bytes = a.D * static_cast<int64_t>(sizeof(T));
    for (int64_t t = 0; t < a.T; t++, row += stride * static_cast<int64_t>(sizeof(T)))
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row + b, kWrite, 2);
  }

  void read(const void* tensor, int64_t place, int64_t stride, T* to) const {
    const T* from = static_cast<const T*>(tensor) + place;
    for (int64_t t = 0; t < a.T; t++, from += stride) {
      T* const row = to + t * width;
      copy_into<X>(from, row, a.D);
      for (int64_t d = a.D; d < width; d++) row[d] = 0;
    }
    fill_zero(to + a.T * width, (rows - a.T) * width);
  }

  void write(const T* from, void* tensor, int64_t place, int64_t stride) const {
    T* to = static_cast<T*>(tensor) + place;
    for (int64_t t = 0; t < a.T; t++, to += stride) copy_into<X>(from + t * width, to, a.D);
  }

  void normalise(T* matrix, T* rate) const { normalise_rows<X>(matrix, a.T, width, a.D, rate); }
  void through_normalise(T* gradient, const T* normalised, const T* rate) const {
    through_normalise_rows<X>(gradient, normalised, rate, a.T, width, a.D, means, slopes);
  }

  // --- products, of which the causal half alone is computed --------------------------------------

  void product(const T* left, int64_t left_row, int64_t left_col, const T* right, int64_t right_row,
               T* c, int64_t row, int64_t columns, int64_t c_row, int64_t terms) const {
    left += row * left_row, c += row * c_row;
    int64_t j = 0;
    for (; j + 2 * kL <= columns; j += 2 * kL)
      product_tile<X, 2>(left, left_row, left_col, right + j, right_row, c + j, c_row, terms);
    for (; j < columns; j += kL)
      product_tile<X, 1>(left, left_row, left_col, right + j, right_row, c + j, c_row, terms);
  }

  // s[i][j] = left_i . right_j for j <= i, and some above; right lies across.
  void dot_rows(const T* left, const T* right, T* s) const {
    for (int64_t i = 0; i < rows; i += kRows)
      product(left, width, 1, right, across, s, i, min_of(i + kRows, a.T), across, a.D);
  }

  // c_i = sum over j <= i of s[i][j] right_j; s is zero above the diagonal.
  void sum_before(const T* s, const T* right, T* c) const {
    for (int64_t i = 0; i < rows; i += kRows)
      product(s, across, 1, right, width, c, i, a.D, width, min_of(i + kRows, a.T));
  }

  // c_j = sum over i >= j of s[i][j] left_i.
  void sum_after(const T* s, const T* left, T* c) const {
    for (int64_t j = 0; j < rows; j += kRows) {
      product(s + j * across, 1, across, left + j * width, width, c, j, a.D, width,
              max_of(0, a.T - j));
    }
  }

  // --- the two passes ----------------------------------------------------------------------------

  void read_unit(int64_t unit, int64_t end) {
    const int64_t stride = 3 * a.H * a.D;
    read(a.qkv, place(unit, 0), stride, queries);
    read(a.qkv, place(unit, 1), stride, keys);
    read(a.qkv, place(unit, 2), stride, values);
    for (int64_t part = 0; unit + 1 < end && part < 3; part++)
      ask_for<0>(a.qkv, place(unit + 1, part), stride);
    normalise(queries, query_rate);
    normalise(keys, key_rate);
    transpose_into<X>(keys, width, keys_across, across, a.T, a.D);
    dot_rows(queries, keys_across, scores);
  }

  // Zeros after the vector that holds the diagonal.
  void clear_above(T* row, int64_t i) const {
    const int64_t begin = round_up(i + 1, kL);
    fill_zero(row + begin, across - begin);
  }

  void forward(int64_t unit, int64_t end) {
    read_unit(unit, end);
    ask_for<1>(a.out, place_in_output(unit), a.H * a.D);
    T* const logsumexp = static_cast<T*>(a.logsumexp) + unit * a.T;
    const V scale = X::set1(static_cast<T>(a.scale)), lowest = X::set1(-INFINITY);
    // As in norm-inl.h, a pass over all rows for each step.
    for (int64_t i = 0; i < a.T; i++) {
      T* const row = scores + i * across;
      V largest = lowest;
      for (int64_t j = 0; j <= i; j += kL) {
        const V s = first_lanes<X>(i + 1 - j, X::mul(X::load(row + j), scale), lowest);
        X::store(row + j, s);
        largest = X::max(largest, s);
      }
      tops[i] = X::max(largest);
    }
    for (int64_t i = 0; i < a.T; i++) {
      T* const row = scores + i * across;
      const V top = X::set1(tops[i]);
      V sum = X::zero();
      for (int64_t j = 0; j <= i; j += kL) {
        const V p = first_lanes<X>(i + 1 - j, exp_of(X{}, X::sub(X::load(row + j), top)));
        X::store(row + j, p);
        sum = X::add(sum, p);
      }
      totals[i] = X::sum(sum);
    }
    for (int64_t i = 0; i < a.T; i++) {
      T* const row = scores + i * across;
      logsumexp[i] = tops[i] + std::log(totals[i]);
      const V share = X::set1(1 / totals[i]);
      for (int64_t j = 0; j <= i; j += kL) X::store(row + j, X::mul(X::load(row + j), share));
      clear_above(row, i);
    }
    sum_before(scores, values, result);
    write(result, a.out, place_in_output(unit), a.H * a.D);
  }

  void backward(int64_t unit, int64_t end) {
    const int64_t stride = 3 * a.H * a.D;
    read_unit(unit, end);
    read(a.grad_out, place_in_output(unit), a.H * a.D, grad);
    if (unit + 1 < end) ask_for<0>(a.grad_out, place_in_output(unit + 1), a.H * a.D);
    for (int64_t part = 0; part < 3; part++) ask_for<1>(a.grad_qkv, place(unit, part), stride);
    transpose_into<X>(values, width, values_across, across, a.T, a.D);
    dot_rows(grad, values_across, grad_scores);
    const T* const logsumexp = static_cast<const T*>(a.logsumexp) + unit * a.T;
    const V scale = X::set1(static_cast<T>(a.scale));
    for (int64_t i = 0; i < a.T; i++) {
      T* const p = scores + i * across;
      T* const ds = grad_scores + i * across;
      const V top = X::set1(-logsumexp[i]);
      V sum = X::zero();
      for (int64_t j = 0; j <= i; j += kL) {
        const V share = first_lanes<X>(i + 1 - j, exp_of(X{}, X::fma(X::load(p + j), scale, top)));
        const V dp = first_lanes<X>(i + 1 - j, X::load(ds + j));
        X::store(p + j, share);
        X::store(ds + j, dp);
        sum = X::fma(share, dp, sum);
      }
      totals[i] = X::sum(sum);
    }
    for (int64_t i = 0; i < a.T; i++) {
      T* const p = scores + i * across;
      T* const ds = grad_scores + i * across;
      const V rest = X::set1(totals[i]);
      for (int64_t j = 0; j <= i; j += kL) {
        const V away = X::sub(X::load(ds + j), rest);
        X::store(ds + j, X::mul(X::mul(X::load(p + j), away), scale));
      }
      clear_above(p, i);
      clear_above(ds, i);
    }
    sum_after(scores, grad, result);
    write(result, a.grad_qkv, place(unit, 2), stride);
    sum_before(grad_scores, keys, result);
    through_normalise(result, queries, query_rate);
    write(result, a.grad_qkv, place(unit, 0), stride);
    sum_after(grad_scores, queries, result);
    through_normalise(result, keys, key_rate);
    write(result, a.grad_qkv, place(unit, 1), stride);
  }
};

static int64_t causal_attention_scratch(const CausalAttentionArgs& a) {
  return with_compute(a.dtype,
                      [&](auto x) { return CausalAttention<decltype(x)>(a, nullptr).arena.used; });
}

static void causal_attention_forward(const CausalAttentionArgs& a, int64_t begin, int64_t end,
                                     void* scratch) {
  with_compute(a.dtype, [&](auto x) {
    CausalAttention<decltype(x)> head(a, scratch);
    for (int64_t unit = begin; unit < end; unit++) head.forward(unit, end);
  });
}

static void causal_attention_backward(const CausalAttentionArgs& a, int64_t begin, int64_t end,
                                      void* scratch) {
  with_compute(a.dtype, [&](auto x) {
    CausalAttention<decltype(x)> head(a, scratch);
    for (int64_t unit = begin; unit < end; unit++) head.backward(unit, end);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
