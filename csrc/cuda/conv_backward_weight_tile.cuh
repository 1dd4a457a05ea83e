// The weight gradient of conv_relu_pool as a matrix product, and what its kernels share.
//
//   grad_weight[k, c, r, s] = sum over n, p, q of
//       d[n, k, p, q] * x[n, c, p * stride - padding + r * dilation, and so on]
//
// with d the gradient at the convolution's output. Rows are filters, columns are pieces of
// neighbouring channels under one tap, in the order [pieces of C][R * S], and the reduction runs
// over positions. A block takes some filters by some columns of one group, and one box of positions
// after the other: d is expanded into shared memory from what the pool left of it, the pixels of x
// under the box come once, halo included, and a tap is an offset into them.
//
// The boxes are shared out in parts, each with sums of its own in memory. A second kernel adds the
// parts in their order: the result depends on the call alone.
#pragma once

#include "cuda/conv_gradient.cuh"
#include "cuda/conv_tile.cuh"
#include "cuda/ptx.cuh"

namespace imgfast::cuda {

template <class T>
struct ConvBackwardWeight {
  ConvGradient<T> gradient;
  const T* x;  // [N, groups * C, H, W]
  std::int64_t x_stride[4];
  bool vector_x;   // channels of x lie together, those of 16 bytes are one aligned vector
  float* partial;  // [parts][groups * K][columns of a filter]
  ConvShape shape;
  ConvTile tile;  // a box of positions: its conv_rows and conv_cols, and the pixels under them
  int boxes, parts;
};

// The columns of a group, of which blocks take kColumns pieces each.
template <class Size>
struct WeightColumns {
  int taps, count;  // of all pieces

  __host__ __device__ explicit WeightColumns(const ConvShape& s)
      : taps(s.R * s.S), count((s.C + Size::kPiece - 1) / Size::kPiece * taps) {}

  __host__ __device__ int tiles() const { return (count + Size::kColumns - 1) / Size::kColumns; }
  // Pieces of the channels that a block reaches over at most.
  __host__ __device__ int most_pieces() const {
    const int most = Size::kColumns % taps == 0   ? Size::kColumns / taps
                     : taps % Size::kColumns == 0 ? 1
                                                  : (Size::kColumns - 2) / taps + 2;
    return most < count / taps ? most : count / taps;
  }
};

// Shared memory, for two boxes: one is multiplied while the next one comes.
template <class Size>
struct WeightLayout {
  using T = typename Size::Element;
  int pitch;                      // elements from pixel to pixel
  int positions;                  // of a box, in whole steps
  int gradient_size, input_size;  // of a box
  SharedCarver carver;
  SharedArray<int> pixels;         // [positions] where the pixel under the first tap lies
  SharedArray<T> gradient, input;  // [2][positions][kFilters], [2][pixels][pieces]

  // An odd number of pieces: neighbouring pixels meet no bank twice.
  __host__ __device__ WeightLayout(const ConvShape& s, const ConvTile& t)
      : pitch((WeightColumns<Size>(s).most_pieces() | 1) * Size::kPiece),
        positions((t.positions() + Size::kStep - 1) / Size::kStep * Size::kStep),
        gradient_size(positions * Size::kGradientPitch),
        input_size(t.pixels() * pitch),
        pixels(carver.take<int>(positions)),
        gradient(carver.take<T>(static_cast<std::size_t>(2) * gradient_size)),
        input(carver.take<T>(static_cast<std::size_t>(2) * input_size)) {}
};

// A block's part. The columns run fastest, then the filters: blocks that run together share d and
// x.
template <class Size>
struct WeightPlace {
  int part, group, k0;   // k0: first filter, within the group
  int column0, columns;  // first column piece of the group, and how many
  int piece0, pieces;    // pieces of the channels under these

  __device__ explicit WeightPlace(const ConvShape& s) {
    const WeightColumns<Size> all(s);
    int i = static_cast<int>(blockIdx.x);
    column0 = i % all.tiles() * Size::kColumns;
    i /= all.tiles();
    const int filter_tiles = (s.K + Size::kFilters - 1) / Size::kFilters;
    k0 = i % filter_tiles * Size::kFilters;
    i /= filter_tiles;
    group = i % s.groups;
    part = i / s.groups;
    columns = min(Size::kColumns, all.count - column0);
    piece0 = column0 / all.taps;
    pieces = (column0 + columns - 1) / all.taps + 1 - piece0;
  }

  // Where a column lies, relative to the pixel under the first tap. One that is not there reads
  // what the first one does: its sums are not used.
  __device__ __forceinline__ int offset(const ConvShape& s, const ConvTile& t, int pitch,
                                        int column) const {
    const int taps = s.R * s.S, at = column0 + (column < columns ? column : 0), tap = at % taps;
    return (tap / s.S * s.dilation_h * t.in_cols + tap % s.S * s.dilation_w) * pitch +
           (at / taps - piece0) * Size::kPiece;
  }

  // The sums of a filter of the tile and a column; null where there is none.
  template <class T>
  __device__ __forceinline__ float* sums(const ConvBackwardWeight<T>& a, int slice, int filter,
                                         int column) const {
    const ConvShape& s = a.shape;
    if (k0 + filter >= s.K || column >= columns) return nullptr;
    const std::int64_t row =
        (static_cast<std::int64_t>(part) * Size::kSlices + slice) * s.groups * s.K + group * s.K +
        k0 + filter;
    return a.partial + (row * WeightColumns<Size>(s).count + column0 + column) * Size::kPiece;
  }
};

template <class Size, Pooling kPooling>
struct WeightStage {
  using T = typename Size::Element;
  static constexpr int kUnit = Size::kPiece < 16 / sizeof(T) ? Size::kPiece : 16 / sizeof(T);
  static constexpr int kGradientPiece = 16 / sizeof(T);
  static constexpr int kGradientPieces = Size::kFilters / kGradientPiece;

