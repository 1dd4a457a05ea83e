// What a kernel needs of CUDA: the runtime's names and the one seam through which kernels start.
//
// Kernel files (.cuh) include this header and nothing of torch; it is the only file that may know
// which compiler reads them.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace imgfast::cuda {

// Starts kernel(args...) on stream and returns the launch's error, which the caller must check.
// More than 48 KiB of dynamic shared memory has to be asked for, kernel by kernel.
template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, std::size_t shared_bytes,
                   cudaStream_t stream, Args... args) {
  constexpr std::size_t kDefaultSharedBytes = 48 * 1024;
  if (shared_bytes > kDefaultSharedBytes) {
    cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Params>(args)...);
  return cudaGetLastError();
}

}  // namespace imgfast::cuda
