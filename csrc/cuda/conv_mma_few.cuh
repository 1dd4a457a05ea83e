// conv_relu_pool's forward on tensor cores for few channels, as of a first layer: R x S x C is one
// reduction, padded to whole steps of 16 once and not once a tap. All of it is in shared memory at
// once, and as neighbouring terms of it are not aligned there, fragments of the input are gathered
// by a table of offsets.
//
// weight: T [groups * K][R][S][C], without padding.
#pragma once

#include "cuda/conv_fragment.cuh"

namespace imgfast::cuda {

struct ConvMmaFew {
  static constexpr int kWarpsM = 2, kWarpsN = 2;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kM = kWarpsM * WarpTile::kM, kN = kWarpsN * WarpTile::kN;
};

// The shared memory of the main loop, under which lies the epilogue's.
template <class T>
struct ConvMmaFewLayout {
  int terms, padded, pitch;  // of a filter: R x S x C, that in whole steps, and from row to row
  SharedCarver carver;
  SharedArray<int> offsets;  // [padded] of a term, within the tile's input; -1 for none
  SharedArray<T> weight;     // [kN][pitch]
  SharedArray<T> input;      // [pixels][C]

  // Eight rows, as ldmatrix reads them, an odd number of 16 bytes apart, meet no bank twice.
  __host__ __device__ ConvMmaFewLayout(const ConvShape& s, const ConvTile& t)
      : terms(s.R * s.S * s.C),
        padded((terms + 15) / 16 * 16),
        pitch(padded + 8),
        offsets(carver.take<int>(padded)),
        weight(carver.take<T>(static_cast<std::size_t>(ConvMmaFew::kN) * pitch)),
        input(carver.take<T>(static_cast<std::size_t>(t.pixels()) * s.C)) {}
};

// Two elements as one register of a fragment, the first in the lower half; zeros where there is no
// term, as what lies elsewhere may be infinite.
template <class T>
__device__ __forceinline__ std::uint32_t gather_pair(const T* from, const Vec<int, 2>& offsets) {
  static_assert(sizeof(T) == 2);
  const std::uint32_t first = offsets[0] < 0 ? 0 : load<std::uint16_t>(from + offsets[0]);
  const std::uint32_t second = offsets[1] < 0 ? 0 : load<std::uint16_t>(from + offsets[1]);
  return first | second << 16;
}

template <class T, Pooling kPooling>
__global__ void __launch_bounds__(ConvMmaFew::kThreads, 4)
    conv_mma_few_kernel(const __grid_constant__ ConvForward<T> a) {
  constexpr int kThreads = ConvMmaFew::kThreads, kN = ConvMmaFew::kN;
  const ConvShape& s = a.shape;
  const BlockPlace place(s, a.tile, kN);
  const ConvMmaFewLayout<T> layout(s, a.tile);
  int* const offsets = layout.offsets.data();
  T* const weight = layout.weight.data();
  T* const input = layout.input.data();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;

  // Load: offsets, weights and input, whose neighbouring lanes read what lies together in x.
  for (int i = thread; i < layout.padded; i += kThreads) {
    const int tap = i / s.C,
              pixel = tap / s.S * s.dilation_h * a.tile.in_cols + tap % s.S * s.dilation_w;
    offsets[i] = i < layout.terms ? pixel * s.C + i % s.C : -1;
  }
  const T* const filters = static_cast<const T*>(a.weight) +
                           (static_cast<std::int64_t>(place.group) * s.K + place.k0) * layout.terms;
  for (int i = thread; i < kN * layout.padded; i += kThreads) {
    const int filter = i / layout.padded, term = i % layout.padded;
    const bool valid = place.k0 + filter < s.K && term < layout.terms;
    weight[filter * layout.pitch + term] =
        valid ? load_readonly<T>(filters + static_cast<std::int64_t>(filter) * layout.terms + term)
              : T{};
  }
  const int pixels = a.tile.pixels();
  for (int i = thread; i < pixels * s.C; i += kThreads) {
    const int pixel = a.x_stride[1] == 1 ? i / s.C : i % pixels;
    const int c = a.x_stride[1] == 1 ? i % s.C : i / pixels;
    const T* from = pixel_address(a, place, pixel);
    input[pixel * s.C + c] = from != nullptr ? load_readonly<T>(from + c * a.x_stride[1]) : T{};
  }

  const int warp = thread / 32, g = lane / 4, t = lane % 4;
  const int m = warp % ConvMmaFew::kWarpsM * WarpTile::kM;
  const int k = warp / ConvMmaFew::kWarpsM * WarpTile::kN;
  int position[WarpTile::kFragmentsM][2];  // rows g and g + 8
#pragma unroll
  for (int i = 0; i < WarpTile::kFragmentsM; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int at = fragment_position<kPooling>(m / 16 + i, g + 8 * half);
      position[i][half] = first_pixel<kPooling>(s, a.tile, at) * s.C;
    }
  }
  const T* const filter_row =
      weight + (k + WarpTile::filter_row(lane)) * layout.pitch + WarpTile::filter_piece(lane) * 8;
  __syncthreads();

  WarpTile warp_tile;
#pragma unroll 1
  for (int term = 0; term < layout.padded; term += 16) {
    const auto low = load<Vec<int, 2>>(offsets + term + t * 2);
    const auto high = load<Vec<int, 2>>(offsets + term + t * 2 + 8);
    std::uint32_t filter_bits[WarpTile::kFragmentsN][2];
    WarpTile::load_filters<T>(filter_bits, filter_row + term, layout.pitch);
#pragma unroll
    for (int f = 0; f < WarpTile::kFragmentsM; f++) {
      const T* const upper = input + position[f][0];
      const T* const lower = input + position[f][1];
      const std::uint32_t x[4] = {gather_pair(upper, low), gather_pair(lower, low),
                                  gather_pair(upper, high), gather_pair(lower, high)};
      warp_tile.add<T>(f, x, filter_bits);
    }
  }
  __syncthreads();  // the epilogue overwrites what was read

  const Epilogue<T, kPooling, ConvMmaFew::kM, kN, kThreads> epilogue(a, place);
  warp_tile.put<kPooling>(epilogue, m, k);
  __syncthreads();
  epilogue.write();
}

}  // namespace imgfast::cuda
