// What the kernels of a convolution take for its input: x, or the gradient d at another
// convolution's output, of which the gradient at that one's x is a convolution. See
// conv_backward_input.cuh.
#pragma once

#include "cuda/conv_gradient.cuh"

namespace imgfast::cuda {

// x does not exist: d is expanded while it is staged, kWindows being its pool's kind.
template <class T, Pooling kWindows>
struct ConvOfGradient : ConvForward<T> {
  ConvGradient<T> gradient;
  ConvShape pooled;  // of the forward call, whose pool the gradient comes through
};

template <class Args>
constexpr bool kReadsGradient = false;
template <class T, Pooling kWindows>
constexpr bool kReadsGradient<ConvOfGradient<T, kWindows>> = true;

// Warps that a multiprocessor holds of a kernel with a warp's tile of sums in registers: to gather
// windows takes some more of these.
template <class Args>
constexpr int kWarpsHeld = 16;
template <class T>
constexpr int kWarpsHeld<ConvOfGradient<T, Pooling::kWindow>> = 12;

// Channels [c0, c0 + kPieces * kPiece) of every pixel of a tile.
template <int kPieces, int kPiece, int kThreads, class T, Pooling kWindows, class Offset>
__device__ __forceinline__ void stage_gradient_tile(const ConvOfGradient<T, kWindows>& a,
                                                    const BlockPlace& place, int c0, T* to,
                                                    const Offset& offset) {
  const GradientBox box{place.n0,      place.h0,       place.w0,
                        a.tile.images, a.tile.in_rows, a.tile.in_cols};
  stage_gradient<kWindows, kPieces, kPiece, kThreads>(a.gradient, a.pooled, place.group, box, c0,
                                                      to, offset);
}

}  // namespace imgfast::cuda
