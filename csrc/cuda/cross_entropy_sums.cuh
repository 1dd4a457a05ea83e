// The sums over rows of cross_entropy: of a block, of all blocks, and what is made of them. All are
// taken in an order that depends on the launch alone, so that results can be reproduced.
#pragma once

#include "cuda/cross_entropy_group.cuh"

namespace imgfast::cuda {

constexpr int kSumThreads = 256;

__device__ __forceinline__ void write_sum(const CrossEntropyArgs& a, int i, float sum) {
  a.block_sums[static_cast<std::int64_t>(blockIdx.x) * RowSums::kCount + i] = sum;
}

// Adds up the sums of all threads and leaves them in the block's place. Every thread must call it.
template <int kBlockThreads>
__device__ __forceinline__ void write_thread_sums(const CrossEntropyArgs& a, const RowSums& sums) {
  constexpr int kWarps = kBlockThreads / 32;
  __shared__ float of_warp[kWarps][RowSums::kCount];
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < RowSums::kCount; i++) {
    const float sum = RowGroup<32>().sum(sums.number[i]);
    if (thread % 32 == 0) of_warp[thread / 32][i] = sum;
  }
  __syncthreads();  // all warps have written theirs
  if (thread < RowSums::kCount) {
    float sum = 0;
    for (int warp = 0; warp < kWarps; warp++) sum += of_warp[warp][thread];
    write_sum(a, thread, sum);
  }
}

// The same of the sums of the block's leaders, in shared memory.
template <int kLeaders>
__device__ __forceinline__ void write_leader_sums(const CrossEntropyArgs& a,
                                                  const RowSums (&sums)[kLeaders]) {
  __syncthreads();  // the leaders have added their last
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < RowSums::kCount) {
    float sum = 0;
    for (int leader = 0; leader < kLeaders; leader++) sum += sums[leader].number[thread];
    write_sum(a, thread, sum);
  }
}

// The sum of a block's numbers, for thread 0. Every thread must call it, and only once.
__device__ __forceinline__ double sum_block(double x) {
  __shared__ double part[kSumThreads];
  const int thread = static_cast<int>(threadIdx.x);
  part[thread] = x;
#pragma unroll 1
  for (int half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();  // the upper half's numbers are there
    if (thread < half) part[thread] += part[thread + half];
  }
  return part[0];
}

// One block: what the means divide by and, where it is reduced, the loss.
__global__ void __launch_bounds__(kSumThreads)
    cross_entropy_finish_kernel(CrossEntropyArgs a, int blocks) {
  __shared__ SumsOf<double> total;
  constexpr int kEach = kSumThreads / RowSums::kCount;  // threads of each sum
  __shared__ double part[kEach][RowSums::kCount];
  const int thread = static_cast<int>(threadIdx.x);
  const int i = thread % RowSums::kCount, of_each = thread / RowSums::kCount;

  // Load: neighbours read neighbours.
  double sum = 0;
  for (int block = of_each; block < blocks; block += kEach) {
    sum += a.block_sums[static_cast<std::int64_t>(block) * RowSums::kCount + i];
  }
  part[of_each][i] = sum;
  __syncthreads();  // all parts are there

  // Reduce.
  if (thread < RowSums::kCount) {
    sum = 0;
    for (int k = 0; k < kEach; k++) sum += part[k][thread];
    total.number[thread] = sum;
  }
  __syncthreads();  // all totals are there

  // Write.
  if (thread != 0) return;
  double loss = 0;
  const bool mean = a.reduction == Reduction::kMean;
  for (int k = 0; k < 2; k++) {
    a.divisors[k] = static_cast<float>(total.weight(k));
    a.divisors[2 + k] = static_cast<float>(total.count(k));
    if (k >= a.num_targets) continue;
    double of_target = total.loss(k) / (mean ? total.weight(k) : 1);
    if (a.z_loss != 0) of_target += a.z_loss * (total.square(k) / (mean ? total.count(k) : 1));
    loss += a.lam[k] * of_target;
  }
  if (a.loss && a.reduction != Reduction::kNone) {
    store_number(a.loss, a.loss_dtype, 0, static_cast<float>(loss));
  }
}

// The weights and the number of the rows that count, where a gradient of the mean is wanted before
// any loss is known.
__global__ void __launch_bounds__(kSumThreads) cross_entropy_targets_kernel(CrossEntropyArgs a) {
  RowSums sums{};
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kSumThreads;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
       row < a.rows; row += step) {
    const RowTargets targets = read_targets<Targets::kIndex>(a, row);
#pragma unroll
    for (int k = 0; k < 2; k++) {
      if (k == a.num_targets || !targets.counts[k]) continue;
      sums.weight(k) += targets.weight[k];
      sums.count(k) += 1;
    }
  }
  write_thread_sums<kSumThreads>(a, sums);
}

// One block: the sum of the classes' weights.
__global__ void __launch_bounds__(kSumThreads) cross_entropy_weight_kernel(CrossEntropyArgs a) {
  double sum = 0;
  for (int c = static_cast<int>(threadIdx.x); c < a.C; c += kSumThreads) sum += a.weight[c];
  sum = sum_block(sum);
  if (threadIdx.x == 0) *a.weight_sum = static_cast<float>(sum);
}

}  // namespace imgfast::cuda
