// The weight gradient of conv_relu_pool on tensor cores, by mma.sync of bfloat16, float16, or
// float32 rounded to tf32; sums are float32. A block sums 64 filters by 18 columns of 8 channels:
// two pieces of channels under the nine taps of a 3 x 3 filter.
//
// The reduction runs over positions, the rows in shared memory of both factors: ldmatrix transposes
// them. Of 32-bit elements it cannot, and these are loaded one by one.
#pragma once

#include "cuda/conv_backward_weight_tile.cuh"
#include "cuda/conv_fragment.cuh"

namespace imgfast::cuda {

template <class T>
struct ConvWeightMma {
  using Element = T;
  static constexpr int kWarpsM = 2, kWarpsN = 2;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kFragmentsM = 2, kFragmentsN = 9;  // of a warp, 16 filters by 8 channels
  static constexpr int kFilters = kWarpsM * kFragmentsM * 16;
  static constexpr int kPiece = 8, kColumns = kWarpsN * kFragmentsN;
  static constexpr int kSlices = 1;
  static constexpr int kStep = 32 / sizeof(T), kMostPositions = 256 / sizeof(T);
  static constexpr int kRow = 16 / sizeof(T);  // positions whose pixels are read together
  // Of 16-bit elements the same piece of eight positions, as ldmatrix reads them, lies in eight
  // different places modulo all banks; of 32-bit elements, eight filters of four positions do.
  static constexpr int kGradientPitch = sizeof(T) == 2 ? kFilters : kFilters + 8;

  __device__ static __forceinline__ int gradient_offset(int position, int piece) {
    if constexpr (sizeof(T) == 2) {
      static_assert(kFilters == 64);
      return (position * 8 + (piece ^ position % 8)) * 8;
    } else {
      return position * kGradientPitch + piece * 4;
    }
  }
};

// The columns of a warp: every second one, so that few are shared out as well.
template <class T>
struct WeightWarp {
  using Size = ConvWeightMma<T>;
  static constexpr int kFragmentsM = Size::kFragmentsM, kFragmentsN = Size::kFragmentsN;
  // Two columns come by one ldmatrix, of which each lane asks for a row of one.
  static constexpr int kOffsets = sizeof(T) == 2 ? (kFragmentsN + 1) / 2 : kFragmentsN;

  int lane, m, first, count;  // first filter; first column and number of them
  int offset[kOffsets];
  float sum[kFragmentsM][kFragmentsN][4] = {};

  __device__ WeightWarp(const ConvBackwardWeight<T>& a, const WeightPlace<Size>& place, int pitch) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    lane = static_cast<int>(threadIdx.x) % 32;
    m = warp % Size::kWarpsM * kFragmentsM * 16;
    first = warp / Size::kWarpsM;
    count =
        place.k0 + m < a.shape.K ? (place.columns - first + Size::kWarpsN - 1) / Size::kWarpsN : 0;
#pragma unroll
    for (int i = 0; i < kOffsets; i++) {
      const int j = sizeof(T) == 2 ? 2 * i + lane / 16 : i;
      offset[i] = place.offset(a.shape, a.tile, pitch, column(j));
    }
  }

  __device__ __forceinline__ int column(int j) const { return j * Size::kWarpsN + first; }

  __device__ __forceinline__ void add(int j, const std::uint32_t (&d)[kFragmentsM][4],
                                      const std::uint32_t (&x)[2]) {
#pragma unroll
    for (int f = 0; f < kFragmentsM; f++) multiply<T>(sum[f][j], d[f], x);
  }

  // 16 positions from `step` on.
  __device__ __forceinline__ void multiply_transposed(const T* gradient, const T* input,
                                                      const int* pixels, int step) {
    // Matrices are filters 0 to 7 and 8 to 15, and both at eight further positions;
    // of x they are positions 0 to 7 and 8 to 15, and both of the next column.
    std::uint32_t d[kFragmentsM][4];
#pragma unroll
    for (int f = 0; f < kFragmentsM; f++) {
      const int position = step + lane % 8 + lane / 16 * 8;
      const int piece = m / 8 + f * 2 + lane / 8 % 2;
      ldmatrix<true>(d[f], gradient + Size::gradient_offset(position, piece));
    }
    const T* const pixel = input + pixels[step + lane % 16];
#pragma unroll
    for (int j = 0; j < kFragmentsN; j += 2) {
      if (j >= count) break;
      if (j + 1 < kFragmentsN) {
        std::uint32_t x[4];
        ldmatrix<true>(x, pixel + offset[j / 2]);
        add(j, d, {x[0], x[1]});
        add(j + 1, d, {x[2], x[3]});
      } else {
        std::uint32_t x[2];
        ldmatrix<true>(x, pixel + offset[j / 2]);
        add(j, d, x);
      }
    }
  }

  // 8 positions from `step` on.
  __device__ __forceinline__ void multiply_elements(const T* gradient, const T* input,
                                                    const int* pixels, int step) {
    const int g = lane / 4, t = lane % 4;
    std::uint32_t d[kFragmentsM][4];
#pragma unroll
    for (int f = 0; f < kFragmentsM; f++) {
#pragma unroll
      for (int v = 0; v < 4; v++) {
        const int position = step + t + v / 2 * 4, filter = m + f * 16 + g + v % 2 * 8;
        d[f][v] = to_tf32(gradient[position * Size::kGradientPitch + filter]);
      }
    }
    const T* const near = input + pixels[step + t] + g;
    const T* const far = input + pixels[step + t + 4] + g;
#pragma unroll
    for (int j = 0; j < kFragmentsN; j++) {
      if (j >= count) break;
      add(j, d, {to_tf32(near[offset[j]]), to_tf32(far[offset[j]])});
    }
  }

  __device__ __forceinline__ void write(const ConvBackwardWeight<T>& a,
                                        const WeightPlace<Size>& place) const {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < kFragmentsN; j++) {
#pragma unroll
      for (int row = 0; row < 2 * kFragmentsM; row++) {
        float* const to = place.sums(a, 0, m + row * 8 + g, column(j));
        const float (&d)[4] = sum[row / 2][j];
        const Vec<float, 2> pair{{d[row % 2 * 2], d[row % 2 * 2 + 1]}};
        if (to != nullptr) store_global(to + t * 2, pair);
      }
    }
  }
};

template <class T, Pooling kPooling>
__global__ void __launch_bounds__(ConvWeightMma<T>::kThreads, kPooling == Pooling::kWindow ? 2 : 3)
    conv_backward_weight_mma_kernel(const __grid_constant__ ConvBackwardWeight<T> a) {
  using Size = ConvWeightMma<T>;
  const WeightPlace<Size> place(a.shape);
  const WeightLayout<Size> layout(a.shape, a.tile);
  WeightWarp<T> warp(a, place, layout.pitch);
  multiply_boxes<Size, kPooling>(
      a, place, layout, [&](const T* gradient, const T* input, const int* pixels) {
        if (warp.count == 0) return;
#pragma unroll 1
        for (int step = 0; step < layout.positions; step += Size::kStep) {
          if constexpr (sizeof(T) == 2) {
            warp.multiply_transposed(gradient, input, pixels, step);
          } else {
            warp.multiply_elements(gradient, input, pixels, step);
          }
        }
      });
  warp.write(a, place);
}

}  // namespace imgfast::cuda
