// conv_relu_pool's forward on a GPU, torch-free: which kernel runs, and where its instances are.
//
//   ConvForwardPlan plan = plan_conv_forward(call);            // kNone: nothing here serves it
//   call.workspace = plan.workspace_bytes bytes of the device
//   launch_conv_forward(call, plan, stream)
#pragma once

#include "cuda/conv_plan.cuh"

namespace imgfast::cuda {

// function(instance) for the one that was chosen; a default Result where there is none.
template <class Result, class T, Pooling kPooling, class Function>
Result with_instance(ConvKernel kernel, const Function& function) {
  switch (kernel) {
    case ConvKernel::kSimt:
      if constexpr (std::is_same_v<T, float>) return function(ConvSimtInstance<4, kPooling>{});
      break;
    case ConvKernel::kSimtFew:
      if constexpr (std::is_same_v<T, float>) return function(ConvSimtInstance<1, kPooling>{});
      break;
    case ConvKernel::kMma:
      return function(ConvMmaInstance<T, 2, kPooling>{});
    case ConvKernel::kMmaWide:
      return function(ConvMmaInstance<T, 4, kPooling>{});
    case ConvKernel::kMmaFew:
      if constexpr (sizeof(T) == 2) return function(ConvMmaFewInstance<T, kPooling>{});
      break;
    case ConvKernel::kNone:
      break;
  }
  return Result{};
}

template <class Result, class Function>
Result with_instance(ConvKernel kernel, DType dtype, Pooling pooling, const Function& function) {
  return with_element_and_pooling<Result>(dtype, pooling, [&](auto element, auto kind) {
    return with_instance<Result, decltype(element), decltype(kind)::value>(kernel, function);
  });
}

inline ConvForwardPlan plan_conv_forward(const ConvForwardCall& call, ConvKernel kernel) {
  const Pooling pooling = pooling_of(*call.params);
  return with_instance<ConvForwardPlan>(kernel, call.dtype, pooling, [&](auto instance) {
    return plan_instance<decltype(instance)>(call, kernel);
  });
}

// Tensor cores where the dtype allows them, and there the kernel for few channels where a step of
// the other would be mostly padding, if its tile fits. plan_of(kernel) plans one.
template <class PlanOf>
ConvForwardPlan choose_conv_forward(const ConvForwardCall& call, const PlanOf& plan_of) {
  const ConvReLUPoolParams& p = *call.params;
  const std::int64_t C = p.C / p.groups, K = p.K / p.groups;
  const ConvKernel simt = C < 4 ? ConvKernel::kSimtFew : ConvKernel::kSimt;
  const ConvKernel mma = K > 64 ? ConvKernel::kMmaWide : ConvKernel::kMma;
  const bool exact = call.dtype == DType::kFloat32 && !(p.allow_tf32 && C > 4);
  ConvForwardPlan plan;
  if (!exact && C < 8) plan = plan_of(ConvKernel::kMmaFew);
  if (plan.kernel == ConvKernel::kNone) plan = plan_of(exact ? simt : mma);
  return plan;
}

inline ConvForwardPlan plan_conv_forward(const ConvForwardCall& call) {
  return choose_conv_forward(call,
                             [&](ConvKernel kernel) { return plan_conv_forward(call, kernel); });
}

// Does not wait for the device. The plan must be one of this call's.
inline cudaError_t launch_conv_forward(const ConvForwardCall& call, const ConvForwardPlan& plan,
                                       cudaStream_t stream) {
  if (plan.kernel == ConvKernel::kNone) return cudaErrorInvalidValue;
  return with_instance<cudaError_t>(plan.kernel, call.dtype, plan.pooling, [&](auto instance) {
    return launch_instance<decltype(instance)>(call, plan, stream);
  });
}

}  // namespace imgfast::cuda
