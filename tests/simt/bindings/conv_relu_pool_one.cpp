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

}  // namespace

SIMT_EXPORT int plan_conv_relu_pool(const std::int64_t* sizes, const std::int64_t* strides,
                                    const std::int64_t* geometry, int dtype, int kernel,
                                    const void* x, const void* weight, void* y,
                                    std::int64_t* told) {
  return tell(plan_of({sizes, strides, geometry, dtype, x, weight, nullptr, y}, kernel), told);
}

SIMT_EXPORT int conv_relu_pool(const std::int64_t* sizes, const std::int64_t* strides,
                               const std::int64_t* geometry, int dtype, int kernel, const void* x,
                               const void* weight, const void* bias, void* y, std::uint8_t* codes,
                               void* workspace) {
  PlainCall plain(sizes, strides, geometry, dtype, x, weight, bias, y);
  plain.call.codes = codes;
  plain.call.workspace = workspace;
  return launch_instance<Instance>(plain.call, plan_of(plain, kernel), nullptr);
}
