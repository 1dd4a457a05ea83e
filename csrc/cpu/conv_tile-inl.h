// The inner loop of every forward kernel: a tile of outputs by filters whose sums stay in
// registers, while filters stream past as vectors and inputs are broadcast, or read as vectors of
// the channels that belong to depthwise filters.
#pragma once

#include "conv_rows-inl.h"
#include "count-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// Filters of one block; the last one of a group may be one vector.
template <class X>
inline constexpr int64_t kFilterBlock = 2 * X::kLanes;

// Sums of TR rows x TC columns x NV vectors of filters.
template <class X, int NV, int TR, int TC>
struct Tile {
  static_assert(NV == 1 || NV == 2);
  typename X::V sum[TR][TC][NV];

  template <class Function>
  [[gnu::always_inline]] inline void for_each(Function function) {
#pragma GCC unroll 2
    for (int tr = 0; tr < TR; tr++) {
#pragma GCC unroll 12
      for (int tc = 0; tc < TC; tc++) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) function(sum[tr][tc][v], (tr * TC + tc) * NV + v);
      }
    }
  }
};

// Where the terms of a tile's sums lie, in elements: rows x segments runs of `length` terms;
// neighbouring outputs of the tile read the same runs one step further.
struct Reduction {
  int64_t rows, row_step, segments, segment_step, length;
  int64_t out_row_step, col_step;
  int64_t term_step = 1;  // from one term of a run to the next
};

// in: the terms of the tile's first output; weight: [terms][NV vectors]. A long reduction is cut
// into partial sums of kPartial terms, as the error of a sum grows with its length; they are added
// up in memory, which costs one visit in kPartial.
template <bool kDepthwise, class X, int NV, int TR, int TC>
[[gnu::always_inline]] static inline void convolve_tile(const Reduction& reduction,
                                                        const typename X::T* in,
                                                        const typename X::T* weight,
                                                        Tile<X, NV, TR, TC>& tile) {
  static_assert(NV == 1 || !kDepthwise);
  constexpr int64_t kPartial = 256;
  typename X::T total[TR * TC * NV * X::kLanes];
  bool partial = false;
  int64_t terms = 0;
  tile.for_each([](auto& sum, int) { sum = X::zero(); });
  const int64_t step = reduction.col_step, step3 = 3 * step, term = reduction.term_step;
  for (int64_t r = 0; r < reduction.rows; r++) {
    for (int64_t segment = 0; segment < reduction.segments; segment++) {
      const typename X::T* from = in + r * reduction.row_step + segment * reduction.segment_step;
      for (int64_t left = reduction.length; left > 0;) {
        if (terms == kPartial) {
          tile.for_each([&](auto& sum, int i) {
            typename X::T* to = total + i * X::kLanes;
            X::store(to, partial ? X::add(X::load(to), sum) : sum);
            sum = X::zero();
          });
          partial = true;
          terms = 0;
        }
        const int64_t count = min_of(left, kPartial - terms);
        for (int64_t i = 0; i < count; i++, from += term, weight += NV * X::kLanes) {
          // By name: GCC 12 leaves an array of them in memory for some TC, at half the speed.
          const typename X::V w0 = X::load(weight), w1 = X::load(weight + (NV - 1) * X::kLanes);
#pragma GCC unroll 2
          for (int tr = 0; tr < TR; tr++) {
            const typename X::T* at_row = from + tr * reduction.out_row_step;
#pragma GCC unroll 12
            for (int tc = 0; tc < TC; tc++) {
              // Columns in threes, so that x86 addresses them as base, base + step, base + 2 step.
              const typename X::T* column = at_row + tc / 3 * step3 + tc % 3 * step;
              const typename X::V b = kDepthwise ? X::load(column) : X::set1(*column);
              tile.sum[tr][tc][0] = X::fma(b, w0, tile.sum[tr][tc][0]);
              if (NV == 2) tile.sum[tr][tc][NV - 1] = X::fma(b, w1, tile.sum[tr][tc][NV - 1]);
            }
          }
        }
        left -= count;
        terms += count;
      }
    }
  }
  if (partial) {
    tile.for_each([&](auto& sum, int i) { sum = X::add(X::load(total + i * X::kLanes), sum); });
  }
}

}  // namespace imgfast::cpu::IMGFAST_ISA
