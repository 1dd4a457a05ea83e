// The gradient d at conv_relu_pool's convolution output, [N, P, Q, K], which is never stored: it is
// expanded from the pooled gradient, its codes and y while a tile of it is loaded into shared
// memory. What codes and y mean is said in conv_relu_pool.h and csrc/cpu/conv_gradient-inl.h.
#pragma once

#include "cuda/conv_tile.cuh"
#include "cuda/number.cuh"

namespace imgfast::cuda {

template <class T>
struct ConvGradient {
  const T* grad_y;
  std::int64_t grad_y_stride[4];  // [N, groups * K, PH, PW]
  const T* y;                     // null unless the derivative needs it
  std::int64_t y_stride[4];
  const std::uint8_t* codes;  // [N, PH, PW, groups * K] or null
  bool vector;                // channels of grad_y and y lie together, whole pieces are aligned
};

// Positions of d; those outside of the map have no gradient.
struct GradientBox {
  int n0, p0, q0, images, rows, cols;
};

// What is staged of kPiece neighbouring filters of one pooled output.
template <class T, int kPiece>
struct PooledGradient {
  float value[kPiece] = {};  // through the activation, except an average's
  int code[kPiece] = {};

  PooledGradient() = default;

  // Of filters [k, k + kPiece) of a group, of which valid exist.
  __device__ __forceinline__ PooledGradient(const ConvGradient<T>& g, const ConvShape& s, int group,
                                            int n, int ph, int pw, int k, int valid) {
    const int filter = group * s.K + k;
    const T* const from = g.grad_y + n * g.grad_y_stride[0] + filter * g.grad_y_stride[1] +
                          ph * g.grad_y_stride[2] + pw * g.grad_y_stride[3];
    load_values(value, from, g.grad_y_stride[1], valid, g.vector);
    float y[kPiece] = {};
    if (g.y != nullptr) {
      load_values(y,
                  g.y + n * g.y_stride[0] + filter * g.y_stride[1] + ph * g.y_stride[2] +
                      pw * g.y_stride[3],
                  g.y_stride[1], valid, g.vector);
    }
    if (g.codes != nullptr) {
      const std::int64_t place = (static_cast<std::int64_t>(n) * s.PH + ph) * s.PW + pw;
      const std::uint8_t* const codes = g.codes + place * s.groups * s.K + filter;
      if (s.K % kPiece == 0) {
        const auto all = load_readonly<Vec<std::uint8_t, kPiece>>(codes);
#pragma unroll
        for (int j = 0; j < kPiece; j++) code[j] = all[j];
      } else {
#pragma unroll
        for (int j = 0; j < kPiece; j++) {
          if (j < valid) code[j] = load_readonly<std::uint8_t>(codes + j);
        }
      }
    }
    if (s.pool != Pool::kAvg) differentiate(s.activation, g.codes != nullptr, y);
  }

 private:
  __device__ static __forceinline__ void load_values(float (&to)[kPiece], const T* from,
                                                     std::int64_t stride, int valid, bool vector) {
    if (vector) {
      const auto all = load_readonly<Vec<T, kPiece>>(from);
#pragma unroll
      for (int j = 0; j < kPiece; j++) to[j] = widen(all[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kPiece; j++) {
        if (j < valid) to[j] = widen(load_readonly<T>(from + j * stride));
      }
    }
  }

  // Through the activation, and codes without what they say of it.
  __device__ __forceinline__ void differentiate(Activation activation, bool has_codes,
                                                const float (&y)[kPiece]) {
    if (activation == Activation::kSigmoid) {
#pragma unroll
      for (int j = 0; j < kPiece; j++) value[j] *= y[j] * (1.0f - y[j]);
    } else if (activation == Activation::kTanh) {
#pragma unroll
      for (int j = 0; j < kPiece; j++) value[j] *= 1.0f - y[j] * y[j];
    } else if (activation != Activation::kNone) {
      const bool leaky = activation == Activation::kLeakyReLU;
#pragma unroll
      for (int j = 0; j < kPiece; j++) {
        const bool blocked = has_codes ? (code[j] & kBlocked) != 0 : y[j] <= 0.0f;
        const float slope = leaky ? value[j] * static_cast<float>(kLeakyReLUSlope) : 0.0f;
        value[j] = blocked ? slope : value[j];
      }
    }
#pragma unroll
    for (int j = 0; j < kPiece; j++) code[j] &= ~kBlocked;
  }
};

// Adds to sum what position `position` of a window gets of its gradient; scale: of an average.
template <class T, int kPiece>
__device__ __forceinline__ void add_shares(const ConvShape& s, const PooledGradient<T, kPiece>& g,
                                           int position, float scale, float (&sum)[kPiece]) {
  if (s.pool == Pool::kMax) {
#pragma unroll
    for (int j = 0; j < kPiece; j++) sum[j] += g.code[j] == position ? g.value[j] : 0.0f;
    return;
  }
  const bool linear = s.activation == Activation::kNone;
  const float slope =
      s.activation == Activation::kLeakyReLU ? static_cast<float>(kLeakyReLUSlope) : 0.0f;
#pragma unroll
  for (int j = 0; j < kPiece; j++) {
    const float share = g.value[j] * scale;
    const bool passes = linear || (g.code[j] >> position & 1) != 0;
    sum[j] += passes ? share : (slope == 0.0f ? 0.0f : share * slope);
  }
}

// The windows along one axis that a position belongs to, [first, end), and its places in them.
struct WindowsOfPosition {
  int position, first, end, stride, dilation;

