// A product of small matrices in the cache, as many rows of it at once as registers hold.
#pragma once

#include <cstdint>

namespace imgfast::cpu::IMGFAST_ISA {

// c[i][lanes] = sum over `terms` l of a[i a_row + l a_col] b[l b_row + lanes], for a tile's rows.
template <class X, int kVectors>
[[gnu::noinline]] static void product_tile(const typename X::T* a, int64_t a_row, int64_t a_col,
                                           const typename X::T* b, int64_t b_row, typename X::T* c,
                                           int64_t c_row, int64_t terms) {
  using V = typename X::V;
  constexpr int kRows = X::kTileCols, kL = X::kLanes;
  V sums[kRows][kVectors];
#pragma GCC unroll 12
  for (auto& row : sums)
#pragma GCC unroll 2
    for (V& sum : row) sum = X::zero();
  for (int64_t l = 0; l < terms; l++, a += a_col, b += b_row) {
    V columns[kVectors];
    for (int v = 0; v < kVectors; v++) columns[v] = X::load(b + v * kL);
    for (int i = 0; i < kRows; i++) {
      const V factor = X::set1(a[i * a_row]);
      for (int v = 0; v < kVectors; v++) sums[i][v] = X::fma(factor, columns[v], sums[i][v]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; v++) X::store(c + i * c_row + v * kL, sums[i][v]);
}

}  // namespace imgfast::cpu::IMGFAST_ISA
