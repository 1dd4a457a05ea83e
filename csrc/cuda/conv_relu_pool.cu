// conv_relu_pool on CUDA: validate, allocate, register. Which kernel runs is decided in
// conv_forward.cuh.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "conv_relu_pool_call.h"
#include "cuda/conv_forward.cuh"
#include "empty.h"
#include "tensor_dtype.h"

namespace imgfast::cuda {
namespace {

std::tuple<Tensor, Tensor> conv_relu_pool(const Tensor& x, const Tensor& weight,
                                          const std::optional<Tensor>& bias, const Ints& geometry,
                                          bool save_codes) {
  const ConvReLUPoolParams p = make_params(x, weight, geometry);
  STD_TORCH_CHECK(p.winograd == 0, "conv_relu_pool: Winograd's algorithm runs on the CPU only");
  if (save_codes) check_codes(p);
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto empty = [&](const Ints& sizes, ScalarType dtype, bool channels_last = false) {
    return empty_on(aoti_torch_device_type_cuda(), device, {sizes.data(), sizes.size()}, dtype,
                    channels_last);
  };
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
  for (int d = 0; d < 4; d++) {
    call.x_stride[d] = x.stride(d);
    call.weight_stride[d] = weight.stride(d);
    call.y_stride[d] = y.stride(d);
  }
  const ConvForwardPlan plan = plan_conv_forward(call);
  STD_TORCH_CHECK(plan.kernel != ConvKernel::kNone,
                  "conv_relu_pool: no CUDA kernel for this dtype or for a filter and pool this "
                  "large; algorithm='stock' runs it");
  const Tensor workspace = empty({plan.workspace_bytes}, ScalarType::Byte);
  call.workspace = workspace.mutable_data_ptr();
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  STD_CUDA_CHECK(launch_conv_forward(call, plan, static_cast<cudaStream_t>(stream)));
  return {y, codes};
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) {
  m.impl("conv_relu_pool", TORCH_BOX(&conv_relu_pool));
}

}  // namespace
}  // namespace imgfast::cuda
