// cuda_probe: an exact copy, byte by byte. It shows that kernels of this build run on this GPU.
#pragma once

#include "cuda/platform.cuh"

namespace imgfast::cuda {

__global__ void cuda_probe_kernel(const std::uint8_t* x, std::uint8_t* y, std::int64_t bytes) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i < bytes; i += step) y[i] = x[i];
}

}  // namespace imgfast::cuda
