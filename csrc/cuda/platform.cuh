// What a kernel needs of CUDA, for the two compilers that read kernels: nvcc for the product, the
// host's compiler for the emulator (tests/simt), which executes and checks them without a GPU.
//
// Kernel files (.cuh) include this header, and ptx.cuh for instructions that have no intrinsic, and
// nothing of torch. These two headers alone know which compiler reads them, by IMGFAST_SIMT.
#pragma once

#ifdef IMGFAST_SIMT
#include <simt/simt.h>
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#endif

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace imgfast::cuda {

// --- launch --------------------------------------------------------------------------------------

// Starts kernel(args...) on stream and returns the launch's error, which the caller must check.
// More than 48 KiB of dynamic shared memory has to be asked for, kernel by kernel.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes,
                   cudaStream_t stream, Args... args) {
#ifdef IMGFAST_SIMT
  static_cast<void>(stream);
  return simt::launch(kernel, grid, block, shared_bytes, args...) ? cudaSuccess
                                                                  : cudaErrorLaunchFailure;
#else
  constexpr std::size_t kDefaultSharedBytes = 48 * 1024;
  if (shared_bytes > kDefaultSharedBytes) {
    cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  // clang-format off
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
  // clang-format on
  return cudaGetLastError();
#endif
}

// --- dynamic shared memory -----------------------------------------------------------------------

#ifdef IMGFAST_SIMT
// Bytes behind each array that belong to none, so that a stray index is found.
constexpr std::size_t kSharedRedzone = 64;
#else
constexpr std::size_t kSharedRedzone = 0;
// The one dynamic buffer. Only SharedArray names it: two declarations of different types clash.
extern __shared__ __align__(128) unsigned char dynamic_shared[];
#endif

// count elements of T in the dynamic buffer, which the kernel reaches by data().
template <class T>
struct SharedArray {
  std::size_t offset;
  std::size_t count;

  __device__ __forceinline__ T* data() const {
#ifdef IMGFAST_SIMT
    return static_cast<T*>(simt::carve(offset, count * sizeof(T)));
#else
    return reinterpret_cast<T*>(dynamic_shared + offset);
#endif
  }
};

// Shares out the dynamic buffer. One struct of SharedArrays, made by one constructor, serves the
// kernel (the addresses) and the launcher (bytes) alike:
//
//   struct Layout {
//     SharedCarver carver;
//     SharedArray<float> rows = carver.take<float>(kRows);
//   };
//   launch(kernel, grid, block, Layout().carver.bytes, stream, ...);  // in the launcher
//   float* rows = Layout().rows.data();                               // in the kernel
struct SharedCarver {
  std::size_t bytes = 0;

  template <class T>
  __host__ __device__ constexpr SharedArray<T> take(std::size_t count, std::size_t align = 16) {
    static_assert(alignof(T) <= 16, "ask for the alignment");
    const std::size_t offset = (bytes + align - 1) / align * align;
    bytes = offset + count * sizeof(T) + kSharedRedzone;
    return SharedArray<T>{offset, count};
  }
};

// --- vectors of memory ---------------------------------------------------------------------------

// N elements that one instruction loads or stores: sizeof(T) * N is 1, 2, 4, 8 or 16 bytes, and the
// address a multiple of it.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T data[N];
  __host__ __device__ __forceinline__ T& operator[](int i) { return data[i]; }
  __host__ __device__ __forceinline__ const T& operator[](int i) const { return data[i]; }
};

#ifndef IMGFAST_SIMT
namespace detail {

template <std::size_t kBytes>
struct Bits;
template <>
struct Bits<1> {
  using type = unsigned char;
};
template <>
struct Bits<2> {
  using type = unsigned short;
};
template <>
struct Bits<4> {
  using type = unsigned int;
};
template <>
struct Bits<8> {
  using type = uint2;
};
template <>
struct Bits<16> {
  using type = uint4;
};

}  // namespace detail
#endif

// V is a Vec or any plain type of such a size. load and store serve global and shared memory.
template <class V>
__device__ __forceinline__ V load(const void* p) {
  static_assert(std::is_trivially_copyable_v<V>);
#ifdef IMGFAST_SIMT
  return simt::load<V>(p, simt::Cache::kDefault);
#else
  using Bits = typename detail::Bits<sizeof(V)>::type;
  return __builtin_bit_cast(V, *static_cast<const Bits*>(p));
#endif
}

// Global memory that nobody writes while the kernel runs: through the read-only cache.
template <class V>
__device__ __forceinline__ V load_readonly(const void* p) {
  static_assert(std::is_trivially_copyable_v<V>);
#ifdef IMGFAST_SIMT
  return simt::load<V>(p, simt::Cache::kReadOnly);
#else
  using Bits = typename detail::Bits<sizeof(V)>::type;
  return __builtin_bit_cast(V, __ldg(static_cast<const Bits*>(p)));
#endif
}

// Global memory that is read once: the first to be evicted from the caches.
template <class V>
__device__ __forceinline__ V load_streaming(const void* p) {
  static_assert(std::is_trivially_copyable_v<V>);
#ifdef IMGFAST_SIMT
  return simt::load<V>(p, simt::Cache::kStreaming);
#else
  using Bits = typename detail::Bits<sizeof(V)>::type;
  return __builtin_bit_cast(V, __ldcs(static_cast<const Bits*>(p)));
#endif
}

template <class V>
__device__ __forceinline__ void store(void* p, const V& value) {
  static_assert(std::is_trivially_copyable_v<V>);
#ifdef IMGFAST_SIMT
  simt::store(p, value);
#else
  using Bits = typename detail::Bits<sizeof(V)>::type;
  *static_cast<Bits*>(p) = __builtin_bit_cast(Bits, value);
#endif
}

// As store, to global memory and certainly by one instruction: an assignment of 16 bytes is
// sometimes taken apart, and not put together again.
template <class V>
__device__ __forceinline__ void store_global(void* p, const V& value) {
  static_assert(std::is_trivially_copyable_v<V>);
#ifdef IMGFAST_SIMT
  simt::store(p, value);
#else
  using Bits = typename detail::Bits<sizeof(V)>::type;
  __stwb(static_cast<Bits*>(p), __builtin_bit_cast(Bits, value));
#endif
}

// Global memory that this kernel does not read again: the first to be evicted from the caches.
template <class V>
__device__ __forceinline__ void store_streaming(void* p, const V& value) {
  static_assert(std::is_trivially_copyable_v<V>);
#ifdef IMGFAST_SIMT
  simt::store(p, value);
#else
  using Bits = typename detail::Bits<sizeof(V)>::type;
  __stcs(static_cast<Bits*>(p), __builtin_bit_cast(Bits, value));
#endif
}

}  // namespace imgfast::cuda
