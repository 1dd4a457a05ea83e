// conv_relu_pool's forward for the emulator: the kernel that is chosen, or that of a number.
#include "conv_relu_pool_call.h"
#include "cuda/conv_forward.cuh"

using namespace imgfast::cuda;

namespace {

ConvForwardPlan plan_of(const PlainCall& plain, int kernel) {
  return kernel < 0 ? plan_conv_forward(plain.call)
                    : plan_conv_forward(plain.call, static_cast<ConvKernel>(kernel));
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
  return launch_conv_forward(plain.call, plan_of(plain, kernel), nullptr);
}
