// The threshold leaves a list of numbers that are not zero, and everything but U x is a walk along
// such lists: of a row's hidden numbers for y and the gradient at x, of a hidden number's rows for
// the gradients at U and V. A walk sums up whole rows in registers, and reads only what counts:
//
//   y = sum over h of h^2 V[h]     dh = dy V[h]     dz = 2 h dh     dx = sum over h of dz U[h]
//   dU[h] = sum over n of dz x[n]     dV[h] = sum over n of h^2 dy[n]
//
// with V[h] the column. Rows are padded with zeros to whole vectors. Between the passes lists are
// all that is in memory: of rows from forward to the pass over rows, which sorts them into those of
// columns for the pass over weights.
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
  // A tile, and lists of it with room for a vector behind.
  static constexpr int64_t kRoom = kFedNumbers + kL;
  T* const z = arena.take<T>(kFedNumbers);
  T *const numbers = arena.take<T>(kRoom), *const factors = arena.take<T>(kRoom);
  int32_t* const places = arena.take<int32_t>(kRoom);
  T* const dots = arena.take<T>((kFedHidden + kL) * kL);
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
  void add(const T* factor, const int32_t* at, int64_t count, const T* matrix, T* sum) const {
    int64_t d = 0;
    for (; d + step < vectors; d += step)
      add_step(factor, at, count, matrix + d * kL, width, sum + d * kL);
    add_last(factor, at, count, matrix + d * kL, width, sum + d * kL);
  }

  // slope = 2 h (row . row of the matrix), of a list; whole vectors of it.
  void dot(const T* row, const T* h, const int32_t* at, int64_t count, const T* matrix,
           T* slope) const {
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
      const V v = X::load(h + i);
      X::store(slope + i, X::mul(X::add(v, v), block[0]));
    }
  }

  static typename X::M exceeds(V z, V threshold) {
    return X::either(X::gt(z, threshold), X::is_nan(z));
  }
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

  // A tile's lists, and where the next tile's are.
  struct Lists {
    int32_t* ends;
    T *numbers, *slopes;  // slopes: of columns alone
    int32_t* places;
    char* next;
  };

  // Of `lists` lists of `total` numbers, and of as many slopes, at a place.
  static Lists lists_at(void* place, int64_t lists, int64_t total, bool slopes) {
    auto* const ends = static_cast<int32_t*>(place);
    T* const numbers = reinterpret_cast<T*>(ends + lists);
    T* const behind = numbers + (slopes ? 2 : 1) * total;
    auto* const places = reinterpret_cast<int32_t*>(behind);
    const int64_t bytes = reinterpret_cast<char*>(places + total) - static_cast<char*>(place);
    return {ends, numbers, numbers + total, places,
            static_cast<char*>(place) + round_up(bytes, sizeof(T))};
  }
  static Lists rows_at(void* place) {
    const int64_t total = static_cast<const int32_t*>(place)[kFedRows - 1];
    return lists_at(place, kFedRows, total, false);
  }
  static Lists columns_at(void* place) {
    const int64_t total = static_cast<const int32_t*>(place)[kFedHidden - 1];
    return lists_at(place, kFedHidden, total, true);
  }

  char* rows_of(int64_t unit) const { return static_cast<char*>(a.h) + unit * a.kept_bytes(); }
  // Where each tile's columns begin, and the first of them.
  int64_t* columns_of(int64_t unit) const {
    return reinterpret_cast<int64_t*>(static_cast<char*>(a.columns) + unit * a.column_bytes());
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
    char* kept = rows_of(unit);
    read(a.x, first, count, kFedRows, rows);
    if (a.residual != nullptr) {
      read(a.residual, first, count, count, sums);
    } else {
      fill_zero(sums, count * width);
    }
    for (int64_t tile = 0; tile < tiles; tile++) {
      for (int64_t j = 0; j < kFedHidden; j += 2 * kL) {
        for (int64_t i = 0; i < kFedRows; i += kTile) {
          product_tile<X, 2>(rows + i * width, width, 1, up_across + tile * kFedHidden + j, hidden,
                             z + i * kFedHidden + j, kFedHidden, a.D);
        }
      }
      auto* const ends = reinterpret_cast<int32_t*>(kept);
      int64_t listed = 0;
      for (int64_t i = 0; i < kFedRows; i++) {
        const int64_t begin = listed;
        if (i < count) {
          listed = list_row(z + i * kFedHidden, a.H - tile * kFedHidden, threshold, begin);
          add(factors + begin, places + begin, listed - begin, down + tile * kFedHidden * width,
              sums + i * width);
        }
        ends[i] = static_cast<int32_t>(listed);
      }
      const Lists lists = rows_at(kept);
      copy(numbers, listed, lists.numbers);
      copy(places, listed, lists.places);
      kept = lists.next;
    }
    write(sums, first, count, a.y);
  }

  // Lists what counts of a row of hidden numbers, of which `valid` are some, and its squares;
  // returns where the list ends.
  int64_t list_row(T* row, int64_t valid, V threshold, int64_t begin) const {
    int64_t end = begin;
    // Numbers that are not finite times the zeros behind the others would be numbers that count.
    if (valid < kFedHidden) fill_zero(row + valid, kFedHidden - valid);
    for (int64_t j = 0; j < kFedHidden; j += kL) {
      const V h = X::load(row + j);
      end +=
          X::compress(exceeds(h, threshold), h, static_cast<int>(j), numbers + end, places + end);
    }
    for (int64_t l = begin; l < end; l += kL) {
      const V h = X::load(numbers + l);
      X::store(factors + l, X::mul(h, h));
    }
    return end;
  }

  template <class Number>
  static void copy(const Number* from, int64_t count, Number* to) {
    for (int64_t i = 0; i < count; i++) to[i] = from[i];
  }

  // --- backward ----------------------------------------------------------------------------------

  void begin_rows() const {
    read(a.up, 0, a.H, hidden, up);
    read_down();
  }

  void backward_rows(int64_t unit) const {
    const int64_t first = unit * kFedRows, count = min_of(kFedRows, a.N - first);
    char* kept = rows_of(unit);
    int64_t* const begins = columns_of(unit);
    char* sorted = reinterpret_cast<char*>(begins + tiles);
    read(a.grad_y, first, count, kFedRows, rows);
    fill_zero(sums, count * width);
    for (int64_t tile = 0; tile < tiles; tile++) {
      const Lists lists = rows_at(kept);
      const int64_t place = tile * kFedHidden * width;
      // One after the other, so that the nearest cache holds what each of them walks on.
      for (int64_t i = 0; i < count; i++) {
        const int64_t begin = begin_of(lists, i);
        dot(rows + i * width, lists.numbers + begin, lists.places + begin, lists.ends[i] - begin,
            down + place, factors + begin);
      }
      for (int64_t i = 0; i < count; i++) {
        const int64_t begin = begin_of(lists, i);
        add(factors + begin, lists.places + begin, lists.ends[i] - begin, up + place,
            sums + i * width);
      }
      begins[tile] = sorted - reinterpret_cast<char*>(begins);
      sorted = sort(lists, sorted);
      kept = lists.next;
    }
    write(sums, first, count, a.grad_x);
  }

  static int64_t begin_of(const Lists& lists, int64_t number) {
    return number > 0 ? lists.ends[number - 1] : 0;
  }

  // From a tile's rows, and the slopes of their numbers, to columns at a place; returns what is
  // behind them.
  char* sort(const Lists& from, char* place) const {
    const int64_t total = from.ends[kFedRows - 1];
    const Lists to = lists_at(place, kFedHidden, total, true);
    int32_t count[kFedHidden] = {};
    for (int64_t l = 0; l < total; l++) count[from.places[l]]++;
    int32_t begin = 0;
    for (int64_t j = 0; j < kFedHidden; j++) {
      to.ends[j] = begin;
      begin += count[j];
    }
    for (int32_t i = 0, l = 0; i < kFedRows; i++) {
      for (; l < from.ends[i]; l++) {
        const int32_t at = to.ends[from.places[l]]++;  // in the end, where the list ends
        to.numbers[at] = from.numbers[l] * from.numbers[l];
        to.slopes[at] = factors[l];
        to.places[at] = i;
      }
    }
    return to.next;
  }

  // Each of a tile's columns, times rows, on top of its sum.
  void add_columns(const Lists& lists, const T* factor, const T* from, T* to) const {
    for (int64_t j = 0; j < kFedHidden; j++) {
      const int64_t at = begin_of(lists, j);
      add(factor + at, lists.places + at, lists.ends[j] - at, from, to + j * width);
    }
  }

  // Of hidden numbers in tiles [begin, end), whose sums are rows of `up` and `down`.
  void backward_weights(int64_t begin, int64_t end) const {
    const int64_t count = (end - begin) * kFedHidden;
    fill_zero(up, count * width);
    fill_zero(down, count * width);
    for (int64_t unit = 0; unit < a.units(); unit++) {
      const int64_t first = unit * kFedRows, here = min_of(kFedRows, a.N - first);
      int64_t* const begins = columns_of(unit);
      read(a.x, first, here, kFedRows, rows);
      read(a.grad_y, first, here, kFedRows, grad_rows);
      for (int64_t tile = begin; tile < end; tile++) {
        const Lists lists = columns_at(reinterpret_cast<char*>(begins) + begins[tile]);
        const int64_t place = (tile - begin) * kFedHidden * width;
        add_columns(lists, lists.slopes, rows, up + place);
        add_columns(lists, lists.numbers, grad_rows, down + place);
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
