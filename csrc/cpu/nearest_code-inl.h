// Rows lie in the lanes and codes come one after the other, so that each lane keeps the best code
// of its own row and no two lanes have to be compared. Scores are compared in the registers that
// they were summed up in: a matrix of all distances, which is 32 times as large as rows of 16
// numbers where the book has 512, exists nowhere.
#pragma once

#include <cmath>

#include "matrix-inl.h"
#include "nearest_code.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct NearestCode {
  using T = typename X::T;
  using V = typename X::V;
  static constexpr int kVectors = 2, kRows = kVectors * X::kLanes;  // of x, in a block
  static constexpr int kCodes = X::kTileCols;                       // scored at once

  const NearestCodeArgs& a;
  Arena arena;
  const int64_t codes = round_up(a.K, kCodes);
  T* const book = arena.take<T>(codes * a.D);
  T* const start = arena.take<T>(codes);  // -|b|^2 / 2
  T* const x = arena.take<T>(a.D * kRows);
  T* const found = arena.take<T>(kRows);

  NearestCode(const NearestCodeArgs& args, void* scratch)
      : a(args), arena{static_cast<char*>(scratch)} {}

  // The book, filled up to whole tiles with codes that are never the nearest.
  void read_book() const {
    copy_into<X>(static_cast<const T*>(a.book), book, a.K * a.D);
    fill_zero(book + a.K * a.D, (codes - a.K) * a.D);
    for (int64_t k = 0; k < codes; k++) {
      T squares = 0;
      for (int64_t d = 0; d < a.D; d++) squares += book[k * a.D + d] * book[k * a.D + d];
      start[k] = k < a.K ? -squares / 2 : -INFINITY;
    }
  }

  // Scores of kCodes codes from number k on; best and code are of those before.
  [[gnu::noinline]] void score(int64_t k, V (&best)[kVectors], V (&code)[kVectors]) const {
    V sums[kCodes][kVectors];
    for (int i = 0; i < kCodes; i++)
      for (V& sum : sums[i]) sum = X::set1(start[k + i]);
    const T* b = book + k * a.D;
    for (int64_t d = 0; d < a.D; d++, b++) {
      V columns[kVectors];
      for (int v = 0; v < kVectors; v++) columns[v] = X::load(x + d * kRows + v * X::kLanes);
      for (int i = 0; i < kCodes; i++) {
        const V factor = X::set1(b[i * a.D]);
        for (int v = 0; v < kVectors; v++) sums[i][v] = X::fma(factor, columns[v], sums[i][v]);
      }
    }
    for (int i = 0; i < kCodes; i++) {
      const V number = X::set1(static_cast<T>(k + i));
      for (int v = 0; v < kVectors; v++) {
        const auto nearer = X::gt(sums[i][v], best[v]);
        best[v] = X::blend(nearer, sums[i][v], best[v]);
        code[v] = X::blend(nearer, number, code[v]);
      }
    }
  }

  void block(int64_t unit) const {
    const int64_t first = unit * kRows;
    const int64_t count = min_of(kRows, a.N - first);
    if (count < kRows) fill_zero(x, a.D * kRows);
    transpose_into<X>(static_cast<const T*>(a.rows) + first * a.D, a.D, x, kRows, count, a.D);
    V best[kVectors], code[kVectors];
    for (int v = 0; v < kVectors; v++) best[v] = X::set1(-INFINITY), code[v] = X::zero();
    for (int64_t k = 0; k < codes; k += kCodes) score(k, best, code);
    for (int v = 0; v < kVectors; v++) X::store(found + v * X::kLanes, code[v]);
    for (int64_t n = 0; n < count; n++) a.codes[first + n] = static_cast<int64_t>(found[n]);
  }
};

static int64_t nearest_code_units(const NearestCodeArgs& a) {
  return with_compute(a.dtype,
                      [&](auto x) { return ceil_div(a.N, NearestCode<decltype(x)>::kRows); });
}

static int64_t nearest_code_scratch(const NearestCodeArgs& a) {
  return with_compute(a.dtype,
                      [&](auto x) { return NearestCode<decltype(x)>(a, nullptr).arena.used; });
}

static void nearest_code_find(const NearestCodeArgs& a, int64_t begin, int64_t end, void* scratch) {
  with_compute(a.dtype, [&](auto x) {
    const NearestCode<decltype(x)> nearest(a, scratch);
    nearest.read_book();
    for (int64_t unit = begin; unit < end; unit++) nearest.block(unit);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
