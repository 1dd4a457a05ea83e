// conv_relu_pool on CUDA: validate, allocate, register. Which kernel runs is decided in
// conv_forward.cuh.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/conv_forward.cuh"
#include "cuda/conv_launch.cuh"
#include "cuda/conv_operator.h"

namespace imgfast::cuda {
namespace {

std::tuple<Tensor, Tensor> conv_relu_pool(const Tensor& x, const Tensor& weight,
                                          const std::optional<Tensor>& bias, const Ints& geometry,
                                          bool save_codes) {
  const ConvReLUPoolParams p = make_cuda_params(x, weight, geometry);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Allocator empty{device};
  ConvForwardCall call{};
  const ForwardTensors made(p, x, weight, bias, save_codes, empty, call);
  const cudaStream_t stream = current_stream(device);
  if (p.epilogue & kEpilogueForward) {
    forward_around_torch(call, x, weight, empty, stream);
    return {made.y, made.codes};
  }
  call.x = x.const_data_ptr();
  call.weight = weight.const_data_ptr();
  copy_strides(x, call.x_stride);
  copy_strides(weight, call.weight_stride);
  const ConvForwardPlan plan = plan_conv_forward(call);
  check_served(plan.kernel != ConvKernel::kNone);
  const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
  call.workspace = workspace.mutable_data_ptr();
  STD_CUDA_CHECK(launch_conv_forward(call, plan, stream));
  return {made.y, made.codes};
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) {
  m.impl("conv_relu_pool", TORCH_BOX(&conv_relu_pool));
}

}  // namespace

ConvForwardPlan plan_conv(const ConvForwardCall& call) { return plan_conv_forward(call); }

cudaError_t launch_conv(const ConvForwardCall& call, const ConvForwardPlan& plan,
                        cudaStream_t stream) {
  return launch_conv_forward(call, plan, stream);
}

}  // namespace imgfast::cuda
