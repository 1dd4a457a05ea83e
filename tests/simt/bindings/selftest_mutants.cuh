// A kernel with every kind of synchronisation point, for the mutation runner: the sum of all
// values, by copies in two stages, a tree in each warp, and the last block to arrive.
#pragma once

#include "cuda/ptx.cuh"

constexpr int kSumThreads = 64;
constexpr int kSumTile = 4 * kSumThreads;

// x[gridDim][stages][kSumTile], partial[gridDim], arrived and total zero before the launch.
__global__ void sum_kernel(const float* x, float* partial, int* arrived, float* total, int stages) {
  using namespace imgfast::cuda;
  __shared__ __align__(16) float tile[2][kSumTile];
  __shared__ float sums[kSumThreads];
  const int i = static_cast<int>(threadIdx.x);
  const auto copy = [&](int stage) {
    const auto block = static_cast<std::int64_t>(blockIdx.x);
    const float* from = x + (block * stages + stage) * kSumTile;
    cp_async<16>(&tile[stage % 2][4 * i], from + 4 * i);
  };

  copy(0);
  cp_async_commit();
  float sum = 0.0f;
  for (int stage = 0; stage < stages; ++stage) {
    if (stage + 1 < stages) copy(stage + 1);
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    for (int k = 0; k < 4; ++k) sum += tile[stage % 2][k * kSumThreads + i];
    __syncthreads();  // the next copy but one goes where this stage has been read
  }

  sums[i] = sum;
  for (int half = 16; half > 0; half /= 2) {
    __syncwarp();
    if (i % 32 < half) sums[i] += sums[i + half];
  }
  if (__syncthreads_or(i == 0)) {
    if (i > 0) return;
  }
  partial[blockIdx.x] = sums[0] + sums[32];
  __threadfence();
  const bool last = atomicAdd(arrived, 1) == static_cast<int>(gridDim.x) - 1;
  if (!last) return;
  __threadfence();
  for (unsigned block = 0; block < gridDim.x; ++block) *total += partial[block];
  __syncwarp();  // redundant
}
