// One kernel for each thing that the emulator finds, with the bug planted and without it.
// A comment "finds: <kind>" marks the lines that the report may name.
#include <simt/export.h>

#include "cuda/ptx.cuh"

namespace {

using namespace imgfast::cuda;

constexpr int kThreads = 64;  // two warps
constexpr unsigned kAll = 0xffffffffu;

// Exports kernel(const float* x, float* y, int n), launched with the bug or without.
#define SELFTEST(NAME, BLOCKS, SHARED_BYTES)                                          \
  }                                                                                   \
  SIMT_EXPORT int NAME(const float* x, float* y, int n, bool planted) {               \
    return launch(planted ? NAME##_kernel<true> : NAME##_kernel<false>, dim3(BLOCKS), \
                  dim3(kThreads), SHARED_BYTES, nullptr, x, y, n);                    \
  }                                                                                   \
  namespace {

// --- races ---------------------------------------------------------------------------------------

template <bool kPlanted>
__global__ void barrier_missing_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = x[threadIdx.x];  // finds: data race
  if constexpr (!kPlanted) __syncthreads();
  y[threadIdx.x] = row[kThreads - 1 - threadIdx.x];  // finds: data race
}
SELFTEST(barrier_missing, 1, 0)

// One buffer is filled again while slower threads still read it.
template <bool kPlanted>
__global__ void second_barrier_missing_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  float sum = 0.0f;
  for (int i = 0; i < 4; ++i) {
    row[threadIdx.x] = x[i * kThreads + threadIdx.x];  // finds: data race
    __syncthreads();
    sum += row[kThreads - 1 - threadIdx.x];  // finds: data race
    if constexpr (!kPlanted) __syncthreads();
  }
  y[threadIdx.x] = sum;
}
SELFTEST(second_barrier_missing, 1, 0)

template <bool kPlanted>
__global__ void warp_barrier_missing_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = x[threadIdx.x];  // finds: data race
  if constexpr (!kPlanted) __syncwarp();
  y[threadIdx.x] = row[threadIdx.x ^ 1];  // finds: data race
}
SELFTEST(warp_barrier_missing, 1, 0)

template <bool kPlanted>
__global__ void warp_barrier_for_a_block_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = x[threadIdx.x];  // finds: data race
  __syncwarp();
  y[threadIdx.x] = row[threadIdx.x ^ (kPlanted ? 32 : 1)];  // finds: data race
}
SELFTEST(warp_barrier_for_a_block, 1, 0)

template <bool kPlanted>
__global__ void shuffle_for_a_barrier_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = x[threadIdx.x];  // finds: data race
  const float other = __shfl_xor_sync(kAll, x[threadIdx.x], 1);
  if constexpr (!kPlanted) __syncwarp();
  y[threadIdx.x] = row[threadIdx.x ^ 1] + other;  // finds: data race
}
SELFTEST(shuffle_for_a_barrier, 1, 0)

template <bool kPlanted>
__global__ void blocks_add_kernel(const float* x, float* y, int) {
  if (threadIdx.x != 0) return;
  if constexpr (kPlanted) {
    *y += x[blockIdx.x];  // finds: data race
  } else {
    atomicAdd(y, x[blockIdx.x]);
  }
}
SELFTEST(blocks_add, 3, 0)

template <bool kPlanted>
__global__ void neighbours_in_a_word_kernel(const float*, float* y, int) {
  auto* bytes = reinterpret_cast<unsigned char*>(y);
  bytes[(threadIdx.x + blockIdx.x * kThreads) / (kPlanted ? 2 : 1)] = 1;  // finds: data race
}
SELFTEST(neighbours_in_a_word, 2, 0)

// The last block to arrive adds up what the others wrote.
template <bool kRelease, bool kAcquire>
__device__ void add_in_last_block(float* y) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    y[8 + blockIdx.x] = static_cast<float>(blockIdx.x);  // finds: data race
    if constexpr (kRelease) __threadfence();
    last = atomicAdd(reinterpret_cast<int*>(y), 1) == static_cast<int>(gridDim.x) - 1;
    if constexpr (kAcquire) __threadfence();
  }
  __syncthreads();
  if (!last || threadIdx.x != 0) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += y[8 + i];  // finds: data race
  y[1] = sum;
}