  __device__ __forceinline__ WindowsOfPosition(int at, int padding, int window, int stride_,
                                               int dilation_, int windows)
      : position(at + padding), stride(stride_), dilation(dilation_) {
    const int before = position - (window - 1) * dilation;
    first = before <= 0 ? 0 : (before + stride - 1) / stride;
    end = min(windows, position / stride + 1);
  }

  // -1: it lies between two places of a dilated window.
  __device__ __forceinline__ int place(int i) const {
    const int offset = position - i * stride;
    if (dilation == 1) return offset;
    return offset % dilation == 0 ? offset / dilation : -1;
  }
};

// Expands what filters [k, k + kPiece) of a group get of image n: of quads, at the four positions
// of window (row, col), else at the position (row, col). put(p, q, values) takes them; zeros
// outside of the map and beyond the last filter.
template <Pooling kPooling, int kPiece, class T, class Put>
__device__ __forceinline__ void expand_gradient(const ConvGradient<T>& g, const ConvShape& s,
                                                int group, int n, int row, int col, int k,
                                                const Put& put) {
  const int valid = min(kPiece, s.K - k);
  const bool there = n < s.N && row >= 0 && col >= 0 && valid > 0;
  Vec<T, kPiece> values{};
  if constexpr (kPooling == Pooling::kElement) {
    if (there && row < s.P && col < s.Q) {
      const PooledGradient<T, kPiece> pooled(g, s, group, n, row, col, k, valid);
#pragma unroll
      for (int j = 0; j < kPiece; j++) values[j] = narrow<T>(pooled.value[j]);
    }
    put(row, col, values);
  } else if constexpr (kPooling == Pooling::kQuad) {
    PooledGradient<T, kPiece> pooled;
    if (there && row < s.PH && col < s.PW) {
      pooled = PooledGradient<T, kPiece>(g, s, group, n, row, col, k, valid);
    }
#pragma unroll
    for (int position = 0; position < 4; position++) {
      float share[kPiece] = {};
      add_shares(s, pooled, position, 0.25f, share);
#pragma unroll
      for (int j = 0; j < kPiece; j++) values[j] = narrow<T>(share[j]);
      put(2 * row + position / 2, 2 * col + position % 2, values);
    }
  } else {
    float sum[kPiece] = {};
    if (there && row < s.P && col < s.Q) {
      const WindowsOfPosition of_row(row, s.pool_padding_h, s.pool_h, s.pool_stride_h,
                                     s.pool_dilation_h, s.PH);
      const WindowsOfPosition of_col(col, s.pool_padding_w, s.pool_w, s.pool_stride_w,
                                     s.pool_dilation_w, s.PW);
      for (int ph = of_row.first; ph < of_row.end; ph++) {
        const int a = of_row.place(ph);
        for (int pw = of_col.first; a >= 0 && pw < of_col.end; pw++) {
          const int b = of_col.place(pw);
          if (b < 0) continue;
          const PooledGradient<T, kPiece> pooled(g, s, group, n, ph, pw, k, valid);
          const float scale = s.pool == Pool::kAvg ? average_scale(s, ph, pw) : 1.0f;
          add_shares(s, pooled, a * s.pool_w + b, scale, sum);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kPiece; j++) values[j] = narrow<T>(sum[j]);
    put(row, col, values);
  }
}

// Expands filters [k0, k0 + kPieces * kPiece) of a group's d under the box: piece `piece` of its
// position i, in row-major order, goes to `to + offset(i, piece)`.
template <Pooling kPooling, int kPieces, int kPiece, int kThreads, class T, class Offset>
__device__ __forceinline__ void stage_gradient(const ConvGradient<T>& g, const ConvShape& s,
                                               int group, const GradientBox& box, int k0, T* to,
                                               const Offset& offset) {
  const bool pieces_fastest = g.grad_y_stride[1] == 1;
  // Of quads, the windows under the box are walked; else the positions.
  const bool quad = kPooling == Pooling::kQuad;
  const int row0 = quad ? box.p0 >> 1 : box.p0, col0 = quad ? box.q0 >> 1 : box.q0;
  const int rows = quad ? ((box.p0 + box.rows - 1) >> 1) - row0 + 1 : box.rows;
  const int cols = quad ? ((box.q0 + box.cols - 1) >> 1) - col0 + 1 : box.cols;
  const int items = box.images * rows * cols;
  for (int item = static_cast<int>(threadIdx.x); item < items * kPieces; item += kThreads) {
    const int i = pieces_fastest ? item / kPieces : item % items;
    const int piece = pieces_fastest ? item % kPieces : item / items;
    const BoxIndex at(i, rows, cols);
    expand_gradient<kPooling, kPiece>(
        g, s, group, box.n0 + at.image, row0 + at.row, col0 + at.col, k0 + piece * kPiece,
        [&](int p, int q, const Vec<T, kPiece>& values) {
          const int r = p - box.p0, c = q - box.q0;
          if (quad && (r < 0 || r >= box.rows || c < 0 || c >= box.cols)) return;
          store(to + offset((at.image * box.rows + r) * box.cols + c, piece), values);
        });
  }
}

}  // namespace imgfast::cuda
