// conv_relu_pool's gradients on CUDA: validate, allocate, register. Which kernels run is decided in
// conv_backward_input.cuh and conv_backward_weight.cuh.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/conv_backward_input.cuh"
#include "cuda/conv_backward_weight.cuh"
#include "cuda/conv_launch.cuh"
#include "cuda/conv_operator_backward.h"
#include "cuda/conv_served.h"
#include "tensor_dtype.h"

namespace imgfast::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> conv_relu_pool_backward(const Tensor& grad_y, const Tensor& x,
                                                           const Tensor& weight,
                                                           const std::optional<Tensor>& y,
                                                           const std::optional<Tensor>& codes,
                                                           const Ints& geometry, bool need_x,
                                                           bool need_weight, bool need_bias) {
  const ConvReLUPoolParams p = make_cuda_params(x, weight, geometry);
  const GradientReads reads = check_gradient(p, x, grad_y, y, codes);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Allocator empty{device};
  ConvBackwardCall call{};
  call.params = &p;
  call.dtype = dtype_of(x, "conv_relu_pool", "x");
  set_gradient(call, reads, grad_y, y, codes);
  const cudaStream_t stream = current_stream(device);
  if (p.epilogue & kEpilogueBackward) {
    return backward_around_torch(call, x, weight, need_x, need_weight, need_bias, empty, stream);
  }
  auto [grad_x, grad_weight, grad_bias] =
      empty_gradients(p, x, weight, need_x, need_weight, need_bias, empty);
  call.x = x.const_data_ptr();
  copy_strides(x, call.x_stride);
  call.weight = weight.const_data_ptr();
  copy_strides(weight, call.weight_stride);
  if (need_x) {
    call.grad_x = grad_x.mutable_data_ptr();
    copy_strides(grad_x, call.grad_x_stride);
    const ConvBackwardInputPlan plan = plan_conv_backward_input(call);
    check_served(plan.kernel != ConvKernel::kNone);
    const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
    call.workspace = workspace.mutable_data_ptr();
    STD_CUDA_CHECK(launch_conv_backward_input(call, plan, stream));
  }
  if (need_weight || need_bias) {
    if (need_weight) {
      call.grad_weight = grad_weight.mutable_data_ptr();
      copy_strides(grad_weight, call.grad_weight_stride);
    }
    if (need_bias) call.grad_bias = grad_bias.mutable_data_ptr();
    launch_weight_gradients(call, empty, stream);
  }
  return {grad_x, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) {
  m.impl("conv_relu_pool_backward", TORCH_BOX(&conv_relu_pool_backward));
}

}  // namespace

void launch_weight_gradients(ConvBackwardCall& call, const Allocator& empty, cudaStream_t stream) {
  const ConvBackwardWeightPlan plan = plan_conv_backward_weight(call);
  check_served(plan.kernel != ConvWeightKernel::kNone);
  const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
  call.workspace = workspace.mutable_data_ptr();
  STD_CUDA_CHECK(launch_conv_backward_weight(call, plan, stream));
}

ConvBackwardInputPlan plan_conv_of_gradient(const ConvBackwardCall& call,
                                            const ConvReLUPoolParams& conv) {
  const ConvKernel kernel = choose_conv_backward_input(call);
  return with_gradient_instance<ConvBackwardInputPlan>(
      kernel, call.dtype, pooling_of(*call.params), [&](auto instance) {
        return plan_gradient_instance<decltype(instance)>(call, kernel, conv);
      });
}

cudaError_t launch_conv_of_gradient(const ConvBackwardCall& call, const ConvBackwardInputPlan& plan,
                                    cudaStream_t stream) {
  return launch_conv_backward_input(call, plan, stream);
}

ConvBackwardWeightPlan plan_weight_parts(const ConvBackwardCall& call) {
  return plan_conv_backward_weight(call);
}

cudaError_t launch_weight_parts(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan,
                                cudaStream_t stream) {
  if (plan.kernel == ConvWeightKernel::kBias) return launch_bias(call, plan, stream);
  return with_weight_instance<cudaError_t>(
      plan.kernel, call.dtype, plan.pooling, [&](auto instance) {
        return launch_weight_products<decltype(instance)>(call, plan, stream);
      });
}

bool serves_conv_relu_pool(const ConvReLUPoolParams& params, DType dtype, bool gradients) {
  if (params.epilogue) return serves_epilogue(params);
  ConvForwardCall forward{};
  forward.params = &params;
  forward.dtype = dtype;
  if (plan_conv(forward).kernel == ConvKernel::kNone) return false;
  if (!gradients) return true;
  char wanted = 0;
  ConvBackwardCall backward{};
  backward.params = &params;
  backward.dtype = dtype;
  backward.grad_weight = backward.grad_bias = &wanted;
  return plan_conv_backward_input(backward).kernel != ConvKernel::kNone &&
         plan_conv_backward_weight(backward).kernel != ConvWeightKernel::kNone;
}

}  // namespace imgfast::cuda
