// A backward call of conv_relu_pool on a GPU, torch-free: what both passes, conv_backward_input.cuh
// and conv_backward_weight.cuh, are planned and launched with.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/conv_gradient.cuh"
#include "cuda/conv_plan.cuh"
#include "cuda/conv_sum.cuh"

namespace imgfast::cuda {

struct ConvBackwardCall {
  const ConvReLUPoolParams* params;
  DType dtype;  // of all tensors but the codes
  const void* grad_y;
  std::int64_t grad_y_stride[4];  // [N, K, PH, PW]
  const void* y;                  // null unless the derivative needs it
  std::int64_t y_stride[4];
  const std::uint8_t* codes;  // [N, PH, PW, K] or null
  const void* x;
  std::int64_t x_stride[4];  // [N, C, H, W]
  const void* weight;
  std::int64_t weight_stride[4];  // [K, C / groups, R, S]
  void* grad_x;                   // of the input's pass
  std::int64_t grad_x_stride[4];
  void* grad_weight;  // of the weight's pass, null: not wanted
  std::int64_t grad_weight_stride[4];
  void* grad_bias;  // [K], of the weight's pass, null: not wanted
  void* workspace;  // of the pass that is launched
};

struct ConvBackwardInputPhase {
  ConvForwardPlan plan;
  std::int64_t first_weight, first_x;  // elements from the beginning of weight, and of grad_x
  std::int64_t first_packed;           // and bytes from that of the workspace
};

struct ConvBackwardInputPlan {
  ConvKernel kernel = ConvKernel::kNone;
  Pooling windows = Pooling::kElement;
  ConvShape pooled{};
  std::vector<ConvBackwardInputPhase> phases;
  std::int64_t workspace_bytes = 0;
};

// kBias: the bias gradient alone is wanted.
enum class ConvWeightKernel { kNone, kBias, kSimt, kSimtFew, kMma };

struct ConvBackwardWeightPlan {
  ConvWeightKernel kernel = ConvWeightKernel::kNone;
  Pooling pooling = Pooling::kElement;
  ConvShape shape{};
  ConvTile tile{};
  std::int64_t boxes = 0, parts = 0, blocks = 0;
  std::size_t shared_bytes = 0;
  ConvSum sum{};                                       // of the weight gradient
  std::int64_t bias_parts = 0;                         // 0: no bias gradient
  std::int64_t weight_bytes = 0, workspace_bytes = 0;  // sums of the parts, those of the bias last
};

template <class T>
ConvGradient<T> gradient_of(const ConvBackwardCall& call, const ConvShape& s) {
  ConvGradient<T> gradient{};
  gradient.grad_y = static_cast<const T*>(call.grad_y);
  gradient.y = static_cast<const T*>(call.y);
  gradient.codes = call.codes;
  std::copy_n(call.grad_y_stride, 4, gradient.grad_y_stride);
  std::copy_n(call.y_stride, 4, gradient.y_stride);
  const auto vectors = [&](const void* data, const std::int64_t (&stride)[4]) {
    return conv_vectors(data, stride, s.K, 16 / sizeof(T), sizeof(T));
  };
  gradient.vector = vectors(call.grad_y, call.grad_y_stride) &&
                    (call.y == nullptr || vectors(call.y, call.y_stride));
  return gradient;
}

}  // namespace imgfast::cuda
