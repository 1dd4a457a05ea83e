// The vector vocabulary in AVX2, FMA and F16C: one register, 8 floats or 4 doubles. See generic.h
// for what each word means.
#pragma once

#include <immintrin.h>

#include "scalar.h"

namespace imgfast::cpu::avx2 {

struct F32 {
  using T = float;
  using V = __m256;
  using M = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kTileCols = 6;  // 2 x 6 accumulators, 2 weights, 1 broadcast of 16 registers
  static constexpr bool kPermutes = true;

  static V zero() { return _mm256_setzero_ps(); }
  static V set1(T a) { return _mm256_set1_ps(a); }
  static V load(const T* p) { return _mm256_loadu_ps(p); }
  static void store(T* p, V a) { _mm256_storeu_ps(p, a); }
  static void stream(T* p, V a) { _mm256_stream_ps(p, a); }
  static void end_streams() { _mm_sfence(); }
  static M first(int n) { return _mm256_castsi256_ps(lanes(n)); }
  static V load(const T* p, int n) { return _mm256_maskload_ps(p, lanes(n)); }
  // A masked store takes some processors as long as ten others, and compilers keep it for a whole
  // vector, too.
  static void store(T* p, V a, int n) {
    if (n >= kLanes) return store(p, a);
    _mm256_maskstore_ps(p, lanes(n), a);
  }

