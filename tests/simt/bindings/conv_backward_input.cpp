// conv_relu_pool's gradient at x for the emulator: the kernel that is chosen, or that of a number.
#include "cuda/conv_backward_input.cuh"

using namespace imgfast::cuda;

namespace {

ConvBackwardInputPlan plan_of(const ConvBackwardCall& call, int kernel) {
  return kernel < 0 ? plan_conv_backward_input(call)
                    : plan_conv_backward_input(call, static_cast<ConvKernel>(kernel));
}

int launch_planned(const ConvBackwardCall& call, const ConvBackwardInputPlan& plan) {
  return launch_conv_backward_input(call, plan, nullptr);
}

}  // namespace

#include "conv_backward_input_exports.h"
