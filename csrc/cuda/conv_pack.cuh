// Convolution weights in the order in which a kernel reads them: a strided copy. What neighbours in
// the one order lies far apart in the other, so a block turns a tile of two dimensions in shared
// memory, and reads and writes whole sectors.
#pragma once

#include "cuda/platform.cuh"

namespace imgfast::cuda {

// to[i0][i1][i2][i3][i4] = from[sum of i_d * stride_d], zero where i3 or i4 is beyond what `from`
// has.
struct ConvPacking {
  static constexpr int kDims = 5;
  static constexpr int kTile = 32, kThreads = 256;
  std::int64_t size[kDims], stride[kDims];
  std::int64_t valid3, valid4;

  __host__ __device__ std::int64_t count() const {
    return size[0] * size[1] * size[2] * size[3] * size[4];
  }

  // The dimension that a tile spans beside the last one: the largest of the others.
  __host__ __device__ int across() const {
    int most = 0;
    for (int d = 1; d < kDims - 1; d++) most = size[d] > size[most] ? d : most;
    return most;
  }

  // Of a dimension, the tiles.
  __host__ __device__ std::int64_t tiles(int d, int across) const {
    return d == across || d == kDims - 1 ? (size[d] + kTile - 1) / kTile : size[d];
  }
  __host__ __device__ std::int64_t tiles() const {
    std::int64_t all = 1;
    for (int d = 0; d < kDims; d++) all *= tiles(d, across());
    return all;
  }
};

// One tile a block.
template <class T>
__global__ void __launch_bounds__(ConvPacking::kThreads)
    conv_pack_kernel(const T* from, T* to, const __grid_constant__ ConvPacking packing) {
  constexpr int kDims = ConvPacking::kDims, kTile = ConvPacking::kTile;
  constexpr int kRows = ConvPacking::kThreads / kTile;
  __shared__ T tile[kTile][kTile + 1];
  const int across = packing.across();
  const int row0 = static_cast<int>(threadIdx.x) / kTile;
  const int lane = static_cast<int>(threadIdx.x) % kTile;

  // The tile's first element, and what follows it along `across`.
  int rest = static_cast<int>(blockIdx.x);
  std::int64_t first_from = 0, first_to = 0, step = 1;  // step: of d, in `to`
  std::int64_t i3 = 0, i4 = 0, left_across = 0, across_from = 0, across_to = 0;
#pragma unroll
  for (int d = kDims - 1; d >= 0; d--) {
    const int tiles = static_cast<int>(packing.tiles(d, across));
    std::int64_t i = rest % tiles;
    rest /= tiles;
    if (d == across || d == kDims - 1) i *= kTile;
    if (d == kDims - 1) i4 = i;
    if (d == 3) i3 = i;
    if (d == across) {
      left_across = packing.size[d] - i;
      across_from = packing.stride[d];
      across_to = step;
    }
    first_from += i * packing.stride[d];
    first_to += i * step;
    step *= packing.size[d];
  }
  const std::int64_t last_from = packing.stride[kDims - 1];

  // Load: neighbouring lanes read what lies closer together in `from`.
  const bool turned = (across_from < 0 ? -across_from : across_from) < last_from;
#pragma unroll
  for (int row = row0; row < kTile; row += kRows) {
    const int a = turned ? lane : row, b = turned ? row : lane;
    const bool valid =
        a < left_across && i3 + (across == 3 ? a : 0) < packing.valid3 && i4 + b < packing.valid4;
    tile[a][b] =
        valid ? load_readonly<T>(from + first_from + a * across_from + b * last_from) : T{};
  }
  __syncthreads();

  // Write: neighbouring lanes, along the last dimension.
#pragma unroll
  for (int row = row0; row < kTile; row += kRows) {
    if (row < left_across && i4 + lane < packing.size[kDims - 1]) {
      to[first_to + row * across_to + lane] = tile[row][lane];
    }
  }
}

}  // namespace imgfast::cuda
