// upsample_conv_relu on CUDA: validate, allocate, register. What runs is decided in
// upsample_conv_relu.cuh.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/conv_operator_backward.h"
#include "cuda/conv_served.h"
#include "cuda/upsample_conv_relu.cuh"
#include "upsample_conv_relu_call.h"

namespace imgfast::cuda {
namespace {

UpsampleConvReLUParams make_cuda_upsample_params(const Tensor& x, const Tensor& weight,
                                                 int64_t activation, int64_t winograd,
                                                 bool allow_tf32) {
  STD_TORCH_CHECK(winograd == 0, "upsample_conv_relu: Winograd's algorithm runs on the CPU only");
  return make_upsample_params(x, weight, activation, winograd, allow_tf32);
}

void check_upsample_served(bool served) {
  STD_TORCH_CHECK(served,
                  "upsample_conv_relu: no CUDA kernel for this dtype or for a map this large; "
                  "algorithm='stock' runs it");
}

Tensor upsample_conv_relu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          int64_t activation, int64_t winograd, bool allow_tf32) {
  const UpsampleConvReLUParams p =
      make_cuda_upsample_params(x, weight, activation, winograd, allow_tf32);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Allocator empty{device};
  ConvForwardCall call{};
  const ForwardTensors made(p.whole, x, weight, bias, false, empty, call);
  call.x = x.const_data_ptr();
  call.weight = weight.const_data_ptr();
  copy_strides(x, call.x_stride);
  copy_strides(weight, call.weight_stride);
  const UpsampleForwardPlan plan = plan_upsample_conv_relu(p, call);
  check_upsample_served(plan.served);
  const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
  call.workspace = workspace.mutable_data_ptr();
  STD_CUDA_CHECK(launch_upsample_conv_relu(p, call, plan, current_stream(device)));
  return made.y;
}

std::tuple<Tensor, Tensor, Tensor> upsample_conv_relu_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& y,
    int64_t activation, int64_t winograd, bool allow_tf32, bool need_x, bool need_weight,
    bool need_bias) {
  const UpsampleConvReLUParams p =
      make_cuda_upsample_params(x, weight, activation, winograd, allow_tf32);
  const GradientReads reads = check_gradient(p.whole, x, grad_y, y, std::nullopt);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Allocator empty{device};
  ConvBackwardCall call{};
  call.params = &p.whole;
  call.dtype = dtype_of(x, "upsample_conv_relu", "x");
  set_gradient(call, reads, grad_y, y, std::nullopt);
  call.x = x.const_data_ptr();
  copy_strides(x, call.x_stride);
  call.weight = weight.const_data_ptr();
  copy_strides(weight, call.weight_stride);

  ConvReLUPoolParams sizes = p.whole;  // of the gradients, which are those of x and weight
  sizes.H = x.size(2), sizes.W = x.size(3);
  auto [grad_x, grad_weight, grad_bias] =
      empty_gradients(sizes, x, weight, need_x, need_weight, need_bias, empty);
  const cudaStream_t stream = current_stream(device);
  if (need_x) {
    call.grad_x = grad_x.mutable_data_ptr();
    copy_strides(grad_x, call.grad_x_stride);
    const UpsampleBackwardInputPlan plan = plan_upsample_backward_input(p, call);
    check_upsample_served(plan.served);
    const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
    call.workspace = workspace.mutable_data_ptr();
    STD_CUDA_CHECK(launch_upsample_backward_input(call, plan, stream));
  }
  if (need_weight || need_bias) {
    if (need_weight) {
      call.grad_weight = grad_weight.mutable_data_ptr();
      copy_strides(grad_weight, call.grad_weight_stride);
    }
    if (need_bias) call.grad_bias = grad_bias.mutable_data_ptr();
    const UpsampleBackwardWeightPlan plan = plan_upsample_backward_weight(p, call);
    check_upsample_served(plan.served);
    const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
    call.workspace = workspace.mutable_data_ptr();
    STD_CUDA_CHECK(launch_upsample_backward_weight(p, call, plan, stream));
  }
  return {grad_x, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) {
  m.impl("upsample_conv_relu", TORCH_BOX(&upsample_conv_relu));
  m.impl("upsample_conv_relu_backward", TORCH_BOX(&upsample_conv_relu_backward));
}

}  // namespace

bool serves_upsample_conv_relu(const UpsampleConvReLUParams& params, DType dtype, bool gradients) {
  ConvForwardCall forward{};
  forward.params = &params.whole;
  forward.dtype = dtype;
  if (!plan_upsample_conv_relu(params, forward).served) return false;
  if (!gradients) return true;
  char wanted = 0;
  ConvBackwardCall backward{};
  backward.params = &params.whole;
  backward.dtype = dtype;
  backward.grad_weight = backward.grad_bias = &wanted;
  return plan_upsample_backward_input(params, backward).served &&
         plan_upsample_backward_weight(params, backward).served;
}

}  // namespace imgfast::cuda