  const ConvBackwardWeight<T>& a;
  const WeightPlace<Size>& place;
  const WeightLayout<Size>& layout;

  // What is the same for all boxes: where pixels lie, and the gradient that fills the last step.
  __device__ __forceinline__ void tables(int* pixels, T* gradient) const {
    for (int i = static_cast<int>(threadIdx.x); i < layout.positions; i += Size::kThreads) {
      pixels[i] = first_pixel<Pooling::kElement>(a.shape, a.tile, i) * layout.pitch;
    }
    const int first = a.tile.positions();
    const int items = (layout.positions - first) * kGradientPieces;
    for (int i = static_cast<int>(threadIdx.x); i < items; i += Size::kThreads) {
      const int to = Size::gradient_offset(first + i / kGradientPieces, i % kGradientPieces);
      const Vec<T, kGradientPiece> zeros{};
      store(gradient + to, zeros);
      store(gradient + layout.gradient_size + to, zeros);
    }
  }

  __device__ __forceinline__ void box(int box, T* gradient, T* input) const {
    const ConvShape& s = a.shape;
    const ConvTile& t = a.tile;
    const int q0 = box % t.tiles_w * t.conv_cols;
    box /= t.tiles_w;
    const int p0 = box % t.tiles_h * t.conv_rows, n0 = box / t.tiles_h * t.images;
    pixels(n0, p0 * s.stride_h - s.padding_h, q0 * s.stride_w - s.padding_w, input);
    const GradientBox positions{n0, p0, q0, t.images, t.conv_rows, t.conv_cols};
    stage_gradient<kPooling, kGradientPieces, kGradientPiece, Size::kThreads>(
        a.gradient, s, place.group, positions, place.k0, gradient,
        [](int position, int piece) { return Size::gradient_offset(position, piece); });
  }

 private:
  // The block's pieces of the channels of every pixel from (n0, h0, w0) on; what x does not have is
  // zero.
  __device__ __forceinline__ void pixels(int n0, int h0, int w0, T* to) const {
    const ConvShape& s = a.shape;
    const ConvTile& t = a.tile;
    const int pixels = t.pixels(), units = place.pieces * (Size::kPiece / kUnit);
    const std::int64_t stride = a.x_stride[1];
    for (int i = static_cast<int>(threadIdx.x); i < pixels * units; i += Size::kThreads) {
      // Neighbouring lanes read what lies together in x.
      const int pixel = stride == 1 ? i / units : i % pixels;
      const int unit = stride == 1 ? i % units : i / pixels;
      const int c = place.piece0 * Size::kPiece + unit * kUnit;
      const BoxIndex at(pixel, t.in_rows, t.in_cols);
      const int n = n0 + at.image, h = h0 + at.row, w = w0 + at.col;
      const bool inside = n < s.N && h >= 0 && h < s.H && w >= 0 && w < s.W;
      const T* from = a.x;
      if (inside) {
        from += n * a.x_stride[0] + (static_cast<std::int64_t>(place.group) * s.C + c) * stride +
                h * a.x_stride[2] + w * a.x_stride[3];
      }
      T* const unit_to = to + pixel * layout.pitch + unit * kUnit;
      if (kUnit > 1 && a.vector_x) {
        const bool valid = inside && c < s.C;
        cp_async<16>(unit_to, valid ? from : a.x, valid);
      } else {
        Vec<T, kUnit> values;
#pragma unroll
        for (int j = 0; j < kUnit; j++) {
          values[j] = inside && c + j < s.C ? load_readonly<T>(from + j * stride) : T{};
        }
        store(unit_to, values);
      }
    }
  }
};

// Calls multiply(gradient, input, pixels) for every box of the block's part.
template <class Size, Pooling kPooling, class Multiply>
__device__ __forceinline__ void multiply_boxes(const ConvBackwardWeight<typename Size::Element>& a,
                                               const WeightPlace<Size>& place,
                                               const WeightLayout<Size>& layout,
                                               const Multiply& multiply) {
  using T = typename Size::Element;
  int* const pixels = layout.pixels.data();
  T* const gradient = layout.gradient.data();
  T* const input = layout.input.data();
  const WeightStage<Size, kPooling> stage{a, place, layout};
  stage.tables(pixels, gradient);

  const auto boxes_before = [&](int part) {
    return static_cast<int>(static_cast<std::int64_t>(a.boxes) * part / a.parts);
  };
  const int first = boxes_before(place.part), end = boxes_before(place.part + 1);
  int buffer = 0;
#pragma unroll 1
  for (int box = first; box <= end; box++, buffer ^= 1) {
    // Load ahead.
    if (box < end) {
      stage.box(box, gradient + buffer * layout.gradient_size, input + buffer * layout.input_size);
    }
    cp_async_commit();
    if (box > first) {
      multiply(gradient + (buffer ^ 1) * layout.gradient_size,
               input + (buffer ^ 1) * layout.input_size, pixels);
    }
    cp_async_wait<0>();
    __syncthreads();  // this box is there, and the one before is read: its place is filled next
  }
}

}  // namespace imgfast::cuda
