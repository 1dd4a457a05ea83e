// upsample_conv_relu for the emulator: sizes are [N, C, H, W, K], strides those of the tensors in
// the order in which they are named, in elements; dtype is a DType.
#include "cuda/upsample_conv_relu.cuh"

#include <simt/export.h>

#include "cuda/conv_backward_input.cuh"
#include "cuda/conv_backward_weight.cuh"
#include "cuda/conv_forward.cuh"

namespace imgfast::cuda {

// What conv_relu_pool.cu and conv_relu_pool_backward.cu define, of the instances without a pool.

ConvForwardPlan plan_conv(const ConvForwardCall& call) {
  return choose_conv_forward(call, [&](ConvKernel kernel) {
    return with_element<ConvForwardPlan>(call.dtype, [&](auto element) {
      return with_instance<ConvForwardPlan, decltype(element), Pooling::kElement>(
          kernel, [&](auto instance) { return plan_instance<decltype(instance)>(call, kernel); });
    });
  });
}

cudaError_t launch_conv(const ConvForwardCall& call, const ConvForwardPlan& plan,
                        cudaStream_t stream) {
  return with_element<cudaError_t>(call.dtype, [&](auto element) {
    return with_instance<cudaError_t, decltype(element), Pooling::kElement>(
        plan.kernel,
        [&](auto instance) { return launch_instance<decltype(instance)>(call, plan, stream); });
  });
}

ConvBackwardInputPlan plan_conv_of_gradient(const ConvBackwardCall& call,
                                            const ConvReLUPoolParams& conv) {
  const ConvKernel kernel = choose_conv_backward_input(call);
  return with_element<ConvBackwardInputPlan>(call.dtype, [&](auto element) {
    return with_gradient_instance<ConvBackwardInputPlan, decltype(element), Pooling::kElement>(
        kernel, [&](auto instance) {
          return plan_gradient_instance<decltype(instance)>(call, kernel, conv);
        });
  });
}

cudaError_t launch_conv_of_gradient(const ConvBackwardCall& call, const ConvBackwardInputPlan& plan,
                                    cudaStream_t stream) {
  return with_element<cudaError_t>(call.dtype, [&](auto element) {
    return with_gradient_instance<cudaError_t, decltype(element), Pooling::kElement>(
        plan.kernel, [&](auto instance) {
          return launch_gradient_instance<decltype(instance)>(call, plan, stream);
        });
  });
}

ConvBackwardWeightPlan plan_weight_parts(const ConvBackwardCall& call) {
  const ConvWeightKernel kernel = choose_conv_backward_weight(call);
  ConvBackwardWeightPlan plan;
  if (kernel == ConvWeightKernel::kBias) {
    plan.kernel = kernel;
  } else {
    plan = with_element<ConvBackwardWeightPlan>(call.dtype, [&](auto element) {
      return with_weight_instance<ConvBackwardWeightPlan, decltype(element), Pooling::kElement>(
          kernel, [&](auto instance) {
            return plan_weight_instance<decltype(instance)>(call, kernel, kMostParallelBlocks);
          });
    });
  }
  return plan_bias(call, plan, kMostParallelBlocks);
}

cudaError_t launch_weight_parts(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan,
                                cudaStream_t stream) {
  if (plan.kernel == ConvWeightKernel::kBias) return launch_bias(call, plan, stream);
  return with_element<cudaError_t>(call.dtype, [&](auto element) {
    return with_weight_instance<cudaError_t, decltype(element), Pooling::kElement>(
        plan.kernel, [&](auto instance) {
          return launch_weight_products<decltype(instance)>(call, plan, stream);
        });
  });
}

}  // namespace imgfast::cuda

using namespace imgfast;
using namespace imgfast::cuda;

namespace {

UpsampleConvReLUParams params_of(const std::int64_t* sizes, int activation, bool tf32) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], static_cast<Activation>(activation),
          0,        tf32};
}

