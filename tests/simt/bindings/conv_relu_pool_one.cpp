// One instance of one kernel of conv_relu_pool's forward, for tests that build it again and again.
#include "conv_relu_pool_call.h"

using namespace imgfast::cuda;

namespace {

#if CONV_KERNEL == 1
using Instance = ConvSimtInstance<4, Pooling::kQuad>;
#elif CONV_KERNEL == 3
using Instance = ConvMmaInstance<__nv_bfloat16, 2, Pooling::kQuad>;
#else
using Instance = ConvMmaFewInstance<__nv_bfloat16, Pooling::kQuad>;
#endif

ConvForwardPlan plan_of(const PlainCall& plain, int kernel) {
  return plan_instance<Instance>(plain.call, static_cast<ConvKernel>(kernel));
}

int launch_planned(const ConvForwardCall& call, const ConvForwardPlan& plan) {
  return launch_instance<Instance>(call, plan, nullptr);
}

}  // namespace

#include "conv_relu_pool_exports.h"
