// The weight gradient of conv_relu_pool in exact float32: a block sums 64 filters by 32 columns, a
// thread 8 filters by 8 channels or taps in registers.
//
// kV channels of a pixel are a column. kV = 1 is for few channels (1, 2, 3), whose columns are
// taps and channels without holes; as these are few, the block's four warps sum the same columns,
// each at a quarter of the positions, and write a part each.
#pragma once

#include "cuda/conv_backward_weight_tile.cuh"

namespace imgfast::cuda {

template <int kV>
struct ConvWeightSimt {
  using Element = float;
  static constexpr int kThreads = 128;
  static constexpr int kFilters = 64, kPiece = kV;
  static constexpr int kHalves = 2, kVectorK = 4;  // vectors of a thread's filters, 32 apart
  static constexpr int kFilterThreads = kFilters / kHalves / kVectorK;
  static constexpr int kVectors = 8 / kV;          // columns of a thread,
  static constexpr int kSlices = kV == 1 ? 4 : 1;  // and how many threads share them
  static constexpr int kColumnThreads = kThreads / kFilterThreads / kSlices;
  static constexpr int kColumns = kVectors * kColumnThreads;
  static constexpr int kStep = 1, kRow = 1, kMostPositions = 64;
  static constexpr int kGradientPitch = kFilters;

  __device__ static __forceinline__ int gradient_offset(int position, int piece) {
    return position * kGradientPitch + piece * 4;
  }
};

template <int kV, Pooling kPooling>
__global__ void __launch_bounds__(ConvWeightSimt<kV>::kThreads, 3)
    conv_backward_weight_simt_kernel(const __grid_constant__ ConvBackwardWeight<float> a) {
  using Size = ConvWeightSimt<kV>;
  constexpr int kVectors = Size::kVectors, kVectorK = Size::kVectorK, kHalves = Size::kHalves;
  const WeightPlace<Size> place(a.shape);
  const WeightLayout<Size> layout(a.shape, a.tile);

  // Eight threads share their columns, and as vectors their filters fill all banks.
  const int thread = static_cast<int>(threadIdx.x);
  const int k = thread % Size::kFilterThreads * kVectorK;
  const int column = thread / Size::kFilterThreads % Size::kColumnThreads;
  const int slice = thread / Size::kFilterThreads / Size::kColumnThreads;
  const int vectors = (place.columns + Size::kColumnThreads - 1) / Size::kColumnThreads;
  int offset[kVectors];
#pragma unroll
  for (int n = 0; n < kVectors; n++) {
    offset[n] = place.offset(a.shape, a.tile, layout.pitch, n * Size::kColumnThreads + column);
  }

  float sum[kVectors][kHalves][kVectorK][kV] = {};
  multiply_boxes<Size, kPooling>(
      a, place, layout, [&](const float* gradient, const float* input, const int* pixels) {
#pragma unroll 2
        for (int i = slice; i < layout.positions; i += Size::kSlices) {
          const float* const pixel = input + pixels[i];
          Vec<float, kVectorK> d[kHalves];
#pragma unroll
          for (int h = 0; h < kHalves; h++) {
            d[h] = load<Vec<float, kVectorK>>(gradient + i * Size::kGradientPitch +
                                              h * (Size::kFilters / kHalves) + k);
          }
#pragma unroll
          for (int n = 0; n < kVectors; n++) {
            if (n >= vectors) break;
            const auto x = load<Vec<float, kV>>(pixel + offset[n]);
#pragma unroll
            for (int h = 0; h < kHalves; h++) {
#pragma unroll
              for (int f = 0; f < kVectorK; f++) {
#pragma unroll
                for (int v = 0; v < kV; v++) sum[n][h][f][v] = fmaf(d[h][f], x[v], sum[n][h][f][v]);
              }
            }
          }
        }
      });

#pragma unroll
  for (int n = 0; n < kVectors; n++) {
#pragma unroll
    for (int h = 0; h < kHalves; h++) {
#pragma unroll
      for (int f = 0; f < kVectorK; f++) {
        float* const to = place.sums(a, slice, h * (Size::kFilters / kHalves) + k + f,
                                     n * Size::kColumnThreads + column);
        if (to == nullptr) continue;
        Vec<float, kV> sums;
#pragma unroll
        for (int v = 0; v < kV; v++) sums[v] = sum[n][h][f][v];
        store_global(to, sums);
      }
    }
  }
}

}  // namespace imgfast::cuda
