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
    if (s.pool == Pool::kAvg) return;
#pragma unroll
    for (int j = 0; j < kPiece; j++) {
      const bool blocked = g.codes != nullptr ? (code[j] & kBlocked) != 0 : y[j] <= 0.0f;
      value[j] = differentiate(s.activation, value[j], blocked, y[j]);
      code[j] &= ~kBlocked;
    }
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

  __device__ static __forceinline__ float differentiate(Activation activation, float g,
                                                        bool blocked, float y) {
    switch (activation) {
      case Activation::kReLU:
        return blocked ? 0.0f : g;
      case Activation::kLeakyReLU:
        return blocked ? g * static_cast<float>(kLeakyReLUSlope) : g;
      case Activation::kSigmoid:
        return g * (y * (1.0f - y));
      case Activation::kTanh:
        return g * (1.0f - y * y);
      default:
        return g;
    }
  }
};

// What position `position` of a window gets of its gradient.
__device__ __forceinline__ float share_of(const ConvShape& s, float g, int code, int position,
                                          float scale) {
  if (s.pool == Pool::kNone) return g;
  if (s.pool == Pool::kMax) return code == position ? g : 0.0f;
  const float share = g * scale;
  if (s.activation == Activation::kNone || (code >> position & 1) != 0) return share;
  return s.activation == Activation::kLeakyReLU ? share * static_cast<float>(kLeakyReLUSlope)
                                                : 0.0f;
}

// One over what an average over the window (ph, pw) divides by.
__device__ __forceinline__ float window_scale(const ConvShape& s, int ph, int pw) {
  if (s.pool != Pool::kAvg) return 1.0f;
  const std::int64_t h = avg_extent(ph * s.pool_stride_h - s.pool_padding_h, s.pool_h, s.P,
                                    s.pool_padding_h, s.count_include_pad);
  const std::int64_t w = avg_extent(pw * s.pool_stride_w - s.pool_padding_w, s.pool_w, s.Q,
                                    s.pool_padding_w, s.count_include_pad);
  return 1.0f / static_cast<float>(h * w);
}

// Expands filters [k0, k0 + kPieces * kPiece) of a group's d under the box: piece `piece` of its
// position i, in row-major order, goes to `to + offset(i, piece)`; zeros outside of the map and
// beyond the last filter.
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
    const int n = box.n0 + at.image, row = row0 + at.row, col = col0 + at.col;
    const int k = k0 + piece * kPiece, valid = min(kPiece, s.K - k);
    Vec<T, kPiece> values{};
    if constexpr (kPooling == Pooling::kElement) {
      if (n < s.N && row >= 0 && row < s.P && col >= 0 && col < s.Q && valid > 0) {
        const PooledGradient<T, kPiece> pooled(g, s, group, n, row, col, k, valid);
#pragma unroll
        for (int j = 0; j < kPiece; j++) values[j] = narrow<T>(pooled.value[j]);
      }
      store(to + offset(i, piece), values);
    } else if constexpr (kPooling == Pooling::kQuad) {
      const bool inside = n < s.N && row >= 0 && row < s.PH && col >= 0 && col < s.PW && valid > 0;
      float value[kPiece] = {};
      int code[kPiece] = {};
      if (inside) {
        const PooledGradient<T, kPiece> pooled(g, s, group, n, row, col, k, valid);
#pragma unroll
        for (int j = 0; j < kPiece; j++) value[j] = pooled.value[j], code[j] = pooled.code[j];
      }
#pragma unroll
      for (int position = 0; position < 4; position++) {
        const int r = 2 * row + position / 2 - box.p0, c = 2 * col + position % 2 - box.q0;
        if (r < 0 || r >= box.rows || c < 0 || c >= box.cols) continue;
#pragma unroll
        for (int j = 0; j < kPiece; j++) {
          values[j] = narrow<T>(inside ? share_of(s, value[j], code[j], position, 0.25f) : 0.0f);
        }
        store(to + offset((at.image * box.rows + r) * box.cols + c, piece), values);
      }
    } else {
      float sum[kPiece] = {};
      if (n < s.N && row >= 0 && row < s.P && col >= 0 && col < s.Q && valid > 0) {
        for (int a = 0; a < s.pool_h; a++) {
          const int top = row + s.pool_padding_h - a * s.pool_dilation_h,
                    ph = top / s.pool_stride_h;
          if (top < 0 || top % s.pool_stride_h != 0 || ph >= s.PH) continue;
          for (int b = 0; b < s.pool_w; b++) {
            const int left = col + s.pool_padding_w - b * s.pool_dilation_w;
            const int pw = left / s.pool_stride_w;
            if (left < 0 || left % s.pool_stride_w != 0 || pw >= s.PW) continue;
            const PooledGradient<T, kPiece> pooled(g, s, group, n, ph, pw, k, valid);
            const float scale = window_scale(s, ph, pw);
#pragma unroll
            for (int j = 0; j < kPiece; j++) {
              sum[j] += share_of(s, pooled.value[j], pooled.code[j], a * s.pool_w + b, scale);
            }
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kPiece; j++) values[j] = narrow<T>(sum[j]);
      store(to + offset(i, piece), values);
    }
  }
}

}  // namespace imgfast::cuda
