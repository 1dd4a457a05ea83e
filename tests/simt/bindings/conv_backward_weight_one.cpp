// One instance of one kernel of conv_relu_pool's weight gradient and, where it is wanted, the bias
// gradient, for tests that build it again and again.
#include "cuda/conv_backward_weight.cuh"

using namespace imgfast::cuda;

namespace {

#if CONV_KERNEL == 2
using Instance = ConvWeightSimtInstance<4, Pooling::kQuad>;
#else
using Instance = ConvWeightMmaInstance<__nv_bfloat16, Pooling::kQuad>;
#endif

ConvBackwardWeightPlan plan_of(const ConvBackwardCall& call, int kernel, int blocks) {
  const auto number = static_cast<ConvWeightKernel>(kernel);
  return plan_bias(call, plan_weight_instance<Instance>(call, number, blocks), blocks);
}

int launch_planned(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan) {
  const cudaError_t error = launch_weight_instance<Instance>(call, plan, nullptr);
  if (error != cudaSuccess || plan.bias_parts == 0) return error;
  return launch_bias<Instance::Element>(call, plan, nullptr);
}

}  // namespace

#include "conv_backward_weight_exports.h"
