// Matrices on their way between memory and the kernels: copied, transposed, widened and narrowed;
// scratch and dtypes.
#pragma once

#include "../dtype.h"

namespace imgfast::cpu::IMGFAST_ISA {

static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <class A, class B>
inline constexpr bool kSameType = false;
template <class A>
inline constexpr bool kSameType<A, A> = true;

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

// Calls function(compute type, storage type) for a tensor dtype that is computed in float32.
template <class Function>
static inline auto with_float(DType dtype, Function function) {
  if (dtype == DType::kBFloat16) return function(F32{}, BFloat16{});
  if (dtype == DType::kFloat16) return function(F32{}, Float16{});
  return function(F32{}, float{});
}

// Calls function(compute type, storage type) for the tensor dtype.
template <class Function>
static inline auto with_dtype(DType dtype, Function function) {
  if (dtype == DType::kFloat64) return function(F64{}, double{});
  return with_float(dtype, function);
}

}  // namespace imgfast::cpu::IMGFAST_ISA
