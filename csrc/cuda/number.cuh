// Numbers of any dtype as float32, in which everything is computed, and back. By functions: an
// extension of torch is compiled without the conversions that cuda_bf16.h and cuda_fp16.h imply.
#pragma once

#include "cuda/platform.cuh"

namespace imgfast::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T narrow(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return __float2bfloat16_rn(x);
  if constexpr (std::is_same_v<T, __half>) return __float2half_rn(x);
  if constexpr (std::is_same_v<T, float>) return x;
}

}  // namespace imgfast::cuda
