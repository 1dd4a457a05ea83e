#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2,popcnt,fma,f16c,prefer-vector-width=512")
// GCC's intrinsics start from registers that they declare uninitialised on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "simd/avx512.h"
#define IMGFAST_ISA avx512
#include "kernels-inl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
