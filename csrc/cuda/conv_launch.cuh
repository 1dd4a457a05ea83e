// conv_relu_pool's convolutions for other operators: what conv_forward.cuh, conv_backward_input.cuh
// and conv_backward_weight.cuh plan and launch, of calls without a pool. Their kernels take minutes
// to compile, so these functions are where they are compiled anyway, in conv_relu_pool.cu and
// conv_relu_pool_backward.cu, and whoever includes this header compiles none of them.
#pragma once

#include "cuda/conv_backward_call.cuh"

namespace imgfast::cuda {

ConvForwardPlan plan_conv(const ConvForwardCall& call);
cudaError_t launch_conv(const ConvForwardCall& call, const ConvForwardPlan& plan,
                        cudaStream_t stream);

// One convolution of the gradient at a convolution's output, of any stride, whose weights lie
// packed in the call's workspace.
ConvBackwardInputPlan plan_conv_of_gradient(const ConvBackwardCall& call,
                                            const ConvReLUPoolParams& conv);
cudaError_t launch_conv_of_gradient(const ConvBackwardCall& call, const ConvBackwardInputPlan& plan,
                                    cudaStream_t stream);

// The weight gradient as sums of parts, which the caller adds up; without a grad_weight, the whole
// bias gradient.
ConvBackwardWeightPlan plan_weight_parts(const ConvBackwardCall& call);
cudaError_t launch_weight_parts(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan,
                                cudaStream_t stream);

}  // namespace imgfast::cuda
