// Matrices on their way between memory and the kernels: copied, transposed, widened and narrowed;
// scratch and dtypes.
//
// A kernel's inner loops are functions that are not inlined, for all but the smallest: a caller of
// many loops leaves them no registers.
#pragma once

#include "../dtype.h"

namespace imgfast::cpu::IMGFAST_ISA {

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// At least so many elements, an odd number of cache lines: rows or planes that many apart do not
// share a few sets of the cache.
static inline int64_t odd_lines(int64_t elements) { return (ceil_div(elements, 16) | 1) * 16; }

template <class A, class B>
inline constexpr bool kSameType = false;
template <class A>
inline constexpr bool kSameType<A, A> = true;

// A vector in memory, and the first lanes of one.
template <class X>
struct WholeVector {
  template <class T>
  typename X::V load(const T* from) const {
    return X::load(from);
  }
  template <class T>
  void store(T* to, typename X::V v) const {
    X::store(to, v);
  }
};
template <class X>
struct PartVector {
  int count;
  template <class T>
  typename X::V load(const T* from) const {
    return X::load(from, count);
  }
  template <class T>
  void store(T* to, typename X::V v) const {
    X::store(to, v, count);
  }
};

// step(first element, vector) for all vectors of a row, of which the last may be a part.
template <class X, class Step>
[[gnu::always_inline]] static inline void for_each_vector(int64_t count, Step step) {
  int64_t i = 0;
  for (; i + X::kLanes <= count; i += X::kLanes) step(i, WholeVector<X>{});
  if (i < count) step(i, PartVector<X>{static_cast<int>(count - i)});
}

// Sub-allocates a scratch buffer in blocks aligned to 64 bytes; with a null base it only measures.
struct Arena {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* block = reinterpret_cast<T*>(base + used);
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return block;
  }
};

// dst[j * dst_stride + i] = src[i * src_stride + j] for i < rows, j < cols.
template <class X, class In, class Out>
static void transpose_into(const In* src, int64_t src_stride, Out* dst, int64_t dst_stride,
                           int64_t rows, int64_t cols) {
  constexpr int kL = X::kLanes;
  for (int64_t i = 0; i < rows; i += kL) {
    const int ni = static_cast<int>(min_of(kL, rows - i));
    for (int64_t j = 0; j < cols; j += kL) {
      const int nj = static_cast<int>(min_of(kL, cols - j));
      const In* from = src + i * src_stride + j;
      Out* to = dst + j * dst_stride + i;
      typename X::V block[kL];
      if (ni == kL && nj == kL) {
        for (int l = 0; l < kL; l++) block[l] = X::load(from + l * src_stride);
        X::transpose(block);
        for (int l = 0; l < kL; l++) X::store(to + l * dst_stride, block[l]);
      } else {
        for (int l = 0; l < kL; l++)
          block[l] = l < ni ? X::load(from + l * src_stride, nj) : X::zero();
        X::transpose(block);
        for (int l = 0; l < kL; l++) {
          if (l < nj) X::store(to + l * dst_stride, block[l], ni);
        }
      }
    }
  }
}

template <class X, class In, class Out>
static inline void copy_into(const In* src, Out* dst, int64_t count) {
  int64_t i = 0;
  for (; i + X::kLanes <= count; i += X::kLanes) X::store(dst + i, X::load(src + i));
  if (i < count) {
    const int n = static_cast<int>(count - i);
    X::store(dst + i, X::load(src + i, n), n);
  }
}

// A matrix [cols][channels] of any strides from src to dst, in whatever way suits the strides.
template <class X, class In, class Out>
static void copy_matrix(const In* src, int64_t src_col, int64_t src_channel, Out* dst,
                        int64_t dst_col, int64_t dst_channel, int64_t cols, int64_t channels) {
  if (channels == 1) src_channel = dst_channel = 1;
  if (src_channel == 1 && dst_channel == 1) {
    if (src_col == channels && dst_col == channels) {
      copy_into<X>(src, dst, cols * channels);
    } else {
      for (int64_t j = 0; j < cols; j++)
        copy_into<X>(src + j * src_col, dst + j * dst_col, channels);
    }
  } else if (src_col == 1 && dst_channel == 1) {
    transpose_into<X>(src, src_channel, dst, dst_col, channels, cols);
  } else if (src_channel == 1 && dst_col == 1) {
    transpose_into<X>(src, src_col, dst, dst_channel, cols, channels);
  } else {
    for (int64_t j = 0; j < cols; j++) {
      for (int64_t c = 0; c < channels; c++) {
        X::store(dst + j * dst_col + c * dst_channel,
                 X::load(src + j * src_col + c * src_channel, 1), 1);
      }
    }
  }
}

template <class T>
static inline void fill_zero(T* p, int64_t count) {
  if (count > 0) std::memset(static_cast<void*>(p), 0, count * sizeof(T));
}

// Calls function(compute type) for the tensor dtype.
template <class Function>
static inline auto with_compute(DType dtype, Function function) {
  if (dtype == DType::kFloat64) return function(F64{});
  return function(F32{});
}

// Calls function(storage type) for a tensor dtype that is computed in X.
template <class X, class Function>
static inline auto with_storage(DType dtype, Function function) {
  if constexpr (kSameType<X, F64>) {
    return function(double{});
  } else {
    if (dtype == DType::kBFloat16) return function(BFloat16{});
    if (dtype == DType::kFloat16) return function(Float16{});
    return function(float{});
  }
}

// Calls function(compute type, storage type) for the tensor dtype.
template <class Function>
static inline auto with_dtype(DType dtype, Function function) {
  return with_compute(dtype, [&](auto x) {
    return with_storage<decltype(x)>(dtype, [&](auto io) { return function(x, io); });
  });
}

// Whether tensors of that dtype hold what X computes with.
template <class X>
static inline bool is_computed_as_stored(DType dtype) {
  return dtype == (kSameType<X, F64> ? DType::kFloat64 : DType::kFloat32);
}

// copy_matrix from a tensor of that dtype, channels together in dst.
template <class X>
[[gnu::noinline]] static void read_matrix(DType dtype, const void* src, int64_t src_col,
                                          int64_t src_channel, typename X::T* dst, int64_t dst_col,
                                          int64_t cols, int64_t channels) {
  with_storage<X>(dtype, [&](auto io) {
    copy_matrix<X>(static_cast<const decltype(io)*>(src), src_col, src_channel, dst, dst_col, 1,
                   cols, channels);
  });
}

// copy_matrix into a tensor of that dtype, channels together in src.
template <class X>
[[gnu::noinline]] static void write_matrix(const typename X::T* src, int64_t src_col, DType dtype,
                                           void* dst, int64_t dst_col, int64_t dst_channel,
                                           int64_t cols, int64_t channels) {
  with_storage<X>(dtype, [&](auto io) {
    copy_matrix<X>(src, src_col, 1, static_cast<decltype(io)*>(dst), dst_col, dst_channel, cols,
                   channels);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
