// The threads that share a row of cross_entropy, a part of a warp, a warp or a block, and what they
// tell one another.
#pragma once

#include "cuda/cross_entropy_terms.cuh"

namespace imgfast::cuda {

constexpr int kRowWarps = 4;      // of a block, where warps or parts of them have rows of their own
constexpr int kRowThreads = 512;  // of a block that has one row

// kThreads neighbours in a warp, each of whose groups goes its own way.
template <int kThreads>
struct RowGroup {
  static_assert(kThreads <= 32);
  static constexpr int kBlockThreads = 32 * kRowWarps;
  static constexpr int kPerBlock = kBlockThreads / kThreads;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int index = static_cast<int>(threadIdx.x) / kThreads;
  const unsigned mask = (0xffffffffu >> (32 - kThreads)) << (threadIdx.x % 32 - thread);

  // The normaliser of all, in thread 0, which is the leader. They meet in a fixed order.
  __device__ __forceinline__ Normaliser reduce(Normaliser n) const {
#pragma unroll
    for (int step = kThreads / 2; step > 0; step /= 2) {
      const auto from = [&](const auto& x) {
        return __shfl_down_sync(mask, x, static_cast<unsigned>(step), kThreads);
      };
      Normaliser other;
      other.maximum = from(n.maximum);
      other.sum = from(n.sum);
      other.dot = from(n.dot);
      other.mass = from(n.mass);
      other.top = from(n.top);
      n.merge(other);
    }
    return n;
  }

  __device__ __forceinline__ float sum(float x) const {
#pragma unroll
    for (int step = kThreads / 2; step > 0; step /= 2) {
      x += __shfl_down_sync(mask, x, static_cast<unsigned>(step), kThreads);
    }
    return x;
  }

  // The leader's value.
  __device__ __forceinline__ RowGradient broadcast(RowGradient g) const {
    const auto from_leader = [&](auto& x) { x = __shfl_sync(mask, x, 0, kThreads); };
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
  const RowGroup<32> in_warp;

  __device__ __forceinline__ Normaliser reduce(Normaliser n) const {
    __shared__ float maximum[kWarps], sum[kWarps], dot[kWarps], mass[kWarps];
    __shared__ int top[kWarps];
    n = in_warp.reduce(n);
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
      n = in_warp.reduce(n);
    }
    __syncthreads();  // nobody writes the next row's while it reads
    return n;
  }

  __device__ __forceinline__ float sum(float x) const {
    __shared__ float part[kWarps];
    x = in_warp.sum(x);
    const int warp = thread / 32, lane = thread % 32;
    if (lane == 0) part[warp] = x;
    __syncthreads();  // as in reduce
    if (warp == 0) x = in_warp.sum(lane < kWarps ? part[lane] : 0.0f);
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
