// The threshold leaves a list of numbers that are not zero, and everything but U x is a walk along
// such lists: of a row's hidden numbers for y and the gradient at x, of a hidden number's rows for
// the gradients at U and V. A walk sums up whole rows in registers, and reads only what counts:
//
//   y = sum over h of h^2 V[h]     dh = dy V[h]     dz = 2 h dh     dx = sum over h of dz U[h]
//   dU[h] = sum over n of dz x[n]     dV[h] = sum over n of h^2 dy[n]
//
// with V[h] the column. Rows are padded with zeros to whole vectors.
#pragma once

#include "count-inl.h"
#include "feed_forward.h"
#include "matrix-inl.h"
#include "product_tile-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// sum[lanes] += sum over a list of factor rows[at][lanes].
template <class X, int kVectors>
[[gnu::noinline]] static void add_listed(const typename X::T* factor, const int32_t* at,
                                         int64_t count, const typename X::T* rows, int64_t stride,
                                         typename X::T* sum) {
  typename X::V sums[kVectors];
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; v++) sums[v] = X::load(sum + v * X::kLanes);
  for (int64_t i = 0; i < count; i++) {
    const typename X::T* const row = rows + at[i] * stride;
    const auto f = X::set1(factor[i]);
#pragma GCC unroll 24
    for (int v = 0; v < kVectors; v++) sums[v] = X::fma(f, X::load(row + v * X::kLanes), sums[v]);
  }
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; v++) X::store(sum + v * X::kLanes, sums[v]);
}

// dot[i][lanes] += row[lanes] rows[at[i]][lanes], summed over vectors and not yet over lanes.
template <class X, int kVectors>
[[gnu::noinline]] static void dot_listed(const typename X::T* row, const int32_t* at, int64_t count,
                                         const typename X::T* rows, int64_t stride,
                                         typename X::T* dot) {
  typename X::V own[kVectors];
#pragma GCC unroll 24
  for (int v = 0; v < kVectors; v++) own[v] = X::load(row + v * X::kLanes);
  for (int64_t i = 0; i < count; i++, dot += X::kLanes) {
    const typename X::T* const other = rows + at[i] * stride;
    typename X::V sum = X::load(dot);
#pragma GCC unroll 24
    for (int v = 0; v < kVectors; v++) sum = X::fma(own[v], X::load(other + v * X::kLanes), sum);
    X::store(dot, sum);
  }
}

template <class X>
struct FeedForward {
  using T = typename X::T;
  using V = typename X::V;
  static constexpr int kL = X::kLanes, kTile = X::kTileCols;
  static constexpr int kMostVectors = 2 * kTile;  // of a row, in registers
  static constexpr int64_t kTileSize = kFedRows * kFedHidden;

  const FeedForwardArgs& a;
  const int64_t width = round_up(a.D, kL);  // of a row of x, y, U or V's columns
  const int64_t tiles = a.tiles(), hidden = tiles * kFedHidden;
  // A row's vectors in as many walks as the registers need, as even as can be.
  const int64_t vectors = width / kL;
  const int64_t step = ceil_div(vectors, ceil_div(vectors, kMostVectors));

  using AddListed = decltype(&add_listed<X, 1>);
  using DotListed = decltype(&dot_listed<X, 1>);
  const AddListed add_step = adding(step), add_last = adding(last_step());
  const DotListed dot_step = dotting(step), dot_last = dotting(last_step());

  Arena arena;
  // Rows of a unit.
  T *const rows = arena.take<T>(kFedRows * width), *const sums = arena.take<T>(kFedRows * width);
  T* const grad_rows = arena.take<T>(kFedRows * width);
  // Lists of a tile's rows or columns.
  static constexpr int64_t kMost = kFedRows > kFedHidden ? kFedRows : kFedHidden;
  static constexpr int64_t kRoom = kMost + kL;
  T *const factors = arena.take<T>(kMost * kRoom), *const others = arena.take<T>(kMost * kRoom);
  int32_t* const places = arena.take<int32_t>(kMost * kRoom);
  int64_t* const counts = arena.take<int64_t>(kMost);
  T* const dots = arena.take<T>(kRoom * kL);
  T* const across = arena.take<T>(kTileSize);
  // The weights in the order of their walks; the pass over weights has its sums there.
  T* const up_across = arena.take<T>(a.D * hidden);
  T *const up = arena.take<T>(hidden * width), *const down = arena.take<T>(hidden * width);

  FeedForward(const FeedForwardArgs& args, void* scratch)
      : a(args), arena{static_cast<char*>(scratch)} {}

  int64_t last_step() const { return vectors - (ceil_div(vectors, step) - 1) * step; }
  static AddListed adding(int64_t vectors) {
    return with_count<kMostVectors>(
        vectors, [](auto n) -> AddListed { return add_listed<X, decltype(n)::kValue>; });
  }
  static DotListed dotting(int64_t vectors) {
    return with_count<kMostVectors>(
        vectors, [](auto n) -> DotListed { return dot_listed<X, decltype(n)::kValue>; });
  }

