// The vector vocabulary in AVX-512 (F, BW, DQ, VL): one register, 16 floats or 8 doubles. See
// generic.h for what each word means.
#pragma once

#include <immintrin.h>

#include "scalar.h"

namespace imgfast::cpu::avx512 {

struct F32 {
  using T = float;
  using V = __m512;
  using M = __mmask16;
  static constexpr int kLanes = 16;
  static constexpr int kTileCols =
      12;  // 2 x 12 accumulators, 2 weights, 1 broadcast of 32 registers
  static constexpr bool kPermutes = true;

  static V zero() { return _mm512_setzero_ps(); }
  static V set1(T a) { return _mm512_set1_ps(a); }
  static V load(const T* p) { return _mm512_loadu_ps(p); }
  static void store(T* p, V a) { _mm512_storeu_ps(p, a); }
  static void stream(T* p, V a) { _mm512_stream_ps(p, a); }
  static void end_streams() { _mm_sfence(); }
  static M first(int n) { return static_cast<M>((1u << n) - 1); }
  static V load(const T* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(T* p, V a, int n) { _mm512_mask_storeu_ps(p, first(n), a); }

  static V load(const BFloat16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
  static V load(const BFloat16* p, int n) {
    return widen(_mm256_maskz_loadu_epi16(first(n), (const __m256i*)p));
  }
  static void store(BFloat16* p, V a) { _mm256_storeu_si256((__m256i*)p, narrow(a)); }
  static void store(BFloat16* p, V a, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow(a)); }
  static V load(const Float16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static V load(const Float16* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), (const __m256i*)p));
  }
  static void store(Float16* p, V a) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(Float16* p, V a, int n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(uint8_t* p, V a) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
  }
  static void store(uint8_t* p, V a, int n) {
    _mm512_mask_cvtepi32_storeu_epi8(p, first(n), _mm512_cvtps_epi32(a));
  }
  static V load(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
  }
  static V load(const uint8_t* p, int n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
  }

  static V load(const int64_t* p, int n) {
    const __m256 low = _mm512_cvtepi64_ps(_mm512_maskz_loadu_epi64(first(n) & 0xff, p));
    const __m256 high = _mm512_cvtepi64_ps(_mm512_maskz_loadu_epi64(first(n) >> 8, p + 8));
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }

  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V abs(V a) { return _mm512_abs_ps(a); }
  static V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
  static V scale2(V a, V n) { return _mm512_scalef_ps(a, n); }
  static V copy_sign(V magnitude, V sign) {
    return _mm512_or_ps(_mm512_andnot_ps(set1(-0.0f), magnitude), _mm512_and_ps(set1(-0.0f), sign));
  }

