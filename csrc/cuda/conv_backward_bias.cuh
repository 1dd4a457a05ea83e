// The bias gradient of conv_relu_pool: the sum of the gradient at the convolution's output over all
// positions. That map is not even expanded: all positions of a window share one gradient, and the
// code says how many times it counts.
//
// Windows are shared out in parts, each with sums of its own, which conv_sum.cuh adds up.
#pragma once

#include "cuda/conv_gradient.cuh"
#include "cuda/conv_tile.cuh"
#include "cuda/number.cuh"

namespace imgfast::cuda {

template <class T>
struct ConvBackwardBias {
  static constexpr int kThreads = 256, kSlices = 32, kPieces = kThreads / kSlices;
  static constexpr int kPiece = 16 / sizeof(T), kFilters = kPieces * kPiece;  // of a block

  ConvGradient<T> gradient;
  float* partial;  // [parts][groups * K]
  ConvShape shape;
  int windows, parts;

  __host__ __device__ int filters() const { return shape.groups * shape.K; }
  __host__ __device__ int filter_tiles() const { return (filters() + kFilters - 1) / kFilters; }
};

// The sum over an average's window (ph, pw), by the bits of its code. A NaN that is blocked
// everywhere adds nothing.
struct AverageGradient {
  int inside;  // positions
  float scale, slope;
  bool linear;

  __device__ __forceinline__ AverageGradient(const ConvShape& s, int ph, int pw)
      : scale(average_scale(s, ph, pw)),
        slope(s.activation == Activation::kLeakyReLU ? static_cast<float>(kLeakyReLUSlope) : 0.0f),
        linear(s.activation == Activation::kNone) {
    const int p = ph * s.pool_stride_h - s.pool_padding_h;
    const int q = pw * s.pool_stride_w - s.pool_padding_w;
    inside = (min(p + s.pool_h, s.P) - max(p, 0)) * (min(q + s.pool_w, s.Q) - max(q, 0));
  }

  __device__ __forceinline__ float operator()(float g, int code) const {
    const int passed = linear ? inside : __popc(static_cast<unsigned>(code));
    const float times = static_cast<float>(passed) + slope * static_cast<float>(inside - passed);
    return times == 0.0f ? 0.0f : g * scale * times;
  }
};

template <class T>
__global__ void __launch_bounds__(ConvBackwardBias<T>::kThreads, 3)
    conv_backward_bias_kernel(const __grid_constant__ ConvBackwardBias<T> a) {
  using Size = ConvBackwardBias<T>;
  constexpr int kSlices = Size::kSlices, kPiece = Size::kPiece;
  __shared__ float sums[kSlices][Size::kFilters + 1];
  const ConvShape& s = a.shape;
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int k0 = block % a.filter_tiles() * Size::kFilters, part = block / a.filter_tiles();
  const auto windows_before = [&](int part) {
    return static_cast<int>(static_cast<std::int64_t>(a.windows) * part / a.parts);
  };
  const int first = windows_before(part), end = windows_before(part + 1);

  // A thread sums some filters over a slice of the windows. Neighbouring lanes read what lies
  // together in grad_y.
  const bool filters_together = a.gradient.grad_y_stride[1] == 1;
  const int slice = filters_together ? thread / Size::kPieces : thread % kSlices;
  const int piece = filters_together ? thread % Size::kPieces : thread / kSlices;
  const int k = k0 + piece * kPiece, valid = min(kPiece, a.filters() - k);
  float sum[kPiece] = {};
  if (valid > 0) {
#pragma unroll 1
    for (int i = first + slice; i < end; i += kSlices) {
      const BoxIndex at(i, s.PH, s.PW);
      const PooledGradient<T, kPiece> pooled(a.gradient, s, 0, at.image, at.row, at.col, k, valid);
      if (s.pool == Pool::kAvg) {
        const AverageGradient average(s, at.row, at.col);
#pragma unroll
        for (int j = 0; j < kPiece; j++) sum[j] += average(pooled.value[j], pooled.code[j]);
      } else {
#pragma unroll
        for (int j = 0; j < kPiece; j++) sum[j] += pooled.value[j];
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kPiece; j++) sums[slice][piece * kPiece + j] = sum[j];
  __syncthreads();
  if (thread >= min(Size::kFilters, a.filters() - k0)) return;
  float all = sums[0][thread];
#pragma unroll
  for (int i = 1; i < kSlices; i++) all += sums[i][thread];
  store(a.partial + static_cast<std::int64_t>(part) * a.filters() + k0 + thread, all);
}

}  // namespace imgfast::cuda
