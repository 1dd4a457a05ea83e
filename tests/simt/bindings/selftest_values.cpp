// Kernels whose results the tests know: collectives, atomics, copies, tensor-core products, and
// access patterns whose cost is known.
#include <simt/export.h>

#include "cuda/ptx.cuh"

namespace {

using namespace imgfast::cuda;

constexpr unsigned kAll = 0xffffffffu;

template <class T>
__global__ void shuffle_kernel(const T* x, T* y, int kind, int operand, int width) {
  const T value = x[threadIdx.x];
  T result = value;
  if (kind == 0) result = __shfl_sync(kAll, value, operand, width);
  if (kind == 1) result = __shfl_xor_sync(kAll, value, operand, width);
  if (kind == 2) result = __shfl_down_sync(kAll, value, operand, width);
  if (kind == 3) result = __shfl_up_sync(kAll, value, operand, width);
  y[threadIdx.x] = result;
}

__global__ void votes_kernel(const int* x, int* y) {  // x[64], y[9][64]
  const int i = static_cast<int>(threadIdx.x);
  const int value = x[i];
  y[0 * 64 + i] = static_cast<int>(__ballot_sync(kAll, value > 0));
  y[1 * 64 + i] = __any_sync(kAll, value > 0);
  y[2 * 64 + i] = __all_sync(kAll, value > 0);
  y[3 * 64 + i] = __syncthreads_count(value > 0);
  y[4 * 64 + i] = __syncthreads_or(value > 0);
  y[5 * 64 + i] = __syncthreads_and(value > 0);
  y[6 * 64 + i] = __reduce_add_sync(kAll, value);
  y[7 * 64 + i] = __reduce_min_sync(kAll, value);
  y[8 * 64 + i] = __reduce_max_sync(kAll, value);
}

__global__ void atomics_kernel(const int* x, int* y) {  // y[9]
  const int value = x[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(y + 0, value);
  atomicSub(y + 1, value);
  atomicMin(y + 2, value);
  atomicMax(y + 3, value);
  atomicAnd(y + 4, value);
  atomicOr(y + 5, value);
  atomicXor(y + 6, value);
  atomicInc(reinterpret_cast<unsigned*>(y) + 7, 9u);
  int seen = 0;
  do {
    seen = atomicCAS(y + 8, seen, seen + value);
  } while (seen != atomicCAS(y + 8, seen, seen));
}

// Copies n of 4 blockDim values; what lies behind them arrives as zeros.
template <int kBytes>
__global__ void copy_kernel(const float* x, float* y, int n) {
  __shared__ __align__(16) float row[256];
  constexpr int kValues = kBytes / 4;
  for (int i = static_cast<int>(threadIdx.x) * kValues; i < 256; i += 64 * kValues) {
    cp_async<kBytes>(row + i, x + i, i < n);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < 256; i += 64) y[i] = row[i];
}

// d[16][8] = c + a[16][16] b[16][8], fragments loaded element by element.
template <class T>
__global__ void mma_kernel(const T* a, const T* b, const float* c, float* d) {
  const int lane = static_cast<int>(threadIdx.x);
  const int g = lane / 4;
  const int t = lane % 4;
  const auto pair = [](T low, T high) {
    return static_cast<std::uint32_t>(__builtin_bit_cast(unsigned short, low)) |
           static_cast<std::uint32_t>(__builtin_bit_cast(unsigned short, high)) << 16;
  };
  std::uint32_t fragment_a[4];
  std::uint32_t fragment_b[2];
  float sum[4];
  for (int r = 0; r < 4; ++r) {
    const int row = g + r % 2 * 8;
    const int column = 2 * t + r / 2 * 8;
    fragment_a[r] = pair(a[row * 16 + column], a[row * 16 + column + 1]);
    sum[r] = c[(g + r / 2 * 8) * 8 + 2 * t + r % 2];
  }
  for (int r = 0; r < 2; ++r) {
    const int row = 2 * t + r * 8;
    fragment_b[r] = pair(b[row * 8 + g], b[(row + 1) * 8 + g]);
  }
  mma_m16n8k16<T>(sum, fragment_a, fragment_b);
  for (int r = 0; r < 4; ++r) d[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = sum[r];
}

// The same by ldmatrix: a as it lies, b transposed while it is loaded.
template <class T>
__global__ void ldmatrix_mma_kernel(const T* a, const T* b, const float* c, float* d) {
  __shared__ __align__(16) T shared_a[16 * 16];
  __shared__ __align__(16) T shared_b[16 * 8];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared_a[i] = a[i];
  for (int i = lane; i < 128; i += 32) shared_b[i] = b[i];
  __syncwarp();
  std::uint32_t fragment_a[4];
  std::uint32_t fragment_b[2];
  ldmatrix(fragment_a, shared_a + lane % 16 * 16 + lane / 16 * 8);
  ldmatrix<true>(fragment_b, shared_b + lane % 16 * 8);
  const int g = lane / 4;
  const int t = lane % 4;
  float sum[4];
  for (int r = 0; r < 4; ++r) sum[r] = c[(g + r / 2 * 8) * 8 + 2 * t + r % 2];
  mma_m16n8k16<T>(sum, fragment_a, fragment_b);
  for (int r = 0; r < 4; ++r) d[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = sum[r];
}

// d[16][8] = c + a[16][8] b[8][8] in tf32.
__global__ void mma_tf32_kernel(const float* a, const float* b, const float* c, float* d) {
  const int lane = static_cast<int>(threadIdx.x);
  const int g = lane / 4;
  const int t = lane % 4;
  std::uint32_t fragment_a[4];
  std::uint32_t fragment_b[2];
  float sum[4];
  for (int r = 0; r < 4; ++r) {
    fragment_a[r] = to_tf32(a[(g + r % 2 * 8) * 8 + t + r / 2 * 4]);
    sum[r] = c[(g + r / 2 * 8) * 8 + 2 * t + r % 2];
  }
  for (int r = 0; r < 2; ++r) fragment_b[r] = to_tf32(b[(t + r * 4) * 8 + g]);
  mma_m16n8k8_tf32(sum, fragment_a, fragment_b);
  for (int r = 0; r < 4; ++r) d[(g + r / 2 * 8) * 8 + 2 * t + r % 2] = sum[r];
}

__global__ void exp2_kernel(const float* x, float* y, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += 32) y[i] = exp2_fast(x[i]);
}

// y[4][n]: smaller, larger, bits, whether x is a number
__global__ void arithmetic_kernel(const float* x, float* y, int n) {
  for (int i = static_cast<int>(threadIdx.x); i < n; i += 32) {
    y[i] = min(x[i], 1.0f);
    y[n + i] = max(1.0f, x[i]);
    const int bits = static_cast<int>(__float_as_uint(x[i]) >> 16);
    y[2 * n + i] = static_cast<float>(__popc(bits) + 100 * __clz(bits) + 10000 * __ffs(bits));
    y[3 * n + i] = isnan(x[i]) ? 0.0f : 1.0f;
  }
}

__global__ void strided_read_kernel(const float* x, float* y, int stride) {
  y[threadIdx.x] = x[static_cast<int>(threadIdx.x) * stride];
}

__global__ void vector_copy_kernel(const float* x, float* y) {
  store_streaming(y + threadIdx.x * 4, load_streaming<Vec<float, 4>>(x + threadIdx.x * 4));
}

__global__ void read_twice_kernel(const float* x, float* y, int n) {
  float sum = 0.0f;
  for (int i = 0; i < 2 * n; i += 32) sum += x[(i + static_cast<int>(threadIdx.x)) % n];
  y[threadIdx.x] = sum;
}

__global__ void strided_shared_kernel(float* y, int stride) {
  __shared__ float row[32 * 33];
  row[static_cast<int>(threadIdx.x) * stride] = 1.0f;
  __syncwarp();
  y[threadIdx.x] = row[static_cast<int>(threadIdx.x) * stride];
}

__global__ void ldmatrix_rows_kernel(float* y, int row_bytes) {
  __shared__ __align__(16) unsigned char rows[32 * 144];
  for (int i = static_cast<int>(threadIdx.x); i < 32 * 144; i += 32) rows[i] = 0;
  __syncwarp();
  std::uint32_t fragment[4];
  ldmatrix(fragment, rows + static_cast<int>(threadIdx.x) * row_bytes);
  y[threadIdx.x] = __uint_as_float(fragment[0] | fragment[1] | fragment[2] | fragment[3]);
}

// Every thread reads every value: what checked accesses cost.
__global__ void many_accesses_kernel(const float* x, float* y, int n) {
  __shared__ float row[256];
  row[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += row[(threadIdx.x + static_cast<unsigned>(i)) % 256];
  y[blockIdx.x * 256 + threadIdx.x] = sum;
}

}  // namespace

SIMT_EXPORT int shuffle_float(const float* x, float* y, int kind, int operand, int width) {
  return launch(shuffle_kernel<float>, dim3(1), dim3(32), 0, nullptr, x, y, kind, operand, width);
}
SIMT_EXPORT int shuffle_half(const __half* x, __half* y, int kind, int operand, int width) {
  return launch(shuffle_kernel<__half>, dim3(1), dim3(32), 0, nullptr, x, y, kind, operand, width);
}
SIMT_EXPORT int shuffle_double(const double* x, double* y, int kind, int operand, int width) {
  return launch(shuffle_kernel<double>, dim3(1), dim3(32), 0, nullptr, x, y, kind, operand, width);
}
SIMT_EXPORT int votes(const int* x, int* y) {
  return launch(votes_kernel, dim3(1), dim3(64), 0, nullptr, x, y);
}
SIMT_EXPORT int atomics(const int* x, int* y) {
  return launch(atomics_kernel, dim3(2), dim3(32), 0, nullptr, x, y);
}
SIMT_EXPORT int copy(const float* x, float* y, int bytes, int n) {
  const auto kernel = bytes == 4 ? copy_kernel<4> : bytes == 8 ? copy_kernel<8> : copy_kernel<16>;
  return launch(kernel, dim3(1), dim3(64), 0, nullptr, x, y, n);
}
SIMT_EXPORT int mma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, const float* c, float* d,
                         bool by_ldmatrix) {
  const auto kernel = by_ldmatrix ? ldmatrix_mma_kernel<__nv_bfloat16> : mma_kernel<__nv_bfloat16>;
  return launch(kernel, dim3(1), dim3(32), 0, nullptr, a, b, c, d);
}
SIMT_EXPORT int mma_f16(const __half* a, const __half* b, const float* c, float* d,
                        bool by_ldmatrix) {
  const auto kernel = by_ldmatrix ? ldmatrix_mma_kernel<__half> : mma_kernel<__half>;
  return launch(kernel, dim3(1), dim3(32), 0, nullptr, a, b, c, d);
}
SIMT_EXPORT int mma_tf32(const float* a, const float* b, const float* c, float* d) {
  return launch(mma_tf32_kernel, dim3(1), dim3(32), 0, nullptr, a, b, c, d);
}
SIMT_EXPORT int exp2_of(const float* x, float* y, int n) {
  return launch(exp2_kernel, dim3(1), dim3(32), 0, nullptr, x, y, n);
}
SIMT_EXPORT int arithmetic(const float* x, float* y, int n) {
  return launch(arithmetic_kernel, dim3(1), dim3(32), 0, nullptr, x, y, n);
}
SIMT_EXPORT int strided_read(const float* x, float* y, int stride) {
  return launch(strided_read_kernel, dim3(1), dim3(32), 0, nullptr, x, y, stride);
}
SIMT_EXPORT int vector_copy(const float* x, float* y) {
  return launch(vector_copy_kernel, dim3(1), dim3(32), 0, nullptr, x, y);
}
SIMT_EXPORT int read_twice(const float* x, float* y, int n) {
  return launch(read_twice_kernel, dim3(1), dim3(32), 0, nullptr, x, y, n);
}
SIMT_EXPORT int strided_shared(float* y, int stride) {
  return launch(strided_shared_kernel, dim3(1), dim3(32), 0, nullptr, y, stride);
}
SIMT_EXPORT int ldmatrix_rows(float* y, int row_bytes) {
  return launch(ldmatrix_rows_kernel, dim3(1), dim3(32), 0, nullptr, y, row_bytes);
}
SIMT_EXPORT int many_accesses(const float* x, float* y, int blocks, int n) {
  return launch(many_accesses_kernel, dim3(blocks), dim3(256), 0, nullptr, x, y, n);
}
SIMT_EXPORT int launch_of_too_many_threads(float* y) {
  return launch(strided_shared_kernel, dim3(1), dim3(2048), 0, nullptr, y, 1);
}
