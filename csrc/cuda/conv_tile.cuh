// How conv_relu_pool's forward is cut into tiles, one a block: what kernels, epilogue and launchers
// share.
//
// A tile is a box of pooled outputs [images][rows][cols] by kN filters of one group. The
// convolution outputs under it are its positions, the rows of a matrix product whose columns are
// the filters and whose reduction runs over R x S x C. The input pixels under these, halo included,
// lie in shared memory once, and a tap of the filter is an offset into them: what implicit GEMM
// reads R x S times leaves the caches once.
#pragma once

#include "conv_relu_pool.h"
#include "cuda/platform.cuh"

namespace imgfast::cuda {

// Where windows are reduced. kElement: there is no pool, a position is an output. kQuad: windows of
// 2 x 2 that do not overlap, in registers. kWindow: any other, from sums in shared memory.
enum class Pooling { kElement, kQuad, kWindow };

// ConvReLUPoolParams in 32 bits, C and K of one group.
struct ConvShape {
  int N, C, H, W, K, R, S, P, Q, PH, PW;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
  int pool_h, pool_w, pool_stride_h, pool_stride_w, pool_padding_h, pool_padding_w;
  int pool_dilation_h, pool_dilation_w;
  bool count_include_pad, activate_first;
  Pool pool;
  Activation activation;
};

struct ConvTile {
  int images, rows, cols;    // pooled outputs
  int conv_rows, conv_cols;  // positions, of an image
  int in_rows, in_cols;      // input pixels, of an image
  int tiles_h, tiles_w;      // tiles of an image

  __host__ __device__ int outputs() const { return images * rows * cols; }
  __host__ __device__ int positions() const { return images * conv_rows * conv_cols; }
  __host__ __device__ int pixels() const { return images * in_rows * in_cols; }
};

template <class T>
struct ConvForward {
  const T* x;  // [N, groups * C, H, W]
  std::int64_t x_stride[4];
  const void* weight;  // of the layout that the kernel says
  const T* bias;       // [groups * K] or null
  T* y;                // [N, groups * K, PH, PW]
  std::int64_t y_stride[4];
  std::uint8_t* codes;  // [N, PH, PW, groups * K] or null
  bool vector_x;        // channels of x lie together, four at a time are one aligned vector
  bool vector_y;        // and so do filters of y and codes
  ConvShape shape;
  ConvTile tile;
};

// A block's part: the filters fastest, so that blocks that run together share their input.
struct BlockPlace {
  int group, k0;     // first filter, within the group
  int n0, ph0, pw0;  // first pooled output
  int p0, q0;        // first position; negative in the padding of the pool
  int h0, w0;        // first input pixel; negative in the padding of the convolution

  __device__ BlockPlace(const ConvShape& s, const ConvTile& t, int filters) {
    int i = static_cast<int>(blockIdx.x);
    const int filter_tiles = (s.K + filters - 1) / filters;
    k0 = i % filter_tiles * filters;
    i /= filter_tiles;
    group = i % s.groups;
    i /= s.groups;
    pw0 = i % t.tiles_w * t.cols;
    i /= t.tiles_w;
    ph0 = i % t.tiles_h * t.rows;
    n0 = i / t.tiles_h * t.images;
    p0 = ph0 * s.pool_stride_h - s.pool_padding_h;
    q0 = pw0 * s.pool_stride_w - s.pool_padding_w;
    h0 = p0 * s.stride_h - s.padding_h;
    w0 = q0 * s.stride_w - s.padding_w;
  }
};

// One of a box of [images][rows][cols], from its place in row-major order.
struct BoxIndex {
  int image, row, col;
  __device__ __forceinline__ BoxIndex(int i, int rows, int cols) {
    col = i % cols;
    i /= cols;
    row = i % rows;
    image = i / rows;
  }
};

// One over what an average over the window (ph, pw) divides by.
__device__ __forceinline__ float average_scale(const ConvShape& s, int ph, int pw) {
  const std::int64_t h = avg_extent(ph * s.pool_stride_h - s.pool_padding_h, s.pool_h, s.P,
                                    s.pool_padding_h, s.count_include_pad);
  const std::int64_t w = avg_extent(pw * s.pool_stride_w - s.pool_padding_w, s.pool_w, s.Q,
                                    s.pool_padding_w, s.count_include_pad);
  return 1.0f / static_cast<float>(h * w);
}

// The input pixel, within the tile's, under the first tap of a position. For quads, positions count
// as four of a window and then the next window; else in row-major order. Positions that a tile does
// not fill read its first pixel: their sums are not used.
template <Pooling kPooling>
__device__ __forceinline__ int first_pixel(const ConvShape& s, const ConvTile& t, int position) {
  if (position >= t.positions()) return 0;
  int p, q, image;
  if constexpr (kPooling == Pooling::kQuad) {
    const BoxIndex window(position / 4, t.rows, t.cols);
    image = window.image;
    p = 2 * window.row + position % 4 / 2;
    q = 2 * window.col + position % 2;
  } else {
    const BoxIndex at(position, t.conv_rows, t.conv_cols);
    image = at.image;
    p = at.row;
    q = at.col;
  }
  return (image * t.in_rows + p * s.stride_h) * t.in_cols + q * s.stride_w;
}

// Where a pixel of the tile lies in x, the first channel of the group; null in the padding.
template <class T>
__device__ __forceinline__ const T* pixel_address(const ConvForward<T>& a, const BlockPlace& place,
                                                  int pixel) {
  const BoxIndex at(pixel, a.tile.in_rows, a.tile.in_cols);
  const int n = place.n0 + at.image, h = place.h0 + at.row, w = place.w0 + at.col;
  const bool inside = n < a.shape.N && h >= 0 && h < a.shape.H && w >= 0 && w < a.shape.W;
  if (!inside) return nullptr;
  return a.x + n * a.x_stride[0] +
         static_cast<std::int64_t>(place.group) * a.shape.C * a.x_stride[1] + h * a.x_stride[2] +
         w * a.x_stride[3];
}

}  // namespace imgfast::cuda
