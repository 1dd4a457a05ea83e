// The part of a tile that a warp sums on tensor cores, 64 positions by 32 filters, shared by the
// kernels for many and for few channels.
#pragma once

#include "cuda/conv_epilogue.cuh"
#include "cuda/ptx.cuh"

namespace imgfast::cuda {

// Elements as multiply takes them: float32 has to be rounded to tf32.
template <class T>
__device__ __forceinline__ std::uint32_t operand(std::uint32_t bits) {
  return std::is_same_v<T, float> ? to_tf32(__uint_as_float(bits)) : bits;
}

// One step of the reduction: 32 bytes of every position and filter, 16 elements or 8 of tf32.
template <class T>
__device__ __forceinline__ void multiply(float (&sum)[4], const std::uint32_t (&a)[4],
                                         const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float>) {
    mma_m16n8k8_tf32(sum, a, b);
  } else {
    mma_m16n8k16<T>(sum, a, b);
  }
}

// The matrix rows of a block's warps. Positions of quads are counted as four of a window and then
// the next window, and row `row` of fragment `fragment` is the position that makes rows g and g + 8
// vertical neighbours, which one thread holds, and rows g and g ^ 1 horizontal ones, four lanes
// apart.
template <Pooling kPooling>
__device__ __forceinline__ int fragment_position(int fragment, int row) {
  if constexpr (kPooling == Pooling::kQuad) {
    return fragment * 16 + row % 8 / 2 * 4 + row / 8 * 2 + row % 2;
  } else {
    return fragment * 16 + row;
  }
}

struct WarpTile {
  static constexpr int kFragmentsM = 4, kFragmentsN = 4;
  static constexpr int kM = 16 * kFragmentsM, kN = 8 * kFragmentsN;

  float sum[kFragmentsM][kFragmentsN][4] = {};

  // 32 bytes of every filter, from rows in shared memory. row is the one that this lane asks for:
  // matrices are filters 0 to 7, these 16 bytes further, filters 8 to 15, and so on.
  template <class T>
  __device__ static __forceinline__ void load_filters(std::uint32_t (&filters)[kFragmentsN][2],
                                                      const T* row, int pitch) {
#pragma unroll
    for (int j = 0; j < kFragmentsN; j += 2) {
      std::uint32_t both[4];
      ldmatrix(both, row + j * 8 * pitch);
#pragma unroll
      for (int v = 0; v < 4; v++) filters[j + v / 2][v % 2] = operand<T>(both[v]);
    }
  }
  __device__ static __forceinline__ int filter_row(int lane) { return lane / 16 * 8 + lane % 8; }
  __device__ static __forceinline__ int filter_piece(int lane) { return lane / 8 % 2; }

  // Adds the products of one fragment of positions.
  template <class T>
  __device__ __forceinline__ void add(int fragment, const std::uint32_t (&x)[4],
                                      const std::uint32_t (&filters)[kFragmentsN][2]) {
#pragma unroll
    for (int j = 0; j < kFragmentsN; j++) multiply<T>(sum[fragment][j], x, filters[j]);
  }

  // Into the epilogue, as positions from m and filters from k on.
  template <Pooling kPooling, class Epilogue>
  __device__ __forceinline__ void put(const Epilogue& epilogue, int m, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    if (epilogue.activates_first()) {
#pragma unroll
      for (int j = 0; j < kFragmentsN; j++) {
#pragma unroll
        for (int i = 0; i < kFragmentsM; i++) {
          float upper[2] = {sum[i][j][0], sum[i][j][1]}, lower[2] = {sum[i][j][2], sum[i][j][3]};
          epilogue.activate_sums(k + j * 8 + t * 2, upper);
          epilogue.activate_sums(k + j * 8 + t * 2, lower);
          sum[i][j][0] = upper[0], sum[i][j][1] = upper[1];
          sum[i][j][2] = lower[0], sum[i][j][3] = lower[1];
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kFragmentsN; j++) {
      const int pair = k + j * 8 + t * 2;  // d[0], d[1] are of neighbouring filters
      if constexpr (kPooling == Pooling::kQuad) {
        // Of a pair of lanes, each takes one filter and hands its half of the other's over.
        const int mine = g % 2;
#pragma unroll
        for (int i = 0; i < kFragmentsM; i++) {
          const float (&d)[4] = sum[i][j];
          const float top = mine ? d[1] : d[0], bottom = mine ? d[3] : d[2];
          const float other_top = __shfl_xor_sync(0xffffffffu, mine ? d[0] : d[1], 4);
          const float other_bottom = __shfl_xor_sync(0xffffffffu, mine ? d[2] : d[3], 4);
          const float quad[1][4] = {{mine ? other_top : top, mine ? top : other_top,
                                     mine ? other_bottom : bottom, mine ? bottom : other_bottom}};
          epilogue.put_quad((m + i * 16) / 4 + g / 2, pair + mine, quad);
        }
      } else {
#pragma unroll
        for (int i = 0; i < kFragmentsM; i++) {
          const float upper[2] = {sum[i][j][0], sum[i][j][1]};
          const float lower[2] = {sum[i][j][2], sum[i][j][3]};
          epilogue.put(m + i * 16 + g, pair, upper);
          epilogue.put(m + i * 16 + g + 8, pair, lower);
        }
      }
    }
  }
};

}  // namespace imgfast::cuda
