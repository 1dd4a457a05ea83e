// conv_relu_pool around torch's convolution on CUDA: validate, allocate, register.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/conv_operator_backward.h"
#include "cuda/conv_relu_pool_epilogue.cuh"

namespace imgfast::cuda {
namespace {

ConvShape epilogue_shape(const ConvReLUPoolParams& p) {
  ConvShape s{};
  STD_TORCH_CHECK(plan_conv_epilogue(p, s),
                  "conv_relu_pool: too many positions for the epilogue's kernels; "
                  "algorithm='stock' runs it");
  return s;
}

void check_sums(const ConvReLUPoolParams& p, const Tensor& x, const Tensor& sums) {
  const int64_t sizes[4] = {p.N, p.K, p.P, p.Q};
  const int64_t strides[4] = {p.P * p.Q * p.K, 1, p.Q * p.K, p.K};
  bool right =
      sums.device() == x.device() && sums.scalar_type() == x.scalar_type() && sums.dim() == 4;
  for (int d = 0; right && d < 4; d++) {
    right = sums.size(d) == sizes[d] && (sizes[d] == 1 || sums.stride(d) == strides[d]);
  }
  STD_TORCH_CHECK(right, "conv_relu_pool: sums must be the convolution's output [", p.N, ", ", p.K,
                  ", ", p.P, ", ", p.Q, "] in channels_last, of the dtype of x");
}

std::tuple<Tensor, Tensor> conv_relu_pool_epilogue(const Tensor& sums, const Tensor& x,
                                                   const Tensor& weight,
                                                   const std::optional<Tensor>& bias,
                                                   const Ints& geometry, bool save_codes) {
  const ConvReLUPoolParams p = make_cuda_params(x, weight, geometry);
  const ConvShape shape = epilogue_shape(p);
  check_sums(p, x, sums);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Allocator empty{device};
  ConvForwardCall call{};
  const ForwardTensors made(p, x, weight, bias, save_codes, empty, call);
  call.x = sums.const_data_ptr();
  STD_CUDA_CHECK(launch_conv_epilogue(call, shape, current_stream(device)));
  return {made.y, made.codes};
}

std::tuple<Tensor, Tensor> conv_relu_pool_epilogue_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& y,
    const std::optional<Tensor>& codes, const Ints& geometry, bool need_sums, bool need_bias) {
  const ConvReLUPoolParams p = make_cuda_params(x, weight, geometry);
  const ConvShape shape = epilogue_shape(p);
  const GradientReads reads = check_gradient(p, x, grad_y, y, codes);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Allocator empty{device};
  Tensor grad_sums =
      empty(need_sums ? Ints{p.N, p.K, p.P, p.Q} : Ints{0}, x.scalar_type(), need_sums);
  Tensor grad_bias = empty({need_bias ? p.K : 0}, x.scalar_type());

  ConvBackwardCall call{};
  call.params = &p;
  call.dtype = dtype_of(x, "conv_relu_pool", "x");
  set_gradient(call, reads, grad_y, y, codes);
  const cudaStream_t stream = current_stream(device);
  if (need_sums) {
    call.grad_x = grad_sums.mutable_data_ptr();
    STD_CUDA_CHECK(launch_conv_epilogue_backward(call, shape, stream));
  }
  if (need_bias) {
    call.grad_bias = grad_bias.mutable_data_ptr();
    launch_weight_gradients(call, empty, stream);
  }
  return {grad_sums, grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) {
  m.impl("conv_relu_pool_epilogue", TORCH_BOX(&conv_relu_pool_epilogue));
  m.impl("conv_relu_pool_epilogue_backward", TORCH_BOX(&conv_relu_pool_epilogue_backward));
}

}  // namespace
}  // namespace imgfast::cuda
