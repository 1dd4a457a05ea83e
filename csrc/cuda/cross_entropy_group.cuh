// The threads that share a row of cross_entropy, a warp or a block, and what they tell one another.
#pragma once

#include "cuda/cross_entropy_terms.cuh"

namespace imgfast::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kRowWarps = 4;      // of a block, where each warp has a row of its own
constexpr int kRowThreads = 512;  // of a block that has one row

// The normaliser of all lanes, in lane 0. Lanes meet in a fixed order.
__device__ __forceinline__ Normaliser reduce_warp(Normaliser n) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    Normaliser other;
    other.maximum = __shfl_down_sync(kWholeWarp, n.maximum, step);
    other.sum = __shfl_down_sync(kWholeWarp, n.sum, step);
    other.dot = __shfl_down_sync(kWholeWarp, n.dot, step);
    other.mass = __shfl_down_sync(kWholeWarp, n.mass, step);
    other.top = __shfl_down_sync(kWholeWarp, n.top, step);
    n.merge(other);
  }
  return n;
}

__device__ __forceinline__ float sum_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_down_sync(kWholeWarp, x, step);
  return x;
}

template <int kThreads>
struct RowGroup;

template <>
struct RowGroup<32> {
  static constexpr int kPerBlock = kRowWarps;
  static constexpr int kBlockThreads = 32 * kPerBlock;
  const int thread = static_cast<int>(threadIdx.x) % 32;
  const int index = static_cast<int>(threadIdx.x) / 32;

  // The result is the leader's, thread 0.
  __device__ __forceinline__ Normaliser reduce(const Normaliser& n) const { return reduce_warp(n); }
  __device__ __forceinline__ float sum(float x) const { return sum_warp(x); }

  // The leader's value.
  __device__ __forceinline__ RowGradient broadcast(RowGradient g) const {
    const auto from_leader = [](auto& x) { x = __shfl_sync(kWholeWarp, x, 0); };
    from_leader(g.maximum), from_leader(g.total), from_leader(g.spread);
#pragma unroll
    for (int k = 0; k < 2; k++) from_leader(g.hit[k]), from_leader(g.y[k]);
    return g;
  }
};

template <>
struct RowGroup<kRowThreads> {
  static constexpr int kPerBlock = 1;
  static constexpr int kBlockThreads = kRowThreads;
  static constexpr int kWarps = kRowThreads / 32;
  const int thread = static_cast<int>(threadIdx.x);
  const int index = 0;

  __device__ __forceinline__ Normaliser reduce(Normaliser n) const {
    __shared__ float maximum[kWarps], sum[kWarps], dot[kWarps], mass[kWarps];
    __shared__ int top[kWarps];
    n = reduce_warp(n);
    const int warp = thread / 32, lane = thread % 32;
    if (lane == 0) {
      maximum[warp] = n.maximum;
      sum[warp] = n.sum;
      dot[warp] = n.dot;
      mass[warp] = n.mass;
      top[warp] = n.top;
    }
    __syncthreads();  // the first warp reads what the others have written
    if (warp == 0) {
      n = Normaliser{};
      if (lane < kWarps) {
        n.maximum = maximum[lane];
        n.sum = sum[lane];
        n.dot = dot[lane];
        n.mass = mass[lane];
        n.top = top[lane];
      }
      n = reduce_warp(n);
    }
    __syncthreads();  // nobody writes the next row's while it reads
    return n;
  }

  __device__ __forceinline__ float sum(float x) const {
    __shared__ float part[kWarps];
    x = sum_warp(x);
    const int warp = thread / 32, lane = thread % 32;
    if (lane == 0) part[warp] = x;
    __syncthreads();  // as in reduce
    if (warp == 0) x = sum_warp(lane < kWarps ? part[lane] : 0.0f);
    __syncthreads();
    return x;
  }

  __device__ __forceinline__ RowGradient broadcast(RowGradient g) const {
    __shared__ RowGradient leaders;
    if (thread == 0) leaders = g;
    __syncthreads();  // it has been written
    g = leaders;
    __syncthreads();  // it has been read, and may be written for the next row
    return g;
  }
};

}  // namespace imgfast::cuda
