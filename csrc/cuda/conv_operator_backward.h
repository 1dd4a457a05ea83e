// What the operators of conv_relu_pool's gradients on CUDA share.
#pragma once

#include <optional>
#include <tuple>

#include "cuda/conv_backward_call.cuh"
#include "cuda/conv_operator.h"

namespace imgfast::cuda {

// What a gradient is expanded from, of tensors that check_gradient has passed.
inline void set_gradient(ConvBackwardCall& call, const GradientReads& reads, const Tensor& grad_y,
                         const std::optional<Tensor>& y, const std::optional<Tensor>& codes) {
  call.grad_y = grad_y.const_data_ptr();
  copy_strides(grad_y, call.grad_y_stride);
  if (reads.y) {
    call.y = y->const_data_ptr();
    copy_strides(*y, call.y_stride);
  }
  if (reads.codes) {
    const void* const data = codes->const_data_ptr();
    STD_TORCH_CHECK(reinterpret_cast<std::uintptr_t>(data) % 8 == 0,  // 8 are read at a time
                    "conv_relu_pool: codes must start at a multiple of 8 bytes");
    call.codes = static_cast<const std::uint8_t*>(data);
  }
}

// The gradients of weight and bias that the call wants, in conv_relu_pool_backward.cu: kernels are
// compiled once.
void launch_weight_gradients(ConvBackwardCall& call, const Allocator& empty, cudaStream_t stream);

// The gradients of x, weight and bias by conv_relu_pool_epilogue.cuh and torch's of its
// convolution.
std::tuple<Tensor, Tensor, Tensor> backward_around_torch(ConvBackwardCall& call, const Tensor& x,
                                                         const Tensor& weight, bool need_x,
                                                         bool need_weight, bool need_bias,
                                                         const Allocator& empty,
                                                         cudaStream_t stream);

}  // namespace imgfast::cuda