  static M gt(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static M ge(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static M eq(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static M is_nan(V a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  static M either(M a, M b) { return static_cast<M>(a | b); }
  static bool any(M m) { return m != 0; }
  static V blend(M m, V yes, V no) { return _mm512_mask_blend_ps(m, no, yes); }

  static int compress(M m, V a, int first_lane, T* values, int32_t* lanes) {
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    store(values, _mm512_maskz_compress_ps(m, a));
    _mm512_storeu_si512(lanes, _mm512_add_epi32(_mm512_maskz_compress_epi32(m, iota),
                                                _mm512_set1_epi32(first_lane)));
    return __builtin_popcount(m);
  }
  static V permute(V a, V index) { return _mm512_permutexvar_ps(_mm512_castps_si512(index), a); }
  static V keep(V a) {
    asm("" : "+v"(a));
    return a;
  }
  static V load_integers(const uint8_t* p, int n) {
    return _mm512_castsi512_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
  }
  static void transpose(V (&a)[16]) {
    V b[16];
    for (int i = 0; i < 16; i += 4) {  // 4 x 4 inside every 128 bits
      const V lo0 = _mm512_unpacklo_ps(a[i], a[i + 1]), hi0 = _mm512_unpackhi_ps(a[i], a[i + 1]);
      const V lo1 = _mm512_unpacklo_ps(a[i + 2], a[i + 3]),
              hi1 = _mm512_unpackhi_ps(a[i + 2], a[i + 3]);
      b[i] = _mm512_shuffle_ps(lo0, lo1, 0x44);
      b[i + 1] = _mm512_shuffle_ps(lo0, lo1, 0xee);
      b[i + 2] = _mm512_shuffle_ps(hi0, hi1, 0x44);
      b[i + 3] = _mm512_shuffle_ps(hi0, hi1, 0xee);
    }
    for (int i = 0; i < 4; i++) {  // then the 4 x 4 of 128-bit parts
      const V even0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
      const V even1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
      const V odd0 = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
      const V odd1 = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
      a[i] = _mm512_shuffle_f32x4(even0, even1, 0x88);
      a[i + 8] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
      a[i + 4] = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
      a[i + 12] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
    }
  }
  static T sum(V a) { return _mm512_reduce_add_ps(a); }
  static T max(V a) { return _mm512_reduce_max_ps(a); }

 private:
  static V widen(__m256i a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
  }
  static __m256i narrow(V a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i nan = _mm512_set1_epi32(0x7fc00000);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_blend_epi32(is_nan(a), up, nan), 16));
  }
};

struct F64 {
  using T = double;
  using V = __m512d;
  using M = __mmask8;
  static constexpr int kLanes = 8;
  static constexpr int kTileCols = 12;
  static constexpr bool kPermutes = false;

  static V zero() { return _mm512_setzero_pd(); }
  static V set1(T a) { return _mm512_set1_pd(a); }
  static V load(const T* p) { return _mm512_loadu_pd(p); }
  static void store(T* p, V a) { _mm512_storeu_pd(p, a); }
  static void stream(T* p, V a) { _mm512_stream_pd(p, a); }
  static void end_streams() { _mm_sfence(); }
  static M first(int n) { return static_cast<M>((1u << n) - 1); }
  static V load(const T* p, int n) { return _mm512_maskz_loadu_pd(first(n), p); }
  static void store(T* p, V a, int n) { _mm512_mask_storeu_pd(p, first(n), a); }
  static void store(uint8_t* p, V a) {
    _mm512_mask_cvtepi64_storeu_epi8(p, 0xff, _mm512_cvtpd_epi64(a));
  }
  static void store(uint8_t* p, V a, int n) {
    _mm512_mask_cvtepi64_storeu_epi8(p, first(n), _mm512_cvtpd_epi64(a));
  }
  static V load(const uint8_t* p) { return load(p, kLanes); }
  static V load(const uint8_t* p, int n) {
    return _mm512_cvtepi64_pd(_mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8(first(n), p)));
  }

  static V load(const int64_t* p, int n) {
    return _mm512_cvtepi64_pd(_mm512_maskz_loadu_epi64(first(n), p));
  }

  static V add(V a, V b) { return _mm512_add_pd(a, b); }
  static V sub(V a, V b) { return _mm512_sub_pd(a, b); }
  static V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  static V div(V a, V b) { return _mm512_div_pd(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  static V max(V a, V b) { return _mm512_max_pd(a, b); }
  static V min(V a, V b) { return _mm512_min_pd(a, b); }
  static V abs(V a) { return _mm512_abs_pd(a); }
  static V round(V a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT); }
  static V scale2(V a, V n) { return _mm512_scalef_pd(a, n); }
  static V copy_sign(V magnitude, V sign) {
    return _mm512_or_pd(_mm512_andnot_pd(set1(-0.0), magnitude), _mm512_and_pd(set1(-0.0), sign));
  }

  static M gt(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
  static M ge(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
  static M eq(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
  static M is_nan(V a) { return _mm512_cmp_pd_mask(a, a, _CMP_UNORD_Q); }
  static M either(M a, M b) { return static_cast<M>(a | b); }
  static bool any(M m) { return m != 0; }
  static V blend(M m, V yes, V no) { return _mm512_mask_blend_pd(m, no, yes); }

  static int compress(M m, V a, int first_lane, T* values, int32_t* lanes) {
    const __m256i iota = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    store(values, _mm512_maskz_compress_pd(m, a));
    _mm256_storeu_si256((__m256i*)lanes, _mm256_add_epi32(_mm256_maskz_compress_epi32(m, iota),
                                                          _mm256_set1_epi32(first_lane)));
    return __builtin_popcount(m);
  }
  static void transpose(V (&a)[8]) { transpose_lanes<F64>(a); }
  static T sum(V a) { return _mm512_reduce_add_pd(a); }
  static T max(V a) { return _mm512_reduce_max_pd(a); }
};

}  // namespace imgfast::cpu::avx512
