// What the operators of conv_relu_pool on CUDA share: checks, and torch's memory and stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <optional>

#include "conv_relu_pool_call.h"
#include "cuda/conv_plan.cuh"
#include "empty.h"
#include "tensor_dtype.h"

namespace imgfast::cuda {

// New tensors on the device of a call.
struct Allocator {
  int32_t device;

  Tensor operator()(const Ints& sizes, ScalarType dtype, bool channels_last = false) const {
    return empty_on(aoti_torch_device_type_cuda(), device, {sizes.data(), sizes.size()}, dtype,
                    channels_last);
  }
};

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void copy_strides(const Tensor& t, std::int64_t (&strides)[4]) {
  for (int d = 0; d < 4; d++) strides[d] = t.stride(d);
}

// x, weight and geometry as every operator takes them.
inline ConvReLUPoolParams make_cuda_params(const Tensor& x, const Tensor& weight,
                                           const Ints& geometry) {
  const ConvReLUPoolParams p = make_params(x, weight, geometry);
  STD_TORCH_CHECK(p.winograd == 0, "conv_relu_pool: Winograd's algorithm runs on the CPU only");
  return p;
}

// The tensors of a forward call, which points at them.
struct ForwardTensors {
  Tensor y, codes;             // codes: without an element if they are not to be saved
  std::optional<Tensor> bias;  // dense

  ForwardTensors(const ConvReLUPoolParams& p, const Tensor& x, const Tensor& weight,
                 const std::optional<Tensor>& any_bias, bool save_codes, const Allocator& empty,
                 ConvForwardCall& call)
      : y(empty({p.N, p.K, p.PH, p.PW}, x.scalar_type(), answers_channels_last(p, x, weight))),
        codes(empty(save_codes ? Ints{p.N, p.PH, p.PW, p.K} : Ints{0}, ScalarType::Byte)) {
    if (save_codes) check_codes(p);
    if (any_bias) {
      check_bias(p, x, *any_bias);
      bias = torch::stable::contiguous(*any_bias);
    }
    call.params = &p;
    call.dtype = dtype_of(x, "conv_relu_pool", "x");
    call.bias = bias ? bias->const_data_ptr() : nullptr;
    call.y = y.mutable_data_ptr();
    copy_strides(y, call.y_stride);
    call.codes = save_codes ? static_cast<std::uint8_t*>(codes.mutable_data_ptr()) : nullptr;
  }
};

// The call by torch's convolution and conv_relu_pool_epilogue.cuh, and whether that serves it.
bool serves_epilogue(const ConvReLUPoolParams& p);
void forward_around_torch(ConvForwardCall& call, const Tensor& x, const Tensor& weight,
                          const Allocator& empty, cudaStream_t stream);

inline void check_served(bool served) {
  STD_TORCH_CHECK(served,
                  "conv_relu_pool: no CUDA kernel for this dtype or for a filter and pool this "
                  "large; algorithm='stock' runs it");
}

}  // namespace imgfast::cuda