  // sum += sum over a list of factors times rows of a matrix.
  void add(int64_t list, const T* factor, const T* matrix, T* sum) const {
    const int32_t* const at = places + list * kRoom;
    factor += list * kRoom;
    int64_t d = 0;
    for (; d + step < vectors; d += step)
      add_step(factor, at, counts[list], matrix + d * kL, width, sum + d * kL);
    add_last(factor, at, counts[list], matrix + d * kL, width, sum + d * kL);
  }

  // factor = 2 factor (row . row of the matrix), of a list.
  void dot(int64_t list, const T* row, const T* matrix) const {
    const int32_t* const at = places + list * kRoom;
    const int64_t count = counts[list];
    fill_zero(dots, count * kL);
    int64_t d = 0;
    for (; d + step < vectors; d += step)
      dot_step(row + d * kL, at, count, matrix + d * kL, width, dots);
    dot_last(row + d * kL, at, count, matrix + d * kL, width, dots);
    for (int64_t i = 0; i < count; i += kL) {
      V block[kL];
      for (int l = 0; l < kL; l++) block[l] = X::load(dots + (i + l) * kL);
      X::transpose(block);
      for (int apart = kL / 2; apart > 0; apart /= 2)
        for (int l = 0; l < apart; l++) block[l] = X::add(block[l], block[l + apart]);
      T* const factor = factors + list * kRoom + i;
      const V h = X::load(factor);
      X::store(factor, X::mul(X::add(h, h), block[0]));
    }
  }

  static typename X::M exceeds(V z, V threshold) {
    return X::either(X::gt(z, threshold), X::is_nan(z));
  }
  // Of what forward kept.
  static typename X::M is_kept(V h) { return exceeds(h, X::zero()); }

  // Rows [first, first + count) of a tensor [., D] to rows of vectors, zeros behind.
  void read(const void* tensor, int64_t first, int64_t count, int64_t padded, T* to) const {
    const T* const from = static_cast<const T*>(tensor) + first * a.D;
    if (width != a.D) fill_zero(to, count * width);
    copy_matrix<X>(from, a.D, 1, to, width, 1, count, a.D);
    fill_zero(to + count * width, (padded - count) * width);
  }

  void write(const T* from, int64_t first, int64_t count, void* tensor) const {
    copy_matrix<X>(from, width, 1, static_cast<T*>(tensor) + first * a.D, a.D, 1, count, a.D);
  }

  // --- forward -----------------------------------------------------------------------------------

  T* tile_of(void* tensor, int64_t unit, int64_t tile) const {
    return static_cast<T*>(tensor) + (unit * tiles + tile) * kTileSize;
  }

  // Zeros where there is no row or no hidden number: one that is not finite times the zeros behind
  // the others would be a number that counts.
  static void clear_beyond(T* tile, int64_t count, int64_t valid) {
    fill_zero(tile + count * kFedHidden, (kFedRows - count) * kFedHidden);
    for (int64_t i = 0; valid < kFedHidden && i < count; i++)
      fill_zero(tile + i * kFedHidden + valid, kFedHidden - valid);
  }

  void begin_forward() const {
    fill_zero(up_across, a.D * hidden);
    transpose_into<X>(static_cast<const T*>(a.up), a.D, up_across, hidden, a.H, a.D);
    read_down();
  }

  void read_down() const {
    fill_zero(down, hidden * width);
    transpose_into<X>(static_cast<const T*>(a.down), a.H, down, width, a.D, a.H);
  }

  void forward(int64_t unit) const {
    const int64_t first = unit * kFedRows, count = min_of(kFedRows, a.N - first);
    const V threshold = X::set1(static_cast<T>(a.threshold));
    read(a.x, first, count, kFedRows, rows);
    fill_zero(sums, count * width);
    for (int64_t tile = 0; tile < tiles; tile++) {
      T* const h = tile_of(a.h, unit, tile);
      for (int64_t j = 0; j < kFedHidden; j += 2 * kL) {
        for (int64_t i = 0; i < kFedRows; i += kTile) {
          product_tile<X, 2>(rows + i * width, width, 1, up_across + tile * kFedHidden + j, hidden,
                             h + i * kFedHidden + j, kFedHidden, a.D);
        }
      }
      clear_beyond(h, count, a.H - tile * kFedHidden);
      for (int64_t i = 0; i < count; i++) {
        int64_t listed = i * kRoom;
        for (int64_t j = 0; j < kFedHidden; j += kL) {
          T* const place = h + i * kFedHidden + j;
          const V z = X::load(place);
          const auto mask = exceeds(z, threshold);
          X::store(place, X::blend(mask, z, X::zero()));
          listed += X::compress(mask, X::mul(z, z), static_cast<int>(j), factors + listed,
                                places + listed);
        }
        counts[i] = listed - i * kRoom;
        add(i, factors, down + tile * kFedHidden * width, sums + i * width);
      }
    }
    write(sums, first, count, a.y);
  }

