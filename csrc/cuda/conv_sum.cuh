// The second pass of conv_relu_pool's weight and bias gradients: adds up what the blocks of the
// first have summed, part by part in a fixed order, and rounds once.
#pragma once

#include "cuda/number.cuh"

namespace imgfast::cuda {

struct ConvSum {
  static constexpr int kElements = 32, kSlices = 8;  // a block's elements, and threads of each
  static constexpr int kThreads = kElements * kSlices;

  const float* partial;  // [parts][filters][pieces of C][taps][piece]
  std::int64_t parts, filters;
  int C, R, S, piece;
  std::int64_t stride[4];  // of the sum, [filters, C, R, S]

  // Of a filter; the last piece of the channels may be padded.
  __host__ __device__ std::int64_t columns() const {
    return static_cast<std::int64_t>((C + piece - 1) / piece * piece) * R * S;
  }
  __host__ __device__ std::int64_t count() const { return filters * columns(); }
};

template <class T>
__global__ void __launch_bounds__(ConvSum::kThreads)
    conv_sum_parts_kernel(const __grid_constant__ ConvSum a, T* to) {
  __shared__ float sums[ConvSum::kSlices][ConvSum::kElements];
  const int lane = static_cast<int>(threadIdx.x) % ConvSum::kElements;
  const int slice = static_cast<int>(threadIdx.x) / ConvSum::kElements;
  const std::int64_t count = a.count();
  const std::int64_t element = static_cast<std::int64_t>(blockIdx.x) * ConvSum::kElements + lane;
  float sum = 0.0f;
  if (element < count) {
#pragma unroll 4
    for (std::int64_t part = slice; part < a.parts; part += ConvSum::kSlices) {
      sum += load_readonly<float>(a.partial + part * count + element);
    }
  }
  sums[slice][lane] = sum;
  __syncthreads();
  if (slice > 0 || element >= count) return;
#pragma unroll
  for (int i = 1; i < ConvSum::kSlices; i++) sum += sums[i][lane];

  const std::int64_t filter = element / a.columns();
  const int column = static_cast<int>(element % a.columns());
  const int tap = column / a.piece % (a.R * a.S);
  const int c = column / a.piece / (a.R * a.S) * a.piece + column % a.piece;
  if (c >= a.C) return;
  store(to + filter * a.stride[0] + c * a.stride[1] + tap / a.S * a.stride[2] +
            tap % a.S * a.stride[3],
        narrow<T>(sum));
}

}  // namespace imgfast::cuda