// told: whether kernels serve the call, the number of the convolution's, and bytes of workspace.
template <class Plan>
int tell(const Plan& plan, int kernel, std::int64_t* told) {
  told[0] = plan.served;
  told[1] = kernel;
  told[2] = plan.workspace_bytes;
  return cudaSuccess;
}

}  // namespace

// Strides of x, weight, y. Without a workspace it plans.
SIMT_EXPORT int upsample_conv_relu(const std::int64_t* sizes, const std::int64_t* strides,
                                   int dtype, int activation, bool tf32, std::int64_t* told,
                                   const void* x, const void* weight, const void* bias, void* y,
                                   void* workspace) {
  const UpsampleConvReLUParams params = params_of(sizes, activation, tf32);
  ConvForwardCall call{};
  call.params = &params.whole;
  call.dtype = static_cast<DType>(dtype);
  call.x = x;
  call.weight = weight;
  call.bias = bias;
  call.y = y;
  std::copy_n(strides, 4, call.x_stride);
  std::copy_n(strides + 4, 4, call.weight_stride);
  std::copy_n(strides + 8, 4, call.y_stride);
  call.workspace = workspace;
  const UpsampleForwardPlan plan = plan_upsample_conv_relu(params, call);
  if (workspace == nullptr) return tell(plan, static_cast<int>(plan.conv.kernel), told);
  return launch_upsample_conv_relu(params, call, plan, nullptr);
}

// Strides of grad_y, y, weight, grad_x. Without a workspace it plans.
SIMT_EXPORT int upsample_backward_input(const std::int64_t* sizes, const std::int64_t* strides,
                                        int dtype, int activation, bool tf32, std::int64_t* told,
                                        const void* grad_y, const void* y, const void* weight,
                                        void* grad_x, void* workspace) {
  const UpsampleConvReLUParams params = params_of(sizes, activation, tf32);
  ConvBackwardCall call{};
  call.params = &params.whole;
  call.dtype = static_cast<DType>(dtype);
  call.grad_y = grad_y;
  call.y = y;
  call.weight = weight;
  call.grad_x = grad_x;
  std::copy_n(strides, 4, call.grad_y_stride);
  std::copy_n(strides + 4, 4, call.y_stride);
  std::copy_n(strides + 8, 4, call.weight_stride);
  std::copy_n(strides + 12, 4, call.grad_x_stride);
  call.workspace = workspace;
  const UpsampleBackwardInputPlan plan = plan_upsample_backward_input(params, call);
  if (workspace == nullptr) return tell(plan, static_cast<int>(plan.conv.kernel), told);
  return launch_upsample_backward_input(call, plan, nullptr);
}

// Strides of grad_y, y, x, grad_weight. Without a workspace it plans.
SIMT_EXPORT int upsample_backward_weight(const std::int64_t* sizes, const std::int64_t* strides,
                                         int dtype, int activation, bool tf32, std::int64_t* told,
                                         const void* grad_y, const void* y, const void* x,
                                         void* grad_weight, void* grad_bias, void* workspace) {
  const UpsampleConvReLUParams params = params_of(sizes, activation, tf32);
  ConvBackwardCall call{};
  call.params = &params.whole;
  call.dtype = static_cast<DType>(dtype);
  call.grad_y = grad_y;
  call.y = y;
  call.x = x;
  call.grad_weight = grad_weight;
  call.grad_bias = grad_bias;
  std::copy_n(strides, 4, call.grad_y_stride);
  std::copy_n(strides + 4, 4, call.y_stride);
  std::copy_n(strides + 8, 4, call.x_stride);
  std::copy_n(strides + 12, 4, call.grad_weight_stride);
  call.workspace = workspace;
  const UpsampleBackwardWeightPlan plan = plan_upsample_backward_weight(params, call);
  if (workspace == nullptr) return tell(plan, static_cast<int>(plan.weight.kernel), told);
  return launch_upsample_backward_weight(params, call, plan, nullptr);
}