  // --- backward ----------------------------------------------------------------------------------

  void begin_rows() const {
    read(a.up, 0, a.H, hidden, up);
    read_down();
  }

  void backward_rows(int64_t unit) const {
    const int64_t first = unit * kFedRows, count = min_of(kFedRows, a.N - first);
    read(a.grad_y, first, count, kFedRows, rows);
    fill_zero(sums, count * width);
    for (int64_t tile = 0; tile < tiles; tile++) {
      const T* const h = tile_of(a.h, unit, tile);
      T* const z = tile_of(a.grad_z, unit, tile);
      const int64_t place = tile * kFedHidden * width;
      fill_zero(z, kTileSize);
      for (int64_t i = 0; i < count; i++) {
        int64_t listed = i * kRoom;
        for (int64_t j = 0; j < kFedHidden; j += kL) {
          const V v = X::load(h + i * kFedHidden + j);
          listed +=
              X::compress(is_kept(v), v, static_cast<int>(j), factors + listed, places + listed);
        }
        counts[i] = listed - i * kRoom;
        dot(i, rows + i * width, down + place);
        for (int64_t l = i * kRoom; l < listed; l++) z[places[l] * kFedRows + i] = factors[l];
      }
      for (int64_t i = 0; i < count; i++) add(i, factors, up + place, sums + i * width);
    }
    write(sums, first, count, a.grad_x);
  }

  // Of hidden numbers in tiles [begin, end), whose sums are rows of `up` and `down`.
  void backward_weights(int64_t begin, int64_t end) const {
    const int64_t count = (end - begin) * kFedHidden;
    fill_zero(up, count * width);
    fill_zero(down, count * width);
    for (int64_t unit = 0; unit < a.units(); unit++) {
      const int64_t first = unit * kFedRows, here = min_of(kFedRows, a.N - first);
      read(a.x, first, here, kFedRows, rows);
      read(a.grad_y, first, here, kFedRows, grad_rows);
      for (int64_t tile = begin; tile < end; tile++) {
        const T* const z = tile_of(a.grad_z, unit, tile);
        const int64_t place = (tile - begin) * kFedHidden * width;
        transpose_into<X>(tile_of(a.h, unit, tile), kFedHidden, across, kFedRows, kFedRows,
                          kFedHidden);
        for (int64_t j = 0; j < kFedHidden; j++) {
          int64_t listed = j * kRoom;
          for (int64_t i = 0; i < kFedRows; i += kL) {
            const V h = X::load(across + j * kFedRows + i);
            const V slope = X::load(z + j * kFedRows + i);
            const auto mask = is_kept(h);
            X::compress(mask, X::mul(h, h), static_cast<int>(i), factors + listed, places + listed);
            listed +=
                X::compress(mask, slope, static_cast<int>(i), others + listed, places + listed);
          }
          counts[j] = listed - j * kRoom;
        }
        for (int64_t j = 0; j < kFedHidden; j++) add(j, others, rows, up + place + j * width);
        for (int64_t j = 0; j < kFedHidden; j++)
          add(j, factors, grad_rows, down + place + j * width);
      }
    }
    const int64_t from = begin * kFedHidden, valid = min_of(count, a.H - from);
    write(up, from, valid, a.grad_up);
    transpose_into<X>(down, width, static_cast<T*>(a.grad_down) + from, a.H, valid, a.D);
  }
};

static int64_t feed_forward_scratch(const FeedForwardArgs& a) {
  return with_compute(a.dtype,
                      [&](auto x) { return FeedForward<decltype(x)>(a, nullptr).arena.used; });
}

static void feed_forward_forward(const FeedForwardArgs& a, int64_t begin, int64_t end,
                                 void* scratch) {
  with_compute(a.dtype, [&](auto x) {
    const FeedForward<decltype(x)> pass(a, scratch);
    pass.begin_forward();
    for (int64_t unit = begin; unit < end; unit++) pass.forward(unit);
  });
}

static void feed_forward_backward_rows(const FeedForwardArgs& a, int64_t begin, int64_t end,
                                       void* scratch) {
  with_compute(a.dtype, [&](auto x) {
    const FeedForward<decltype(x)> pass(a, scratch);
    pass.begin_rows();
    for (int64_t unit = begin; unit < end; unit++) pass.backward_rows(unit);
  });
}

static void feed_forward_backward_weights(const FeedForwardArgs& a, int64_t begin, int64_t end,
                                          void* scratch) {
  with_compute(a.dtype, [&](auto x) {
    const FeedForward<decltype(x)> pass(a, scratch);
    pass.backward_weights(begin, end);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
