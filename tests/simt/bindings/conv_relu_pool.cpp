// conv_relu_pool's forward for the emulator: the kernel that is chosen, or that of a number.
#include "conv_relu_pool_call.h"
#include "cuda/conv_forward.cuh"

using namespace imgfast::cuda;

namespace {

ConvForwardPlan plan_of(const PlainCall& plain, int kernel) {
  return kernel < 0 ? plan_conv_forward(plain.call)
                    : plan_conv_forward(plain.call, static_cast<ConvKernel>(kernel));
}

int launch_planned(const ConvForwardCall& call, const ConvForwardPlan& plan) {
  return launch_conv_forward(call, plan, nullptr);
}

}  // namespace

#include "conv_relu_pool_exports.h"
