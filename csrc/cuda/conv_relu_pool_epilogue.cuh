// conv_relu_pool around a convolution that torch has computed: bias, activation and pool of its
// output in one pass, and the way back. The output goes to memory once and is read once, and is not
// kept for backward; its gradient is expanded from what the pool left of it, in one pass, too.
//
// This serves where cuDNN's convolution is so much faster than this package's that the map's way
// through memory does not matter. The maps are channels_last, in which cuDNN is fastest.
#pragma once

#include "cuda/conv_backward_call.cuh"
#include "cuda/conv_epilogue.cuh"

namespace imgfast::cuda {

// A block takes rows, which are outputs or what expand_gradient takes at once, by filters.
template <class T>
struct EpilogueTile {
  static constexpr int kThreads = 256, kRows = 32, kPieces = kThreads / kRows;
  static constexpr int kBlocks = 3;  // that a multiprocessor has registers for
  static constexpr int kPiece = 16 / sizeof(T), kFilters = kPieces * kPiece;
};

// A thread's row and first filter. Neighbouring lanes take neighbouring filters, or rows.
template <class T>
struct EpiloguePlace {
  using Tile = EpilogueTile<T>;
  int row0, k0;    // of the block
  int row, piece;  // within it

  __device__ EpiloguePlace(const ConvShape& s, bool filters_together) {
    const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
    const int filter_tiles = (s.K + Tile::kFilters - 1) / Tile::kFilters;
    k0 = block % filter_tiles * Tile::kFilters;
    row0 = block / filter_tiles * Tile::kRows;
    row = filters_together ? thread / Tile::kPieces : thread % Tile::kRows;
    piece = filters_together ? thread % Tile::kPieces : thread / Tile::kRows;
  }
  __device__ __forceinline__ int filter() const { return k0 + piece * Tile::kPiece; }
};

// --- forward -------------------------------------------------------------------------------------

template <class T>
struct ConvEpilogueForward {
  const T* sums;  // [N, P, Q, K]
  const T* bias;  // [K] or null
  T* y;           // [N, K, PH, PW]
  std::int64_t y_stride[4];
  std::uint8_t* codes;  // [N, PH, PW, K] or null
  bool vector_sums, vector_y;
  ConvShape shape;  // of all groups together
  int outputs;      // N x PH x PW
};

template <class T, Pooling kPooling>
struct EpilogueWindows {
  static constexpr int kPiece = EpilogueTile<T>::kPiece;
  const ConvEpilogueForward<T>& a;
  int n, k, valid;  // of kPiece filters from k on, those that exist
  float bias[kPiece];
  Window windows[kPiece];

  __device__ __forceinline__ EpilogueWindows(const ConvEpilogueForward<T>& a, int n, int ph, int pw,
                                             int k)
      : a(a), n(n), k(k), valid(min(kPiece, a.shape.K - k)) {
    const ConvShape& s = a.shape;
#pragma unroll
    for (int j = 0; j < kPiece; j++) {
      bias[j] = a.bias != nullptr && j < valid ? widen(load_readonly<T>(a.bias + k + j)) : 0.0f;
    }
    if constexpr (kPooling == Pooling::kElement) {
      float terms[kPiece];
      widen_terms(sums(ph, pw), terms);
#pragma unroll
      for (int j = 0; j < kPiece; j++) windows[j] = {terms[j], 0};
    } else if constexpr (kPooling == Pooling::kQuad) {
      Vec<T, kPiece> quad[4];
#pragma unroll
      for (int i = 0; i < 4; i++) quad[i] = sums(2 * ph + i / 2, 2 * pw + i % 2);
#pragma unroll
      for (int i = 0; i < 4; i++) take(quad[i], i);
      if (s.pool == Pool::kAvg) scale(0.25f);
    } else {
      for (int i = 0; i < s.pool_h; i++) {
        const int p = ph * s.pool_stride_h - s.pool_padding_h + i * s.pool_dilation_h;
        if (p < 0 || p >= s.P) continue;
        for (int l = 0; l < s.pool_w; l++) {
          const int q = pw * s.pool_stride_w - s.pool_padding_w + l * s.pool_dilation_w;
          if (q >= 0 && q < s.Q) take(sums(p, q), i * s.pool_w + l);
        }
      }
      if (s.pool == Pool::kAvg) scale(average_scale(s, ph, pw));
    }
    finish_windows(s, bias, windows);
  }

