// conv_relu_pool's weight and bias gradients for the emulator: the kernel that is chosen, or that
// of a number.
#include "cuda/conv_backward_weight.cuh"

using namespace imgfast::cuda;

namespace {

ConvBackwardWeightPlan plan_of(const ConvBackwardCall& call, int kernel, int blocks) {
  if (kernel < 0) return plan_conv_backward_weight(call);
  return plan_conv_backward_weight(call, static_cast<ConvWeightKernel>(kernel), blocks);
}

int launch_planned(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan) {
  return launch_conv_backward_weight(call, plan, nullptr);
}

}  // namespace

#include "conv_backward_weight_exports.h"
