// One instance of conv_relu_pool's weight and bias gradients, for tests that build it again and
// again.
#include "cuda/conv_backward_weight.cuh"

using namespace imgfast::cuda;

namespace {

using Instance = ConvWeightMmaInstance<__nv_bfloat16, Pooling::kQuad>;

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