 private:
  __device__ __forceinline__ Vec<T, kPiece> sums(int p, int q) const {
    const ConvShape& s = a.shape;
    const T* const from = a.sums + ((static_cast<std::int64_t>(n) * s.P + p) * s.Q + q) * s.K + k;
    if (a.vector_sums) return load_readonly<Vec<T, kPiece>>(from);
    Vec<T, kPiece> values{};
#pragma unroll
    for (int j = 0; j < kPiece; j++) {
      if (j < valid) values[j] = load_readonly<T>(from + j);
    }
    return values;
  }

  __device__ __forceinline__ void widen_terms(const Vec<T, kPiece>& of, float (&terms)[kPiece]) {
#pragma unroll
    for (int j = 0; j < kPiece; j++) terms[j] = widen(of[j]);
    make_terms(a.shape, bias, terms);
  }

  __device__ __forceinline__ void take(const Vec<T, kPiece>& of, int position) {
    float terms[kPiece];
    widen_terms(of, terms);
    take_terms(a.shape.pool, terms, position, windows);
  }

  __device__ __forceinline__ void scale(float by) {
#pragma unroll
    for (int j = 0; j < kPiece; j++) windows[j].value *= by;
  }
};

template <class T, Pooling kPooling>
__global__ void __launch_bounds__(EpilogueTile<T>::kThreads, EpilogueTile<T>::kBlocks)
    conv_epilogue_forward_kernel(const __grid_constant__ ConvEpilogueForward<T> a) {
  using Tile = EpilogueTile<T>;
  constexpr int kPiece = Tile::kPiece;
  __shared__ T turned[Tile::kFilters][Tile::kRows + 1];
  const ConvShape& s = a.shape;
  const EpiloguePlace<T> place(s, true);
  const bool filters_together = a.y_stride[1] == 1;
  const auto y_of = [&](int output, int k) {
    const BoxIndex at(output, s.PH, s.PW);
    return a.y + at.image * a.y_stride[0] + k * a.y_stride[1] + at.row * a.y_stride[2] +
           at.col * a.y_stride[3];
  };

  const int output = place.row0 + place.row, k = place.filter();
  if (output < a.outputs && k < s.K) {
    const BoxIndex at(output, s.PH, s.PW);
    const EpilogueWindows<T, kPooling> pooled(a, at.image, at.row, at.col, k);
    Vec<T, kPiece> value;
    Vec<std::uint8_t, kPiece> code;
#pragma unroll
    for (int j = 0; j < kPiece; j++) {
      value[j] = narrow<T>(pooled.windows[j].value);
      code[j] = static_cast<std::uint8_t>(pooled.windows[j].code);
    }
    if (a.codes != nullptr) {
      std::uint8_t* const codes = a.codes + static_cast<std::int64_t>(output) * s.K + k;
      if (s.K % kPiece == 0) {
        store(codes, code);
      } else {
#pragma unroll
        for (int j = 0; j < kPiece; j++) {
          if (j < pooled.valid) store(codes + j, code[j]);
        }
      }
    }
    if (a.vector_y) {
      store(y_of(output, k), value);
    } else {
#pragma unroll
      for (int j = 0; j < kPiece; j++) {
        if (!filters_together) {
          turned[place.piece * kPiece + j][place.row] = value[j];
        } else if (j < pooled.valid) {
          store(y_of(output, k) + j, value[j]);
        }
      }
    }
  }
  if (filters_together) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kFilters * Tile::kRows;
       i += Tile::kThreads) {
    const int filter = i / Tile::kRows, row = i % Tile::kRows;
    if (place.row0 + row < a.outputs && place.k0 + filter < s.K) {
      store(y_of(place.row0 + row, place.k0 + filter), turned[filter][row]);
    }
  }
}

// --- backward ------------------------------------------------------------------------------------

template <class T>
struct ConvEpilogueBackward {
  ConvGradient<T> gradient;
  T* grad_sums;  // [N, P, Q, K]
  bool vector_sums;
  ConvShape shape;  // of all groups together
  int rows, cols;   // of an image, of windows or positions
};

template <class T, Pooling kPooling>
__global__ void __launch_bounds__(EpilogueTile<T>::kThreads, EpilogueTile<T>::kBlocks)
    conv_epilogue_backward_kernel(const __grid_constant__ ConvEpilogueBackward<T> a) {
  constexpr int kPiece = EpilogueTile<T>::kPiece;
  const ConvShape& s = a.shape;
  const EpiloguePlace<T> place(s, a.gradient.grad_y_stride[1] == 1);
  const BoxIndex at(place.row0 + place.row, a.rows, a.cols);
  const int k = place.filter(), valid = min(kPiece, s.K - k);
  if (at.image >= s.N || valid <= 0) return;
  expand_gradient<kPooling, kPiece>(
      a.gradient, s, 0, at.image, at.row, at.col, k,
      [&](int p, int q, const Vec<T, kPiece>& values) {
        if (p >= s.P || q >= s.Q) return;
        T* const to =
            a.grad_sums + ((static_cast<std::int64_t>(at.image) * s.P + p) * s.Q + q) * s.K + k;
        if (a.vector_sums) {
          store(to, values);
        } else {
#pragma unroll
          for (int j = 0; j < kPiece; j++) {
            if (j < valid) store(to + j, values[j]);
          }
        }
      });
}

