// Instructions of compute capability 8.0 that have no intrinsic: asynchronous copies to shared
// memory, matrix loads, tensor-core products, a fast power of two. Each is one line of PTX for nvcc
// and a call of its twin for the emulator.
//
// Operand order and fragments follow the PTX ISA, "Data Movement and Conversion Instructions:
// cp.async" and "Warp Level Matrix Instructions". In a fragment, g = lane / 4 and t = lane % 4.
#pragma once

#include "cuda/platform.cuh"

namespace imgfast::cuda {

#ifndef IMGFAST_SIMT
namespace detail {

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

}  // namespace detail
#endif

// --- asynchronous copies -------------------------------------------------------------------------

// Copies kBytes (4, 8 or 16, and both addresses multiples of it) from global to shared memory, or
// writes zeros and reads nothing where valid is false. 16 bytes pass the L1 cache by.
// The destination may be touched after cp_async_commit and cp_async_wait, by this thread, and after
// a barrier behind these, by the others.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, bool valid = true) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef IMGFAST_SIMT
  simt::cp_async(shared, global, kBytes, valid);
#else
  const unsigned to = detail::shared_address(shared);
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(global),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
#endif
}

// Closes the group of this thread's copies since the last commit; it may be empty.
__device__ __forceinline__ void cp_async_commit() {
#ifdef IMGFAST_SIMT
  simt::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's latest groups are still in flight.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef IMGFAST_SIMT
  simt::cp_async_wait(kPending);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// --- matrices ------------------------------------------------------------------------------------

// Loads N (1, 2 or 4) matrices of 8 x 8 16-bit elements from shared memory. row is the address of
// row (lane % 8) of matrix (lane / 8), a multiple of 16 bytes; lanes from 8 N on are not asked.
// fragment[i] gets elements (g, 2t), (g, 2t + 1) of matrix i, or of its transpose.
template <bool kTransposed = false, int N>
__device__ __forceinline__ void ldmatrix(std::uint32_t (&fragment)[N], const void* row) {
  static_assert(N == 1 || N == 2 || N == 4);
#ifdef IMGFAST_SIMT
  simt::ldmatrix(fragment, N, kTransposed, row);
#else
  const unsigned from = detail::shared_address(row);
  std::uint32_t (&r)[N] = fragment;
  if constexpr (N == 1 && !kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(from)
                 : "memory");
  } else if constexpr (N == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(r[0])
                 : "r"(from)
                 : "memory");
  } else if constexpr (N == 2 && !kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from)
                 : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(from)
                 : "memory");
  } else if constexpr (!kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
  }
#endif
}

// d += a b for a of 16 x 16, b of 16 x 8 elements of T, __nv_bfloat16 or __half; sums in float32.
// a[0..3]: rows g, g + 8, g, g + 8, columns 2t, 2t + 1 and for a[2], a[3] 8 further.
// b[0..1]: rows 2t, 2t + 1 and 8 further, column g.  d[0..3]: (g, 2t), (g, 2t + 1), and row g + 8.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4],
                                             const std::uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>);
#ifdef IMGFAST_SIMT
  simt::mma(std::is_same_v<T, __half> ? simt::Mma::kF16 : simt::Mma::kBf16, d, a, b);
#else
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// x rounded to tf32 (10 bits of mantissa, ties away from zero), as mma_m16n8k8_tf32 takes it.
__device__ __forceinline__ std::uint32_t to_tf32(float x) {
#ifdef IMGFAST_SIMT
  return simt::to_tf32(x);
#else
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// d += a b for a of 16 x 8, b of 8 x 8 elements in tf32; what is below tf32's bits is ignored.
// a[0..3]: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4).  b[0..1]: (t, g), (t + 4, g).
// d as for mma_m16n8k16.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const std::uint32_t (&a)[4],
                                                 const std::uint32_t (&b)[2]) {
#ifdef IMGFAST_SIMT
  simt::mma(simt::Mma::kTf32, d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// --- arithmetic ----------------------------------------------------------------------------------

// 2^x to about 2^-22 of its value, subnormal numbers as zero: one instruction.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef IMGFAST_SIMT
  return simt::exp2_fast(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace imgfast::cuda