template <bool kPlanted>
__global__ void release_missing_kernel(const float*, float* y, int) {
  add_in_last_block<!kPlanted, true>(y);
}
SELFTEST(release_missing, 4, 0)

template <bool kPlanted>
__global__ void acquire_missing_kernel(const float*, float* y, int) {
  add_in_last_block<true, !kPlanted>(y);
}
SELFTEST(acquire_missing, 4, 0)

// Every thread fences what it wrote, one does the atomic for all, every thread fences again.
template <bool kPlanted>
__global__ void write_behind_the_fence_kernel(const float*, float* y, int) {
  __shared__ bool last;
  float* const mine = y + 8 + blockIdx.x * kThreads;
  if constexpr (!kPlanted) mine[threadIdx.x] = 1.0f;
  __threadfence();
  if constexpr (kPlanted) mine[threadIdx.x] = 1.0f;  // finds: data race
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(reinterpret_cast<int*>(y), 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i)
    sum += y[8 + i * kThreads + threadIdx.x];  // finds: data race
  mine[threadIdx.x] = sum;
}
SELFTEST(write_behind_the_fence, 3, 0)

template <bool kPlanted>
__global__ void read_only_load_of_a_result_kernel(const float* x, float* y, int) {
  y[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  const float* other = y + kThreads - 1 - threadIdx.x;
  const float value =
      kPlanted ? load_readonly<float>(other) : load<float>(other);  // finds: stale read
  y[kThreads + threadIdx.x] = value;
}
SELFTEST(read_only_load_of_a_result, 1, 0)

// --- barriers and collectives --------------------------------------------------------------------

template <bool kPlanted>
__global__ void barrier_in_a_branch_kernel(const float* x, float* y, int n) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = x[threadIdx.x];
  const int limit = kPlanted ? n : kThreads;
  if (static_cast<int>(threadIdx.x) < limit) {
    __syncthreads();  // finds: divergent barrier
  } else {
    __syncthreads();  // finds: divergent barrier
  }
  y[threadIdx.x] = row[threadIdx.x];
}
SELFTEST(barrier_in_a_branch, 1, 0)

template <bool kPlanted>
__global__ void barrier_against_shuffle_kernel(const float* x, float* y, int n) {
  float value = x[threadIdx.x];
  if (static_cast<int>(threadIdx.x) >= n || !kPlanted) {
    value = __shfl_xor_sync(kAll, value, 1);  // finds: divergent barrier
  }
  __syncthreads();  // finds: divergent barrier
  y[threadIdx.x] = value;
}
SELFTEST(barrier_against_shuffle, 1, 0)

template <bool kPlanted>
__global__ void mask_without_caller_kernel(const float* x, float* y, int) {
  float value = x[threadIdx.x];
  if (threadIdx.x % 2 == 0) {
    value = __shfl_xor_sync(kPlanted ? 0xaaaaaaaau : 0x55555555u, value, 2);  // finds: bad mask
  }
  y[threadIdx.x] = value;
}
SELFTEST(mask_without_caller, 1, 0)

// Lanes that have exited need not come, but have no value to give.
template <bool kPlanted>
__global__ void shuffle_from_an_exited_lane_kernel(const float* x, float* y, int) {
  y[threadIdx.x] = x[threadIdx.x];
  if (threadIdx.x % 2 == 1) return;
  y[threadIdx.x] = __shfl_xor_sync(kAll, x[threadIdx.x], kPlanted ? 1 : 2);  // finds: bad mask
}
SELFTEST(shuffle_from_an_exited_lane, 1, 0)

template <bool kPlanted>
__global__ void ldmatrix_by_half_a_warp_kernel(const float* x, float* y, int) {
  __shared__ __align__(16) float rows[32 * 4];
  for (int i = threadIdx.x; i < 32 * 4; i += kThreads) rows[i] = x[i];
  __syncthreads();
  if (kPlanted && threadIdx.x % 32 >= 16) return;
  std::uint32_t fragment[4];
  ldmatrix(fragment, rows + threadIdx.x % 32 * 4);  // finds: bad mask
  y[threadIdx.x] = __uint_as_float(fragment[0]);
}
SELFTEST(ldmatrix_by_half_a_warp, 1, 0)