// --- launch --------------------------------------------------------------------------------------

// The shape of all groups together. False where 32 bits do not count positions or blocks.
inline bool plan_conv_epilogue(const ConvReLUPoolParams& p, ConvShape& s) {
  if (!make_shape(p, s)) return false;
  s.K *= s.groups;
  s.groups = 1;
  constexpr std::int64_t kFewestFilters = EpilogueTile<float>::kFilters;
  constexpr std::int64_t kRows = EpilogueTile<float>::kRows;
  const std::int64_t positions = p.N * (p.P + 1) * (p.Q + 1);
  return positions + kRows <= kMostBlocks &&
         conv_ceil_div(positions, kRows) * conv_ceil_div(p.K, kFewestFilters) <= kMostBlocks;
}

template <class T>
dim3 epilogue_blocks(std::int64_t rows, const ConvShape& s) {
  const std::int64_t blocks =
      conv_ceil_div(rows, EpilogueTile<T>::kRows) * conv_ceil_div(s.K, EpilogueTile<T>::kFilters);
  return dim3(static_cast<unsigned>(blocks));
}

template <class T>
bool epilogue_vectors(const void* sums, const ConvShape& s) {
  return s.K % EpilogueTile<T>::kPiece == 0 && reinterpret_cast<std::uintptr_t>(sums) % 16 == 0;
}

// Of a call with the convolution's output for its x. Does not wait for the device.
inline cudaError_t launch_conv_epilogue(const ConvForwardCall& call, const ConvShape& s,
                                        cudaStream_t stream) {
  const Pooling pooling = pooling_of(*call.params);
  return with_element_and_pooling<cudaError_t>(call.dtype, pooling, [&](auto element, auto kind) {
    using T = decltype(element);
    ConvEpilogueForward<T> a{};
    a.sums = static_cast<const T*>(call.x);
    a.bias = static_cast<const T*>(call.bias);
    a.y = static_cast<T*>(call.y);
    std::copy_n(call.y_stride, 4, a.y_stride);
    a.codes = call.codes;
    a.vector_sums = epilogue_vectors<T>(call.x, s);
    a.vector_y = conv_vectors(call.y, call.y_stride, s.K, EpilogueTile<T>::kPiece, sizeof(T));
    a.shape = s;
    const std::int64_t outputs = static_cast<std::int64_t>(s.N) * s.PH * s.PW;
    a.outputs = static_cast<int>(outputs);
    return launch(&conv_epilogue_forward_kernel<T, decltype(kind)::value>,
                  epilogue_blocks<T>(outputs, s), dim3(EpilogueTile<T>::kThreads), 0, stream, a);
  });
}

// Of a call with the gradient at the convolution's output for its grad_x.
inline cudaError_t launch_conv_epilogue_backward(const ConvBackwardCall& call, const ConvShape& s,
                                                 cudaStream_t stream) {
  const Pooling pooling = pooling_of(*call.params);
  return with_element_and_pooling<cudaError_t>(call.dtype, pooling, [&](auto element, auto kind) {
    using T = decltype(element);
    constexpr Pooling kPooling = decltype(kind)::value;
    ConvEpilogueBackward<T> a{};
    a.gradient = gradient_of<T>(call, s);
    a.grad_sums = static_cast<T*>(call.grad_x);
    a.vector_sums = epilogue_vectors<T>(call.grad_x, s);
    a.shape = s;
    constexpr int kUnit = kPooling == Pooling::kQuad ? 2 : 1;
    a.rows = (s.P + kUnit - 1) / kUnit;
    a.cols = (s.Q + kUnit - 1) / kUnit;
    const std::int64_t rows = static_cast<std::int64_t>(s.N) * a.rows * a.cols;
    return launch(&conv_epilogue_backward_kernel<T, kPooling>, epilogue_blocks<T>(rows, s),
                  dim3(EpilogueTile<T>::kThreads), 0, stream, a);
  });
}

}  // namespace imgfast::cuda
