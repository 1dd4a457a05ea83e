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
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kFilters = 32;  // of a block

  ConvGradient<T> gradient;
  float* partial;  // [parts][groups * K]
  ConvShape shape;
  int windows, parts;

  __host__ __device__ int filters() const { return shape.groups * shape.K; }
  __host__ __device__ int filter_tiles() const { return (filters() + kFilters - 1) / kFilters; }
};

// The sum over an average's window, by the bits of its code. A NaN that is blocked everywhere adds
// nothing.
__device__ __forceinline__ float average_gradient(const ConvShape& s, float g, int code, int ph,
                                                  int pw) {
  const int p = ph * s.pool_stride_h - s.pool_padding_h;
  const int q = pw * s.pool_stride_w - s.pool_padding_w;
  const int inside = (min(p + s.pool_h, s.P) - max(p, 0)) * (min(q + s.pool_w, s.Q) - max(q, 0));
  const auto divisor =
      static_cast<float>(avg_extent(p, s.pool_h, s.P, s.pool_padding_h, s.count_include_pad) *
                         avg_extent(q, s.pool_w, s.Q, s.pool_padding_w, s.count_include_pad));
  auto times = static_cast<float>(inside);
  if (s.activation != Activation::kNone) {
    const int passed = __popc(static_cast<unsigned>(code));
    const float slope =
        s.activation == Activation::kLeakyReLU ? static_cast<float>(kLeakyReLUSlope) : 0.0f;
    times = static_cast<float>(passed) + slope * static_cast<float>(inside - passed);
  }
  return times == 0.0f ? 0.0f : g / divisor * times;
}

// The sum over window i, of filter k of all groups.
template <class T>
__device__ __forceinline__ float window_gradient(const ConvBackwardBias<T>& a, int i, int k) {
  const ConvShape& s = a.shape;
  const int pw = i % s.PW, ph = i / s.PW % s.PH, n = i / s.PW / s.PH;
  const PooledGradient<T, 1> pooled(a.gradient, s, 0, n, ph, pw, k, 1);
  return s.pool == Pool::kAvg ? average_gradient(s, pooled.value[0], pooled.code[0], ph, pw)
                              : pooled.value[0];
}

template <class T>
__global__ void __launch_bounds__(ConvBackwardBias<T>::kThreads)
    conv_backward_bias_kernel(const __grid_constant__ ConvBackwardBias<T> a) {
  constexpr int kWarps = ConvBackwardBias<T>::kWarps, kFilters = ConvBackwardBias<T>::kFilters;
  __shared__ float sums[kWarps][kFilters];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(blockIdx.x);
  const int k0 = block % a.filter_tiles() * kFilters, part = block / a.filter_tiles();
  const auto windows_before = [&](int part) {
    return static_cast<int>(static_cast<std::int64_t>(a.windows) * part / a.parts);
  };
  const int first = windows_before(part), end = windows_before(part + 1);
  float* const partial = a.partial + static_cast<std::int64_t>(part) * a.filters() + k0;
  const int filters = min(kFilters, a.filters() - k0);

  // Neighbouring lanes read what lies together in grad_y.
  if (a.gradient.grad_y_stride[1] == 1) {
    float sum = 0.0f;
    if (lane < filters) {
#pragma unroll 4
      for (int i = first + warp; i < end; i += kWarps) sum += window_gradient(a, i, k0 + lane);
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || lane >= filters) return;
#pragma unroll
    for (int i = 1; i < kWarps; i++) sum += sums[i][lane];
    store(partial + lane, sum);
    return;
  }
  for (int filter = warp; filter < filters; filter += kWarps) {
    float sum = 0.0f;
#pragma unroll 4
    for (int i = first + lane; i < end; i += 32) sum += window_gradient(a, i, k0 + filter);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) store(partial + filter, sum);
  }
}

}  // namespace imgfast::cuda
