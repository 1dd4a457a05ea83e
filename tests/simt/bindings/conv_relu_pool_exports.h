// What Python calls, of a binding that has defined plan_of and launch_planned.
#pragma once

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
  return launch_planned(plain.call, plan_of(plain, kernel));
}
