// The sums of taps that make upsample_conv_relu's filters of weight's, and the way back: which taps
// is said in upsample_conv_relu.h.
#pragma once

#include "cuda/conv_backward_call.cuh"
#include "upsample_conv_relu.h"

namespace imgfast::cuda {

// --- forward: filters of weight ------------------------------------------------------------------

// Weight [K, C, 3, 3] as filters in the order in which a kernel reads them, [rows][taps][cols] or
// [taps][rows][cols] each: those of the four parities, one after the other, or that of x's
// gradient. Either way 9 taps become 16.
struct TapFolding {
  static constexpr int kCols = 32, kRows = 8, kThreads = kCols * kRows;
  std::int64_t rows, cols, valid_rows, valid_cols;  // the others are zeros
  std::int64_t from_row, from_col, from_r, from_s;  // strides of weight,
  std::int64_t to_filter, to_row, to_tap;           // and of what it becomes
  bool adjoint;

  TapFolding() = default;

  // For a convolution of such filters, packed as of weight itself.
  TapFolding(const ConvForwardPlan& plan, bool adjoint) : adjoint(adjoint) {
    const ConvPacking& packing = plan.packing;
    const bool filters_last = plan.filters_last;
    const int row = filters_last ? 3 : 1, r = filters_last ? 1 : 2;
    rows = packing.size[row], cols = packing.size[4];
    valid_rows = filters_last ? plan.shape.C : plan.shape.K;
    valid_cols = filters_last ? plan.shape.K : plan.shape.C;
    from_row = packing.stride[row], from_col = packing.stride[4];
    from_r = packing.stride[r], from_s = packing.stride[r + 1];
    const std::int64_t taps = adjoint ? 16 : 4;
    to_filter = rows * cols * taps;
    to_row = filters_last ? cols : cols * taps;
    to_tap = filters_last ? rows * cols : cols;
  }

  __host__ __device__ std::int64_t count() const { return 16 * rows * cols; }
  __host__ __device__ int tiles_of_cols() const {
    return static_cast<int>((cols + kCols - 1) / kCols);
  }
  std::int64_t blocks() const { return (rows + kRows - 1) / kRows * tiles_of_cols(); }
};

// Sums are float32, and rounded to T as factors of products must be. In two bytes that is a second
// rounding. Beside float64, it adds to y, and to x's gradient, about as much error as their own
// rounding does, 1.4 to 1.5 times that together: see test_error_of_rounded_filters. To keep what is
// lost would take twice the products, and those are what the folding saves.
template <class T, bool kAdjoint>
__global__ void __launch_bounds__(TapFolding::kThreads)
    upsample_fold_taps_kernel(const T* weight, T* to, const __grid_constant__ TapFolding a) {
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int tiles = a.tiles_of_cols();
  const int row = block / tiles * TapFolding::kRows + thread / TapFolding::kCols;
  const int col = block % tiles * TapFolding::kCols + thread % TapFolding::kCols;
  if (row >= a.rows || col >= a.cols) return;

  float taps[9] = {};
  if (row < a.valid_rows && col < a.valid_cols) {
    const T* const from = weight + row * a.from_row + col * a.from_col;
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
      taps[tap] = widen(load_readonly<T>(from + tap / 3 * a.from_r + tap % 3 * a.from_s));
    }
  }
  to += row * a.to_row + col;
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const float sum = kAdjoint ? sum_taps(taps, taps_of_adjoint(i / 4), taps_of_adjoint(i % 4))
                               : sum_taps(taps, taps_of_parity(i / 8, i / 2 % 2),
                                          taps_of_parity(i / 4 % 2, i % 2));
    store(to + (kAdjoint ? i * a.to_tap : i / 4 * a.to_filter + i % 4 * a.to_tap), narrow<T>(sum));
  }
}

template <class T>
cudaError_t launch_fold_taps(const TapFolding& fold, const void* weight, void* to,
                             cudaStream_t stream) {
  const auto kernel =
      fold.adjoint ? &upsample_fold_taps_kernel<T, true> : &upsample_fold_taps_kernel<T, false>;
  return launch(kernel, dim3(static_cast<unsigned>(fold.blocks())), dim3(TapFolding::kThreads), 0,
                stream, static_cast<const T*>(weight), static_cast<T*>(to), fold);
}

// --- backward: the weight gradient of the filters' -----------------------------------------------

// Parts of the four parities' weight gradients, [parities][parts] of what ConvSum says, become the
// gradient at weight. A block takes all taps of a few channels.
struct TapUnfolding {
  static constexpr int kChannels = 8, kTaps = 4, kElements = kChannels * kTaps, kSlices = 8;
  static constexpr int kThreads = kElements * kSlices;
};

template <class T>
__global__ void __launch_bounds__(TapUnfolding::kThreads)
    upsample_unfold_taps_kernel(const __grid_constant__ ConvSum a, T* to) {
  constexpr int kElements = TapUnfolding::kElements, kSlices = TapUnfolding::kSlices;
  constexpr int kChannels = TapUnfolding::kChannels, kTaps = TapUnfolding::kTaps;
  __shared__ float sums[kSlices][kParities][kElements];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kElements, slice = thread / kElements;
  const std::int64_t count = a.count(), first = static_cast<std::int64_t>(blockIdx.x) * kElements;

  // Load: a slice of the parts of every parity.
  float sum[kParities] = {};
  if (first + lane < count) {
#pragma unroll 2
    for (std::int64_t part = slice; part < a.parts; part += kSlices) {
#pragma unroll
      for (int i = 0; i < kParities; i++) {
        sum[i] += load_readonly<float>(a.partial + (i * a.parts + part) * count + first + lane);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kParities; i++) sums[slice][i][lane] = sum[i];
  __syncthreads();

  // Write: a thread one tap of one channel, neighbours what lies together.
  if (thread >= 9 * kChannels) return;
  const bool channels_together = a.stride[1] == 1;
  const int channel = channels_together ? thread % kChannels : thread / 9;
  const int tap = channels_together ? thread / kChannels : thread % 9;
  const std::int64_t channels = a.columns() / kTaps, at = first / kTaps + channel;
  const std::int64_t filter = at / channels, c = at % channels;
  if (filter >= a.filters || c >= a.C) return;
  float all = 0.0f;
#pragma unroll
  for (int i = 0; i < kParities; i++) {
    const int folded = 2 * tap_of_parity(i / 2, tap / 3) + tap_of_parity(i % 2, tap % 3);
    const int element = channel / a.piece * a.piece * kTaps + folded * a.piece + channel % a.piece;
#pragma unroll
    for (int j = 0; j < kSlices; j++) all += sums[j][i][element];
  }
  store(to + filter * a.stride[0] + c * a.stride[1] + tap / 3 * a.stride[2] + tap % 3 * a.stride[3],
        narrow<T>(all));
}

template <class T>
cudaError_t launch_unfold_taps(const ConvSum& sum, void* to, cudaStream_t stream) {
  const std::int64_t blocks = conv_ceil_div(sum.count(), TapUnfolding::kElements);
  return launch(&upsample_unfold_taps_kernel<T>, dim3(static_cast<unsigned>(blocks)),
                dim3(TapUnfolding::kThreads), 0, stream, sum, static_cast<T*>(to));
}

}  // namespace imgfast::cuda
