// One instance of conv_relu_pool's gradient at x, for tests that build it again and again.
#include "cuda/conv_backward_input.cuh"

using namespace imgfast::cuda;

namespace {

using Instance = ConvMmaInstance<__nv_bfloat16, 2, Pooling::kElement,
                                 ConvOfGradient<__nv_bfloat16, Pooling::kQuad>>;

ConvBackwardInputPlan plan_of(const ConvBackwardCall& call, int kernel) {
  return plan_gradient_instance<Instance>(call, static_cast<ConvKernel>(kernel));
}

int launch_planned(const ConvBackwardCall& call, const ConvBackwardInputPlan& plan) {
  return launch_gradient_instance<Instance>(call, plan, nullptr);
}

}  // namespace

#include "conv_backward_input_exports.h"
