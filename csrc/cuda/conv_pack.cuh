// Convolution weights in the order in which a kernel reads them: a strided copy.
#pragma once

#include "cuda/platform.cuh"

namespace imgfast::cuda {

// to[i0][i1][i2][i3][i4] = from[sum of i_d * stride_d], zero where i3 or i4 is beyond what `from`
// has.
struct ConvPacking {
  static constexpr int kDims = 5;
  std::int64_t size[kDims], stride[kDims];
  std::int64_t valid3, valid4;

  __host__ __device__ std::int64_t count() const {
    return size[0] * size[1] * size[2] * size[3] * size[4];
  }
};

template <class T>
__global__ void __launch_bounds__(256) conv_pack_kernel(const T* from, T* to, ConvPacking packing) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i < packing.count(); i += step) {
    std::int64_t rest = i, at = 0, index[ConvPacking::kDims];
#pragma unroll
    for (int d = ConvPacking::kDims - 1; d >= 0; d--) {
      index[d] = rest % packing.size[d];
      rest /= packing.size[d];
      at += index[d] * packing.stride[d];
    }
    const bool valid = index[3] < packing.valid3 && index[4] < packing.valid4;
    to[i] = valid ? load_readonly<T>(from + at) : T{};
  }
}

}  // namespace imgfast::cuda