  static V load(const BFloat16* p) { return widen(_mm_loadu_si128((const __m128i*)p)); }
  static V load(const BFloat16* p, int n) {
    __m128i bits = _mm_setzero_si128();
    std::memcpy(&bits, p, n * sizeof *p);
    return widen(bits);
  }
  static void store(BFloat16* p, V a) { _mm_storeu_si128((__m128i*)p, narrow(a)); }
  static void store(BFloat16* p, V a, int n) {
    const __m128i bits = narrow(a);
    std::memcpy(p, &bits, n * sizeof *p);
  }
  static V load(const Float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static V load(const Float16* p, int n) {
    __m128i bits = _mm_setzero_si128();
    std::memcpy(&bits, p, n * sizeof *p);
    return _mm256_cvtph_ps(bits);
  }
  static void store(Float16* p, V a) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(Float16* p, V a, int n) {
    const __m128i bits = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    std::memcpy(p, &bits, n * sizeof *p);
  }
  static void store(uint8_t* p, V a) { store(p, a, kLanes); }
  static void store(uint8_t* p, V a, int n) {
    const __m256i wide = _mm256_cvtps_epi32(a);
    const __m128i half =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    const __m128i bytes = _mm_packus_epi16(half, half);
    std::memcpy(p, &bytes, n);
  }
  static V load(const uint8_t* p) { return load(p, kLanes); }
  static V load(const uint8_t* p, int n) {
    __m128i bytes = _mm_setzero_si128();
    std::memcpy(&bytes, p, n);
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
  }
  static V load(const int64_t* p, int n) {
    T lanes[kLanes] = {};
    for (int i = 0; i < n; i++) lanes[i] = static_cast<T>(p[i]);
    return load(lanes);
  }

  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  static V abs(V a) { return _mm256_andnot_ps(set1(-0.0f), a); }
  static V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // Two halves of the exponent, so that the result may be subnormal and n may reach -252.
  static V scale2(V a, V n) {
    const __m256i exponent = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(exponent, 1);
    return mul(mul(a, pow2(half)), pow2(_mm256_sub_epi32(exponent, half)));
  }
  static V copy_sign(V magnitude, V sign) {
    return _mm256_or_ps(abs(magnitude), _mm256_and_ps(set1(-0.0f), sign));
  }

  static M gt(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
  static M ge(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static M eq(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
  static M is_nan(V a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
  static M either(M a, M b) { return _mm256_or_ps(a, b); }
  static bool any(M m) { return _mm256_movemask_ps(m) != 0; }
  static V blend(M m, V yes, V no) { return _mm256_blendv_ps(no, yes, m); }

  static int compress(M m, V a, int first_lane, T* values, int32_t* lanes) {
    const unsigned bits = _mm256_movemask_ps(m);
    // Every set bit becomes a byte of ones, which draws its lane's number out of the list of all.
    const uint64_t bytes = _pdep_u64(bits, 0x0101010101010101) * 0xff;
    const int64_t chosen = static_cast<int64_t>(_pext_u64(0x0706050403020100, bytes));
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(chosen));
    store(values, _mm256_permutevar8x32_ps(a, order));
    _mm256_storeu_si256((__m256i*)lanes, _mm256_add_epi32(order, _mm256_set1_epi32(first_lane)));
    return __builtin_popcount(bits);
  }
  static V permute(V a, V index) { return _mm256_permutevar8x32_ps(a, _mm256_castps_si256(index)); }
  static V keep(V a) {
    asm("" : "+x"(a));
    return a;
  }
  static V load_integers(const uint8_t* p, int n) {
    __m128i bytes = _mm_setzero_si128();
    std::memcpy(&bytes, p, n);
    return _mm256_castsi256_ps(_mm256_cvtepu8_epi32(bytes));
  }
  static void transpose(V (&a)[8]) {
    V b[8];
    for (int i = 0; i < 8; i += 4) {  // 4 x 4 inside every 128 bits
      const V lo0 = _mm256_unpacklo_ps(a[i], a[i + 1]), hi0 = _mm256_unpackhi_ps(a[i], a[i + 1]);
      const V lo1 = _mm256_unpacklo_ps(a[i + 2], a[i + 3]),
              hi1 = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
      b[i] = _mm256_shuffle_ps(lo0, lo1, 0x44);
      b[i + 1] = _mm256_shuffle_ps(lo0, lo1, 0xee);
      b[i + 2] = _mm256_shuffle_ps(hi0, hi1, 0x44);
      b[i + 3] = _mm256_shuffle_ps(hi0, hi1, 0xee);
    }
    for (int i = 0; i < 4; i++) {
      a[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
      a[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
  }
  static T sum(V a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static T max(V a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
  }

 private:
  static __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static V pow2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }
  static V widen(__m128i a) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
  }
  static __m128i narrow(V a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_set1_epi32(0x7fc00000);
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_blendv_epi8(up, nan, _mm256_castps_si256(is_nan(a))), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  }
};

struct F64 {
  using T = double;
  using V = __m256d;
  using M = __m256d;
  static constexpr int kLanes = 4;
  static constexpr int kTileCols = 6;
  static constexpr bool kPermutes = false;

  static V zero() { return _mm256_setzero_pd(); }
  static V set1(T a) { return _mm256_set1_pd(a); }
  static V load(const T* p) { return _mm256_loadu_pd(p); }
  static void store(T* p, V a) { _mm256_storeu_pd(p, a); }
  static void stream(T* p, V a) { _mm256_stream_pd(p, a); }
  static void end_streams() { _mm_sfence(); }
  static M first(int n) { return _mm256_castsi256_pd(lanes(n)); }
  static V load(const T* p, int n) { return _mm256_maskload_pd(p, lanes(n)); }
  static void store(T* p, V a, int n) {  // as F32's
    if (n >= kLanes) return store(p, a);
    _mm256_maskstore_pd(p, lanes(n), a);
  }
  static void store(uint8_t* p, V a) { store(p, a, kLanes); }
  static void store(uint8_t* p, V a, int n) {
    __m128i bytes = _mm_packs_epi32(_mm256_cvtpd_epi32(a), _mm_setzero_si128());
    bytes = _mm_packus_epi16(bytes, bytes);
    std::memcpy(p, &bytes, n);
  }
  static V load(const uint8_t* p) { return load(p, kLanes); }
  static V load(const uint8_t* p, int n) {
    __m128i bytes = _mm_setzero_si128();
    std::memcpy(&bytes, p, n);
    return _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(bytes));
  }
  static V load(const int64_t* p, int n) {
    T lanes[kLanes] = {};
    for (int i = 0; i < n; i++) lanes[i] = static_cast<T>(p[i]);
    return load(lanes);
  }

  static V add(V a, V b) { return _mm256_add_pd(a, b); }
  static V sub(V a, V b) { return _mm256_sub_pd(a, b); }
  static V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  static V div(V a, V b) { return _mm256_div_pd(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  static V max(V a, V b) { return _mm256_max_pd(a, b); }
  static V min(V a, V b) { return _mm256_min_pd(a, b); }
  static V abs(V a) { return _mm256_andnot_pd(set1(-0.0), a); }
  static V round(V a) { return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static V scale2(V a, V n) {
    const __m128i exponent = _mm256_cvtpd_epi32(n);
    const __m128i half = _mm_srai_epi32(exponent, 1);
    return mul(mul(a, pow2(half)), pow2(_mm_sub_epi32(exponent, half)));
  }
  static V copy_sign(V magnitude, V sign) {
    return _mm256_or_pd(abs(magnitude), _mm256_and_pd(set1(-0.0), sign));
  }

  static M gt(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_GT_OQ); }
  static M ge(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_GE_OQ); }
  static M eq(V a, V b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
  static M is_nan(V a) { return _mm256_cmp_pd(a, a, _CMP_UNORD_Q); }
  static M either(M a, M b) { return _mm256_or_pd(a, b); }
  static bool any(M m) { return _mm256_movemask_pd(m) != 0; }
  static V blend(M m, V yes, V no) { return _mm256_blendv_pd(no, yes, m); }

  static int compress(M m, V a, int first_lane, T* values, int32_t* lanes) {
    return compress_lanes<F64>(_mm256_movemask_pd(m), a, first_lane, values, lanes);
  }
  static void transpose(V (&a)[4]) { transpose_lanes<F64>(a); }
  static T sum(V a) {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }
  static T max(V a) {
    const __m128d m = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(m, _mm_unpackhi_pd(m, m)));
  }

 private:
  static __m256i lanes(int n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static V pow2(__m128i n) {
    const __m256i biased = _mm256_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023)));
    return _mm256_castsi256_pd(_mm256_slli_epi64(biased, 52));
  }
};

}  // namespace imgfast::cpu::avx2
