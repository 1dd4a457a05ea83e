// CUDA's built-in functions: barriers, fences, warp collectives, atomics, arithmetic, bits.
#pragma once

#include <math.h>  // and the global names: kernels write isnan(x)

#include <cassert>
#include <cmath>

namespace simt {

enum class Vote { kNone, kCount, kAnd, kOr };
enum class Shuffle { kIndex, kXor, kDown, kUp };

int barrier(Vote vote, int predicate, const char* file, int line);
void warp_barrier(unsigned mask, const char* file, int line);
void fence();  // of the device: what __threadfence promises
std::uint64_t shuffle(Shuffle kind, unsigned mask, std::uint64_t value, int operand, int width,
                      const char* file, int line);
unsigned ballot(unsigned mask, bool predicate, const char* file, int line);
void touch_atomic(void* p, int bytes);
// For mutants, see simt_mutate.py: whether synchronisation point `number` is left out now, and what
// votes, or does not.
bool is_left_out(int number);
inline int without_vote(int predicate) { return predicate; }
template <Vote vote>
int with_vote(int predicate) {
  return barrier(vote, predicate, "a mutant", 0);
}
[[noreturn]] void fail(const char* what, const char* file, int line);

template <class T>
SIMT_UNCHECKED T shuffle_value(Shuffle kind, unsigned mask, T value, int operand, int width,
                               const char* file, int line) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "CUDA shuffles up to 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(kind, mask, bits, operand, width, file, line);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

template <class T, class F>
SIMT_UNCHECKED __attribute__((noinline)) T exchange(T* p, F update) {
  const T old = *p;
  *p = update(old);
  return old;
}

// Old value of *p, which becomes update(old). Threads take turns: nothing comes between.
template <class T, class F>
inline __attribute__((always_inline)) T atomic(T* p, F update) {
  touch_atomic(p, sizeof(T));
  return exchange(p, update);
}

// f(value, value of another lane) over the lanes of mask, which all get the result.
template <class F>
SIMT_UNCHECKED unsigned reduce(unsigned mask, unsigned value, F f, const char* file, int line) {
  unsigned result = 0;
  for (int lane = 0, first = 1; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const auto other =
        static_cast<unsigned>(shuffle(Shuffle::kIndex, mask, value, lane, 32, file, line));
    result = first ? other : f(result, other);
    first = 0;
  }
  return result;
}

}  // namespace simt

// --- barriers and fences -------------------------------------------------------------------------

inline void __syncthreads(SIMT_HERE) { simt::barrier(simt::Vote::kNone, 0, file, line); }
inline int __syncthreads_count(int predicate, SIMT_HERE) {
  return simt::barrier(simt::Vote::kCount, predicate, file, line);
}
inline int __syncthreads_and(int predicate, SIMT_HERE) {
  return simt::barrier(simt::Vote::kAnd, predicate, file, line);
}
inline int __syncthreads_or(int predicate, SIMT_HERE) {
  return simt::barrier(simt::Vote::kOr, predicate, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) {
  simt::warp_barrier(mask, file, line);
}
inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() {}  // orders nothing between blocks, and waits for nobody

// --- warp collectives ----------------------------------------------------------------------------

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, SIMT_HERE) {
  return simt::shuffle_value(simt::Shuffle::kIndex, mask, value, lane, width, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SIMT_HERE) {
  return simt::shuffle_value(simt::Shuffle::kXor, mask, value, lanes, width, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, SIMT_HERE) {
  return simt::shuffle_value(simt::Shuffle::kDown, mask, value, static_cast<int>(lanes), width,
                             file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, SIMT_HERE) {
  return simt::shuffle_value(simt::Shuffle::kUp, mask, value, static_cast<int>(lanes), width, file,
                             line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  return simt::ballot(mask, predicate != 0, file, line);
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
  return simt::ballot(mask, predicate != 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
  return simt::ballot(mask, predicate == 0, file, line) == 0;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, SIMT_HERE) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  const auto add = [](unsigned a, unsigned b) { return a + b; };
  return static_cast<T>(simt::reduce(mask, static_cast<unsigned>(value), add, file, line));
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, SIMT_HERE) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  const auto lesser = [](unsigned a, unsigned b) {
    return static_cast<T>(a) < static_cast<T>(b) ? a : b;
  };
  return static_cast<T>(simt::reduce(mask, static_cast<unsigned>(value), lesser, file, line));
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, SIMT_HERE) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  const auto greater = [](unsigned a, unsigned b) {
    return static_cast<T>(a) < static_cast<T>(b) ? b : a;
  };
  return static_cast<T>(simt::reduce(mask, static_cast<unsigned>(value), greater, file, line));
}

// --- atomics -------------------------------------------------------------------------------------

#define SIMT_ATOMIC(NAME, RESULT)                                                         \
  template <class T>                                                                      \
  inline __attribute__((always_inline)) T NAME(T* p, std::type_identity_t<T> v) {         \
    return simt::atomic(p, [&](T old) SIMT_UNCHECKED { return static_cast<T>(RESULT); }); \
  }
SIMT_ATOMIC(atomicAdd, old + v)
SIMT_ATOMIC(atomicSub, old - v)
SIMT_ATOMIC(atomicMin, v < old ? v : old)
SIMT_ATOMIC(atomicMax, old < v ? v : old)
SIMT_ATOMIC(atomicExch, (static_cast<void>(old), v))
SIMT_ATOMIC(atomicAnd, old& v)
SIMT_ATOMIC(atomicOr, old | v)
SIMT_ATOMIC(atomicXor, old ^ v)
SIMT_ATOMIC(atomicInc, old >= v ? T{} : old + 1)
SIMT_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef SIMT_ATOMIC

template <class T>
SIMT_UNCHECKED inline
    __attribute__((always_inline)) T atomicCAS(T* p, std::type_identity_t<T> compare,
                                               std::type_identity_t<T> v) {
  return simt::atomic(p, [&](T old) SIMT_UNCHECKED { return old == compare ? v : old; });
}

// --- loads and stores with a cache policy
// ----------------------------------------------------------

template <class T>
inline __attribute__((always_inline)) T __ldg(const T* p) {
  return simt::load<T>(p, simt::Cache::kReadOnly);
}
template <class T>
inline __attribute__((always_inline)) T __ldcs(const T* p) {
  return simt::load<T>(p, simt::Cache::kStreaming);
}
template <class T>
inline __attribute__((always_inline)) T __ldcg(const T* p) {
  return simt::load<T>(p, simt::Cache::kDefault);
}
template <class T>
inline __attribute__((always_inline)) void __stcs(T* p, std::type_identity_t<T> value) {
  simt::store(p, value);
}
template <class T>
inline __attribute__((always_inline)) void __stcg(T* p, std::type_identity_t<T> value) {
  simt::store(p, value);
}

// --- arithmetic and bits
// ---------------------------------------------------------------------------

// Macros, because the C library declares functions of these names.
#define __expf(x) (::expf(x))
#define __exp10f(x) (::exp10f(x))
#define __logf(x) (::logf(x))
#define __log2f(x) (::log2f(x))
#define __powf(x, y) (::powf(x, y))
#define rsqrtf(x) (1.0f / ::sqrtf(x))

inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }

inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
  return reversed;
}

// Of a number and NaN, the number: as fminf and fmaxf, which CUDA's overloads call.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a || a != a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b || a != a ? b : a;
}

#undef assert
#define assert(condition) \
  ((condition) ? static_cast<void>(0) : ::simt::fail("assert(" #condition ")", __FILE__, __LINE__))
#define __trap() ::simt::fail("__trap()", __FILE__, __LINE__)