// --- addresses -----------------------------------------------------------------------------------

template <bool kPlanted>
__global__ void past_a_buffer_kernel(const float* x, float* y, int n) {
  const int i = static_cast<int>(threadIdx.x);
  y[i] = x[i + (kPlanted ? n * kThreads : 0)];  // finds: out of bounds
}
SELFTEST(past_a_buffer, 1, 0)

template <bool kPlanted>
__global__ void past_a_shared_array_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  row[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = row[threadIdx.x + (kPlanted ? 1 : 0)];  // finds: out of bounds
}
SELFTEST(past_a_shared_array, 1, 0)

struct TwoArrays {
  SharedCarver carver;
  SharedArray<float> first = carver.take<float>(kThreads);
  SharedArray<float> second = carver.take<float>(kThreads);
};

template <bool kPlanted>
__global__ void between_carved_arrays_kernel(const float* x, float* y, int) {
  float* const first = TwoArrays().first.data();
  float* const second = TwoArrays().second.data();
  second[threadIdx.x] = 0.0f;
  first[threadIdx.x + (kPlanted ? 1 : 0)] = x[threadIdx.x];  // finds: out of bounds
  __syncthreads();
  y[threadIdx.x] = first[kThreads - 1 - threadIdx.x] + second[threadIdx.x];
}
SELFTEST(between_carved_arrays, 1, TwoArrays().carver.bytes)

// The launcher asked for too little.
template <bool kPlanted>
__global__ void past_the_dynamic_buffer_kernel(const float* x, float* y, int) {
  float* const row = SharedArray<float>{0, kPlanted ? kThreads + 1 : kThreads}.data();
  row[threadIdx.x + (kPlanted ? 1 : 0)] = x[threadIdx.x];  // finds: out of bounds
  __syncthreads();
  y[threadIdx.x] = row[kThreads - (kPlanted ? 0 : 1) - threadIdx.x];
}
SELFTEST(past_the_dynamic_buffer, 1, kThreads * sizeof(float))

template <bool kPlanted>
__global__ void unaligned_vector_kernel(const float* x, float* y, int) {
  if (threadIdx.x == 0) {
    store(y + (kPlanted ? 1 : 4), load<float4>(x));  // finds: misaligned
  }
}
SELFTEST(unaligned_vector, 1, 0)

template <bool kPlanted>
__global__ void unaligned_cast_kernel(const float* x, float* y, int) {
  if (threadIdx.x == 0) {
    *reinterpret_cast<double*>(y + (kPlanted ? 1 : 2)) = x[0];  // finds: misaligned
  }
}
SELFTEST(unaligned_cast, 1, 0)

template <bool kPlanted>
__global__ void write_of_an_input_kernel(const float* x, float* y, int) {
  y[threadIdx.x] = x[threadIdx.x];
  if constexpr (kPlanted) const_cast<float*>(x)[threadIdx.x] = 0.0f;  // finds: read-only write
}
SELFTEST(write_of_an_input, 1, 0)

// --- values --------------------------------------------------------------------------------------

template <bool kPlanted>
__global__ void shared_without_a_value_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  if (threadIdx.x > 0 || !kPlanted) row[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = row[threadIdx.x];  // finds: uninitialised read
}
SELFTEST(shared_without_a_value, 1, 0)

// What another block left in shared memory is no value either.
template <bool kPlanted>
__global__ void shared_of_an_earlier_block_kernel(const float* x, float* y, int) {
  __shared__ float value;
  if (threadIdx.x == 0 && (blockIdx.x == 0 || !kPlanted)) value = x[0];
  __syncthreads();
  y[blockIdx.x * kThreads + threadIdx.x] = value;  // finds: uninitialised read
}
SELFTEST(shared_of_an_earlier_block, 2, 0)

template <bool kPlanted>
__global__ void index_overflow_kernel(const float* x, float* y, int n) {
  const int rows = 10000000 * n;
  const auto i = static_cast<int>(threadIdx.x);
  const std::int64_t at =
      kPlanted ? i * rows : i * static_cast<std::int64_t>(rows);  // finds: undefined behaviour
  y[i] = x[at % kThreads];
}
SELFTEST(index_overflow, 1, 0)

