// What a CUDA kernel file sees when the host's compiler reads it for the emulator: keywords,
// built-in variables, the launch, memory accesses. The intrinsics are in intrinsics.h.
//
// The real headers give the types, and conversions and arithmetic of bfloat16 and half have host
// paths there. No CUDA library is linked.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

// __global__, __device__, __host__ and __constant__ are nothing to a host compiler already.
// thread_local is legal wherever __shared__ is, in templates too, and gathers the shared variables
// of a module in one segment, whose place and contents the loader and the symbol table tell.
#undef __shared__
#define __shared__ thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__
#undef __noinline__  // libstdc++ writes __attribute__((__noinline__))

// The emulator's own code inside kernel files reports its accesses itself.
#define SIMT_UNCHECKED __attribute__((no_sanitize_thread, no_sanitize_undefined))

// The place of a call, which tells one barrier from another and names it in reports.
#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace simt {

struct Index3 {
  unsigned x, y, z;
  operator dim3() const { return dim3(x, y, z); }
};

}  // namespace simt

// Constants to a kernel: the compiler does not report their reads. The scheduler sets them.
extern "C" {
extern const simt::Index3 simt_threadIdx, simt_blockIdx, simt_blockDim, simt_gridDim;
}
#define threadIdx simt_threadIdx
#define blockIdx simt_blockIdx
#define blockDim simt_blockDim
#define gridDim simt_gridDim
#define warpSize 32

namespace simt {

// --- launch --------------------------------------------------------------------------------------

// Calls run(closure) once a thread; false if anything was reported. The symbol at the address
// kernel names it in reports.
bool launch_threads(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                    void (*run)(void*), void* closure);

template <class F>
SIMT_UNCHECKED void call(void* closure) {
  (*static_cast<F*>(closure))();
}

template <class... Params, class... Args>
SIMT_UNCHECKED bool launch(void (*kernel)(Params...), dim3 grid, dim3 block,
                           std::size_t shared_bytes, Args... args) {
  auto run = [&]() SIMT_UNCHECKED { kernel(static_cast<Params>(args)...); };
  return launch_threads(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
                        &call<decltype(run)>, &run);
}

// --- memory --------------------------------------------------------------------------------------

// Bytes [offset, offset + bytes) of the dynamic shared buffer, an array of its own from now on.
void* carve(std::size_t offset, std::size_t bytes);

enum class Cache { kDefault, kReadOnly, kStreaming };

// One access of a kernel, however the host's compiler would split it, and the copy itself.
void read(void* to, const void* from, std::size_t bytes, Cache cache);
void write(void* to, const void* from, std::size_t bytes);

// Inlined, so that the access is reported at the kernel's line.
template <class V>
inline __attribute__((always_inline)) V load(const void* p, Cache cache) {
  V value;
  read(&value, p, sizeof(V), cache);
  return value;
}

template <class V>
inline __attribute__((always_inline)) void store(void* p, const V& value) {
  write(p, &value, sizeof(V));
}

// --- asynchronous copies, tensor cores -----------------------------------------------------------

void cp_async(void* shared, const void* global, int bytes, bool valid);
void cp_async_commit();
void cp_async_wait(int pending);

enum class Mma { kBf16, kF16, kTf32 };

void ldmatrix(std::uint32_t* fragment, int matrices, bool transposed, const void* row);
void mma(Mma kind, float* d, const std::uint32_t* a, const std::uint32_t* b);
std::uint32_t to_tf32(float x);
float exp2_fast(float x);

}  // namespace simt

#include <simt/intrinsics.h>
