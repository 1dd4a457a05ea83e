// The vector vocabulary for any processor, in the compiler's vector extensions: 16 bytes, 4 floats
// or 2 doubles.
//
// Every instruction set offers the same two structs, F32 and F64, with
//   T, V, M, kLanes             scalar, vector, mask, lanes
//   kTileCols                   convolution outputs that fit the registers beside 2 filter vectors
//   load, store (p, a[, n])     any alignment, from and to T, BFloat16, Float16 and uint8_t; n: the
//                               first n lanes, the others read as zero and are not written
//   load (p, n)                 also of int64_t, rounded to T
//   first (n)                   the mask of the first n lanes
//   stream (p, a)               store past the cache; p aligned to the vector
//   end_streams ()              other threads see what was streamed
//   max, min (a, b)             b where either is NaN, as x86 has it
//   fma (a, b, c)               a * b + c
//   scale2 (a, n)               a * 2^n for whole n
//   gt, ge, eq, is_nan, blend   comparisons are false for NaN; blend (m, yes, no)
//   compress (m, a, first, values, lanes)
//                               the chosen lanes of a and their numbers, counted from first;
//                               returns how many, and may write kLanes of each
//   kPermutes                   whether the two words that follow are there
//   permute (a, index)          lane i is lane index[i] of a; index holds integers, by their bits,
//                               of which only the low ones that number a lane are looked at
//   keep (a)                    a, in a register: or the compiler reads memory again at every use
//   load_integers (p, n)        n bytes as such integers
//   transpose (a)               kLanes vectors as a square matrix
//   sum, max (a)                over the lanes, in a fixed order
#pragma once

#include <cmath>

#include "scalar.h"

namespace imgfast::cpu::generic {

template <class Scalar, class Integer>
struct Generic {
  using T = Scalar;
  typedef Scalar V __attribute__((vector_size(16)));
  typedef Integer M __attribute__((vector_size(16)));
  static constexpr int kLanes = 16 / sizeof(T);
  static constexpr int kTileCols = 6;
  static constexpr bool kPermutes = false;

  static V zero() { return V{}; }
  static V set1(T a) { return V{} + a; }
  static M first(int n) {
    M m{};
    for (int i = 0; i < kLanes; i++) m[i] = i < n ? -1 : 0;
    return m;
  }
  template <class U>
  static V load(const U* p) {
    return load(p, kLanes);
  }
  template <class U>
  static void store(U* p, V a) {
    store(p, a, kLanes);
  }
  static V load(const T* p) {
    V a;
    std::memcpy(&a, p, sizeof a);
    return a;
  }
  static void store(T* p, V a) { std::memcpy(p, &a, sizeof a); }
  static void stream(T* p, V a) { store(p, a); }
  static void end_streams() {}
  template <class U>
  static V load(const U* p, int n) {
    V a{};
    for (int i = 0; i < n; i++) a[i] = widen(p[i]);
    return a;
  }
  template <class U>
  static void store(U* p, V a, int n) {
    for (int i = 0; i < n; i++) narrow(a[i], p + i);
  }

  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V fma(V a, V b, V c) { return a * b + c; }
  static V max(V a, V b) { return a > b ? a : b; }
  static V min(V a, V b) { return a < b ? a : b; }
  static V abs(V a) { return max(a, -a); }
  static V round(V a) {
    for (int i = 0; i < kLanes; i++) a[i] = std::nearbyint(a[i]);
    return a;
  }
  static V scale2(V a, V n) {
    for (int i = 0; i < kLanes; i++) a[i] = std::ldexp(a[i], static_cast<int>(n[i]));
    return a;
  }
  static V copy_sign(V magnitude, V sign) {
    for (int i = 0; i < kLanes; i++) magnitude[i] = std::copysign(magnitude[i], sign[i]);
    return magnitude;
  }

  static M gt(V a, V b) { return a > b; }
  static M ge(V a, V b) { return a >= b; }
  static M eq(V a, V b) { return a == b; }
  static M is_nan(V a) { return a != a; }
  static M either(M a, M b) { return a | b; }
  static bool any(M m) {
    Integer bits = 0;
    for (int i = 0; i < kLanes; i++) bits |= m[i];
    return bits != 0;
  }
  static V blend(M m, V yes, V no) { return m ? yes : no; }

  static int compress(M m, V a, int first_lane, T* values, int32_t* lanes) {
    unsigned bits = 0;
    for (int i = 0; i < kLanes; i++) bits |= static_cast<unsigned>(m[i] & 1) << i;
    return compress_lanes<Generic>(bits, a, first_lane, values, lanes);
  }
  static void transpose(V (&a)[kLanes]) { transpose_lanes<Generic>(a); }
  static T sum(V a) {
    T s = a[0];
    for (int i = 1; i < kLanes; i++) s += a[i];
    return s;
  }
  static T max(V a) {
    T m = a[0];
    for (int i = 1; i < kLanes; i++) m = m > a[i] ? m : a[i];
    return m;
  }

 private:
  static T widen(T a) { return a; }
  static T widen(BFloat16 a) { return to_float(a); }
  static T widen(Float16 a) { return to_float(a); }
  static T widen(uint8_t a) { return a; }
  static T widen(int64_t a) { return static_cast<T>(a); }
  static void narrow(T a, T* p) { *p = a; }
  static void narrow(T a, BFloat16* p) { *p = to_bfloat16(static_cast<float>(a)); }
  static void narrow(T a, Float16* p) { *p = to_float16(static_cast<float>(a)); }
  static void narrow(T a, uint8_t* p) { *p = static_cast<uint8_t>(a); }
};

using F32 = Generic<float, int32_t>;
using F64 = Generic<double, int64_t>;

}  // namespace imgfast::cpu::generic
