#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi2,popcnt,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx2,bmi2,popcnt,fma,f16c")
#endif
#include "simd/avx2.h"
#define IMGFAST_ISA avx2
#include "kernels-inl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
