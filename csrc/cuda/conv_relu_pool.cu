// conv_relu_pool on CUDA: validate, allocate, register. Which kernel runs is decided in
// conv_forward.cuh, conv_backward_input.cuh and conv_backward_weight.cuh.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "conv_relu_pool_call.h"
#include "cuda/conv_backward_input.cuh"
#include "cuda/conv_backward_weight.cuh"
#include "cuda/conv_forward.cuh"
#include "empty.h"
#include "tensor_dtype.h"

namespace imgfast::cuda {
namespace {

// New tensors on the device of a call.
struct Allocator {
  int32_t device;

  Tensor operator()(const Ints& sizes, ScalarType dtype, bool channels_last = false) const {
    return empty_on(aoti_torch_device_type_cuda(), device, {sizes.data(), sizes.size()}, dtype,
                    channels_last);
  }
};

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

void copy_strides(const Tensor& t, std::int64_t (&strides)[4]) {
  for (int d = 0; d < 4; d++) strides[d] = t.stride(d);
}

// They are read 8 at a time.
const std::uint8_t* codes_of(const Tensor& codes) {
  const void* data = codes.const_data_ptr();
  STD_TORCH_CHECK(reinterpret_cast<std::uintptr_t>(data) % 8 == 0,
                  "conv_relu_pool: codes must start at a multiple of 8 bytes");
  return static_cast<const std::uint8_t*>(data);
}

// x, weight and geometry as every operator takes them.
ConvReLUPoolParams make_cuda_params(const Tensor& x, const Tensor& weight, const Ints& geometry) {
  const ConvReLUPoolParams p = make_params(x, weight, geometry);
  STD_TORCH_CHECK(p.winograd == 0, "conv_relu_pool: Winograd's algorithm runs on the CPU only");
  return p;
}

void check_served(bool served) {
  STD_TORCH_CHECK(served,
                  "conv_relu_pool: no CUDA kernel for this dtype or for a filter and pool this "
                  "large; algorithm='stock' runs it");
}

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
  auto [grad_x, grad_weight, grad_bias] =
      empty_gradients(p, x, weight, need_x, need_weight, need_bias, empty);
  const auto fill_in = [&](auto& call) {
    call.params = &p;
    call.dtype = dtype_of(x, "conv_relu_pool", "x");
    call.grad_y = grad_y.const_data_ptr();
    copy_strides(grad_y, call.grad_y_stride);
    if (reads.y) {
      call.y = y->const_data_ptr();
      copy_strides(*y, call.y_stride);
    }
    if (reads.codes) call.codes = codes_of(*codes);
  };
  const cudaStream_t stream = current_stream(device);
  if (need_x) {
    ConvBackwardInputCall call{};
    fill_in(call);
    call.weight = weight.const_data_ptr();
    call.grad_x = grad_x.mutable_data_ptr();
    copy_strides(weight, call.weight_stride);
    copy_strides(grad_x, call.grad_x_stride);
    const ConvBackwardInputPlan plan = plan_conv_backward_input(call);
    check_served(plan.kernel != ConvKernel::kNone);
    const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
    call.workspace = workspace.mutable_data_ptr();
    STD_CUDA_CHECK(launch_conv_backward_input(call, plan, stream));
  }
  if (need_weight || need_bias) {
    ConvBackwardWeightCall call{};
    fill_in(call);
    call.x = x.const_data_ptr();
    copy_strides(x, call.x_stride);
    if (need_weight) {
      call.grad_weight = grad_weight.mutable_data_ptr();
      copy_strides(grad_weight, call.grad_weight_stride);
    }
    if (need_bias) call.grad_bias = grad_bias.mutable_data_ptr();
    const ConvBackwardWeightPlan plan = plan_conv_backward_weight(call);
    check_served(plan.kernel != ConvWeightKernel::kNone);
    const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
    call.workspace = workspace.mutable_data_ptr();
    STD_CUDA_CHECK(launch_conv_backward_weight(call, plan, stream));
  }
  return {grad_x, grad_weight, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) {
  m.impl("conv_relu_pool", TORCH_BOX(&conv_relu_pool));
  m.impl("conv_relu_pool_backward", TORCH_BOX(&conv_relu_pool_backward));
}

}  // namespace
}  // namespace imgfast::cuda
