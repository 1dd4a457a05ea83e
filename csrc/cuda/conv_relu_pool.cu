// conv_relu_pool on CUDA: validate, allocate, register. Which kernel runs is decided in
// conv_forward.cuh.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/conv_forward.cuh"
#include "cuda/conv_operator.h"
#include "tensor_dtype.h"

namespace imgfast::cuda {
namespace {

std::tuple<Tensor, Tensor> conv_relu_pool(const Tensor& x, const Tensor& weight,
                                          const std::optional<Tensor>& bias, const Ints& geometry,
                                          bool save_codes) {
  const ConvReLUPoolParams p = make_cuda_params(x, weight, geometry);
  if (save_codes) check_codes(p);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Allocator empty{device};
  Tensor y = empty({p.N, p.K, p.PH, p.PW}, x.scalar_type(), answers_channels_last(p, x, weight));
  Tensor codes = empty(save_codes ? Ints{p.N, p.PH, p.PW, p.K} : Ints{0}, ScalarType::Byte);
  std::optional<Tensor> dense_bias;
  if (bias) {
    check_bias(p, x, *bias);
    dense_bias = torch::stable::contiguous(*bias);
  }

  ConvForwardCall call{};
  call.params = &p;
  call.dtype = dtype_of(x, "conv_relu_pool", "x");
  call.x = x.const_data_ptr();
  call.weight = weight.const_data_ptr();
  call.bias = dense_bias ? dense_bias->const_data_ptr() : nullptr;
  call.y = y.mutable_data_ptr();
  call.codes = save_codes ? static_cast<std::uint8_t*>(codes.mutable_data_ptr()) : nullptr;
  copy_strides(x, call.x_stride);
  copy_strides(weight, call.weight_stride);
  copy_strides(y, call.y_stride);
  const ConvForwardPlan plan = plan_conv_forward(call);
  check_served(plan.kernel != ConvKernel::kNone);
  const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
  call.workspace = workspace.mutable_data_ptr();
  STD_CUDA_CHECK(launch_conv_forward(call, plan, current_stream(device)));
  return {y, codes};
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) {
  m.impl("conv_relu_pool", TORCH_BOX(&conv_relu_pool));
}

}  // namespace
}  // namespace imgfast::cuda
