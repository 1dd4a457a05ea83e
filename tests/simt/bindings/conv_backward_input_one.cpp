// One instance of conv_relu_pool's gradient at x, for tests that build it again and again.
#include "cuda/conv_backward_input.cuh"

using namespace imgfast::cuda;

namespace {

#if CONV_KERNEL == 1
using Instance = ConvSimtInstance<4, Pooling::kElement, ConvOfGradient<float, Pooling::kQuad>>;
#else
using Instance = ConvMmaInstance<__nv_bfloat16, 2, Pooling::kElement,
                                 ConvOfGradient<__nv_bfloat16, Pooling::kQuad>>;
#endif

ConvBackwardInputPlan plan_of(const ConvBackwardInputCall& call, int kernel) {
  return plan_gradient_instance<Instance>(call, static_cast<ConvKernel>(kernel));
}

int launch_planned(const ConvBackwardInputCall& call, const ConvBackwardInputPlan& plan) {
  return launch_gradient_instance<Instance>(call, plan, nullptr);
}

}  // namespace

#include "conv_backward_input_exports.h"