template <bool kPlanted>
__global__ void shift_too_far_kernel(const float* x, float* y, int n) {
  const int bit = 1 << (kPlanted ? n + 27 : n);  // finds: undefined behaviour
  y[threadIdx.x] = x[threadIdx.x] + static_cast<float>(bit);
}
SELFTEST(shift_too_far, 1, 0)

template <bool kPlanted>
__global__ void assertion_kernel(const float* x, float* y, int n) {
  assert(!kPlanted || n == 0);  // finds: assertion
  y[threadIdx.x] = x[threadIdx.x];
}
SELFTEST(assertion, 1, 0)

// --- asynchronous copies -------------------------------------------------------------------------

template <bool kPlanted>
__global__ void wait_missing_kernel(const float* x, float* y, int) {
  __shared__ __align__(16) float row[kThreads * 4];
  cp_async<16>(row + threadIdx.x * 4, x + threadIdx.x * 4);
  cp_async_commit();
  if constexpr (!kPlanted) cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = row[threadIdx.x];  // finds: copy in flight
  cp_async_wait<0>();
}
SELFTEST(wait_missing, 1, 0)

// Two groups are in flight, and the first one is used.
template <bool kPlanted>
__global__ void wait_for_too_few_kernel(const float* x, float* y, int) {
  __shared__ float rows[2][kThreads];
  for (int i = 0; i < 2; ++i) {
    cp_async<4>(&rows[i][threadIdx.x], x + i * kThreads + threadIdx.x);
    cp_async_commit();
  }
  cp_async_wait<kPlanted ? 2 : 1>();
  __syncthreads();
  y[threadIdx.x] = rows[0][kThreads - 1 - threadIdx.x];  // finds: copy in flight
  cp_async_wait<0>();
}
SELFTEST(wait_for_too_few, 1, 0)

template <bool kPlanted>
__global__ void commit_missing_kernel(const float* x, float* y, int) {
  __shared__ __align__(8) float row[kThreads * 2];
  cp_async<8>(row + threadIdx.x * 2, x + threadIdx.x * 2);
  if constexpr (!kPlanted) cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  y[threadIdx.x] = row[threadIdx.x];  // finds: copy in flight
  cp_async_commit();
  cp_async_wait<0>();
}
SELFTEST(commit_missing, 1, 0)

// To have waited is enough for the thread that copied, not for the others.
template <bool kPlanted>
__global__ void barrier_behind_a_wait_missing_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  cp_async<4>(row + threadIdx.x, x + threadIdx.x);  // finds: data race, copy in flight
  cp_async_commit();
  cp_async_wait<0>();
  if constexpr (!kPlanted) __syncthreads();
  y[threadIdx.x] = row[kThreads - 1 - threadIdx.x];  // finds: data race, copy in flight
}
SELFTEST(barrier_behind_a_wait_missing, 1, 0)

template <bool kPlanted>
__global__ void copy_nobody_waits_for_kernel(const float* x, float* y, int) {
  __shared__ float row[kThreads];
  cp_async<4>(row + threadIdx.x, x + threadIdx.x);  // finds: copy not waited for
  cp_async_commit();
  if constexpr (!kPlanted) cp_async_wait<0>();
  y[threadIdx.x] = x[threadIdx.x];
}
SELFTEST(copy_nobody_waits_for, 1, 0)

template <bool kPlanted>
__global__ void unaligned_copy_kernel(const float* x, float* y, int) {
  __shared__ __align__(16) float row[kThreads * 4];
  if (threadIdx.x == 0) cp_async<16>(row, x + (kPlanted ? 1 : 4));  // finds: misaligned
  cp_async_commit();
  cp_async_wait<0>();
  y[threadIdx.x] = x[threadIdx.x];
}
SELFTEST(unaligned_copy, 1, 0)

template <bool kPlanted>
__global__ void endless_kernel(const float* x, float* y, int) {
  y[threadIdx.x] = x[threadIdx.x];
  while (kPlanted && load<float>(x) == load<float>(x)) continue;  // finds: endless
}
SELFTEST(endless, 1, 0)

}  // namespace
