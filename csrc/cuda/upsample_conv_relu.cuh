// upsample_conv_relu on a GPU, torch-free: y = activation(conv2d(upsample_nearest(x, 2), weight,
// bias, padding=1)) by conv_relu_pool's kernels on maps of x's size, as upsample_conv_relu.h tells.
//
// Forward: weight is folded into the filters of the four parities, straight into the order that the
// kernel reads, and four convolutions write the rows and columns of theirs, bias and activation
// included. Backward: what the activation lets through is found while tiles of grad_y and y are
// loaded. x's gradient is one convolution of stride 2; weight's is summed in parts by every parity,
// and one kernel adds parts and parities up. Neither the upsampled map nor a gradient of it, nor
// that at the convolution's output, is ever in memory.
//
//   UpsampleForwardPlan plan = plan_upsample_conv_relu(params, call);  // served: by kernels here
//   call.workspace = plan.workspace_bytes bytes of the device
//   launch_upsample_conv_relu(params, call, plan, stream)
//
// and the same of the two backward passes. A call's tensors are the operator's: y and grad_y are
// whole. Nothing waits for the device.
#pragma once

#include "cuda/conv_launch.cuh"
#include "cuda/upsample_taps.cuh"

namespace imgfast::cuda {

// What is a plan for the four parities alike is for the first, but for its padding.
inline void set_parity(const UpsampleConvReLUParams& params, int i, ConvShape& s) {
  s.padding_h = static_cast<int>(params.parity[i].padding_h);
  s.padding_w = static_cast<int>(params.parity[i].padding_w);
}

// The rows and columns of one parity of [N, K, 2 H, 2 W].
template <class Data>
void take_parity(int i, DType dtype, Data*& data, std::int64_t (&stride)[4]) {
  using Byte = std::conditional_t<std::is_const_v<Data>, const char, char>;
  const std::int64_t first = i / 2 * stride[2] + i % 2 * stride[3];
  if (data != nullptr) data = static_cast<Byte*>(data) + first * bytes_of(dtype);
  stride[2] *= 2;
  stride[3] *= 2;
}

inline bool can_fold(const TapFolding& fold) { return fold.blocks() <= kMostBlocks; }

// --- forward -------------------------------------------------------------------------------------

struct UpsampleForwardPlan {
  bool served = false;
  ConvForwardPlan conv;  // of the first parity
  TapFolding fold;
  std::int64_t workspace_bytes = 0;
};

inline ConvForwardCall parity_of(const UpsampleConvReLUParams& params, ConvForwardCall call,
                                 int i) {
  call.params = &params.parity[i];
  take_parity(i, call.dtype, call.y, call.y_stride);
  return call;
}

inline UpsampleForwardPlan plan_upsample_conv_relu(const UpsampleConvReLUParams& params,
                                                   const ConvForwardCall& call) {
  UpsampleForwardPlan plan;
  plan.conv = plan_conv(parity_of(params, call, 0));
  if (plan.conv.kernel == ConvKernel::kNone) return plan;
  plan.fold = TapFolding(plan.conv, false);
  plan.conv.workspace_bytes = 0;  // weights come as the kernel reads them
  plan.workspace_bytes = plan.fold.count() * bytes_of(call.dtype);
  plan.served = can_fold(plan.fold);
  return plan;
}

inline cudaError_t launch_upsample_conv_relu(const UpsampleConvReLUParams& params,
                                             const ConvForwardCall& call,
                                             const UpsampleForwardPlan& plan, cudaStream_t stream) {
  const cudaError_t error = with_element<cudaError_t>(call.dtype, [&](auto element) {
    return launch_fold_taps<decltype(element)>(plan.fold, call.weight, call.workspace, stream);
  });
  if (error != cudaSuccess) return error;
  ConvForwardPlan conv = plan.conv;
  for (int i = 0; i < kParities; i++) {
    ConvForwardCall part = parity_of(params, call, i);
    part.weight =
        static_cast<const char*>(call.workspace) + i * plan.fold.to_filter * bytes_of(call.dtype);
    set_parity(params, i, conv.shape);
    const cudaError_t failed = launch_conv(part, conv, stream);
    if (failed != cudaSuccess) return failed;
  }
  return cudaSuccess;
}

// --- backward: x ---------------------------------------------------------------------------------

struct UpsampleBackwardInputPlan {
  bool served = false;
  ConvBackwardInputPlan conv;
  TapFolding fold;
  std::int64_t workspace_bytes = 0;
};

// call.params are params.whole.
inline UpsampleBackwardInputPlan plan_upsample_backward_input(const UpsampleConvReLUParams& params,
                                                              const ConvBackwardCall& call) {
  UpsampleBackwardInputPlan plan;
  plan.conv = plan_conv_of_gradient(call, params.adjoint(params.whole.N));
  if (plan.conv.phases.empty()) return plan;
  ConvForwardPlan& conv = plan.conv.phases[0].plan;
  plan.fold = TapFolding(conv, true);
  conv.packing = {};  // weights come as the kernel reads them
  plan.workspace_bytes = plan.fold.count() * bytes_of(call.dtype);
  plan.served = can_fold(plan.fold);
  return plan;
}

inline cudaError_t launch_upsample_backward_input(const ConvBackwardCall& call,
                                                  const UpsampleBackwardInputPlan& plan,
                                                  cudaStream_t stream) {
  const cudaError_t error = with_element<cudaError_t>(call.dtype, [&](auto element) {
    return launch_fold_taps<decltype(element)>(plan.fold, call.weight, call.workspace, stream);
  });
  return error == cudaSuccess ? launch_conv_of_gradient(call, plan.conv, stream) : error;
}

// --- backward: weight and bias -------------------------------------------------------------------

struct UpsampleBackwardWeightPlan {
  bool served = false;
  ConvBackwardWeightPlan weight;  // of the first parity
  ConvBackwardWeightPlan bias;    // of the whole map
  std::int64_t workspace_bytes = 0;
};

inline ConvBackwardCall parity_of(const UpsampleConvReLUParams& params, ConvBackwardCall call,
                                  int i) {
  call.params = &params.parity[i];
  take_parity(i, call.dtype, call.grad_y, call.grad_y_stride);
  take_parity(i, call.dtype, call.y, call.y_stride);
  call.grad_bias = nullptr;
  return call;
}

// Of the gradients that call wants; its params are params.whole.
inline UpsampleBackwardWeightPlan plan_upsample_backward_weight(
    const UpsampleConvReLUParams& params, const ConvBackwardCall& call) {
  UpsampleBackwardWeightPlan plan;
  if (call.grad_weight != nullptr) {
    plan.weight = plan_weight_parts(parity_of(params, call, 0));
    if (plan.weight.kernel == ConvWeightKernel::kNone) return plan;
    plan.workspace_bytes = kParities * plan.weight.workspace_bytes;
  }
  if (call.grad_bias != nullptr) {
    ConvBackwardCall whole = call;
    whole.grad_weight = nullptr;
    plan.bias = plan_weight_parts(whole);
    if (plan.bias.kernel == ConvWeightKernel::kNone) return plan;
    plan.workspace_bytes += plan.bias.workspace_bytes;
  }
  plan.served = true;
  return plan;
}

inline cudaError_t launch_upsample_backward_weight(const UpsampleConvReLUParams& params,
                                                   const ConvBackwardCall& call,
                                                   const UpsampleBackwardWeightPlan& plan,
                                                   cudaStream_t stream) {
  char* workspace = static_cast<char*>(call.workspace);
  if (call.grad_weight != nullptr) {
    ConvSum sum = plan.weight.sum;
    sum.partial = reinterpret_cast<const float*>(workspace);
    ConvBackwardWeightPlan weight = plan.weight;
    for (int i = 0; i < kParities; i++) {
      ConvBackwardCall part = parity_of(params, call, i);
      part.workspace = workspace;
      set_parity(params, i, weight.shape);
      const cudaError_t error = launch_weight_parts(part, weight, stream);
      if (error != cudaSuccess) return error;
      workspace += plan.weight.workspace_bytes;
    }
    const cudaError_t error = with_element<cudaError_t>(call.dtype, [&](auto element) {
      return launch_unfold_taps<decltype(element)>(sum, call.grad_weight, stream);
    });
    if (error != cudaSuccess) return error;
  }
  if (call.grad_bias == nullptr) return cudaSuccess;
  ConvBackwardCall whole = call;
  whole.grad_weight = nullptr;
  whole.workspace = workspace;
  return launch_weight_parts(whole, plan.bias, stream);
}

}  // namespace imgfast::cuda
