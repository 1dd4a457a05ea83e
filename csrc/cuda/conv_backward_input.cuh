// conv_relu_pool's gradient at x on a GPU, torch-free.
//
// Where the stride is 1 it is a convolution of d, the gradient at the convolution's output, with
// the turned filters and C and K exchanged. With a stride, the rows h with the same h mod stride_h
// receive the same taps r of the filter, those with (h + padding_h - r * dilation_h) a multiple of
// stride_h: an arithmetic progression. So every phase of rows and columns is again such a
// convolution, of some of the taps, and the forward's kernels do it (conv_plan.cuh). A phase may
// have no tap at all: its gradient is 0.
//
//   ConvBackwardInputPlan plan = plan_conv_backward_input(call);  // no phases: nothing serves it
//   call.workspace = plan.workspace_bytes bytes of the device
//   launch_conv_backward_input(call, plan, stream)
#pragma once

#include "cuda/conv_backward_call.cuh"

namespace imgfast::cuda {

// Along one axis, a phase: positions phase + i * stride of x, in a convolution of unit stride.
struct ConvPhaseAxis {
  int size = 0;  // positions
  int taps = 0;
  int last = 0, step = 1;  // the tap that comes first, and how far back the next one is
  int padding = 0, dilation = 1;

  ConvPhaseAxis(int phase, int extent, int filter, int stride, int forward_padding,
                int forward_dilation)
      : size((extent - phase + stride - 1) / stride) {
    const int first = phase + forward_padding;
    for (int r = 0; r < filter; r++) {
      if ((first - r * forward_dilation) % stride != 0) continue;
      if (taps > 0) step = r - last;
      last = r;
      taps++;
    }
    if (taps > 0) padding = (last * forward_dilation - first) / stride;
    if (taps > 1) dilation = step * forward_dilation / stride;
  }
};

// function(instance) for the one that was chosen; a default Result where there is none.
template <class Result, class T, Pooling kWindows, class Function>
Result with_gradient_instance(ConvKernel kernel, const Function& function) {
  using Args = ConvOfGradient<T, kWindows>;
  switch (kernel) {
    case ConvKernel::kSimt:
      if constexpr (std::is_same_v<T, float>) {
        return function(ConvSimtInstance<4, Pooling::kElement, Args>{});
      }
      break;
    case ConvKernel::kMma:
      return function(ConvMmaInstance<T, 2, Pooling::kElement, Args>{});
    case ConvKernel::kMmaWide:
      return function(ConvMmaInstance<T, 4, Pooling::kElement, Args>{});
    default:
      break;
  }
  return Result{};
}

template <class Result, class Function>
Result with_gradient_instance(ConvKernel kernel, DType dtype, Pooling windows,
                              const Function& function) {
  return with_element_and_pooling<Result>(dtype, windows, [&](auto element, auto kind) {
    return with_gradient_instance<Result, decltype(element), decltype(kind)::value>(kernel,
                                                                                    function);
  });
}

// The phase's convolution, of d: everything but its tiles.
inline ConvShape phase_shape(const ConvShape& s, const ConvPhaseAxis& h, const ConvPhaseAxis& w) {
  ConvShape phase{};
  phase.N = s.N, phase.C = s.K, phase.H = s.P, phase.W = s.Q;
  phase.K = s.C, phase.R = h.taps, phase.S = w.taps;
  phase.P = phase.PH = h.size, phase.Q = phase.PW = w.size;
  phase.stride_h = phase.stride_w = 1;
  phase.padding_h = h.padding, phase.padding_w = w.padding;
  phase.dilation_h = h.dilation, phase.dilation_w = w.dilation;
  phase.groups = s.groups;
  phase.pool_h = phase.pool_w = phase.pool_stride_h = phase.pool_stride_w = 1;
  phase.pool_dilation_h = phase.pool_dilation_w = 1;
  phase.pool = Pool::kNone;
  phase.activation = Activation::kNone;
  return phase;
}

template <class Instance>
ConvBackwardInputPlan plan_gradient_instance(const ConvBackwardCall& call, ConvKernel kernel) {
  ConvBackwardInputPlan plan;
  plan.kernel = kernel;
  plan.windows = pooling_of(*call.params);
  if (!make_shape(*call.params, plan.pooled)) return {};
  const ConvShape& s = plan.pooled;
  const std::int64_t (&of_weight)[4] = call.weight_stride;
  const std::int64_t (&of_x)[4] = call.grad_x_stride;
  for (int top = 0; top < std::min(s.stride_h, s.H); top++) {
    const ConvPhaseAxis h(top, s.H, s.R, s.stride_h, s.padding_h, s.dilation_h);
    for (int left = 0; left < std::min(s.stride_w, s.W); left++) {
      const ConvPhaseAxis w(left, s.W, s.S, s.stride_w, s.padding_w, s.dilation_w);
      ConvBackwardInputPhase phase{};
      phase.plan.kernel = kernel;
      phase.plan.shape = phase_shape(s, h, w);
      if (!plan_tiles<Instance>(phase.plan, call.grad_y_stride[1] == 1)) return {};
      phase.plan.packing = conv_packing<Instance>(
          phase.plan.shape, {s.K * of_weight[0], of_weight[1], -h.step * of_weight[2],
                             -w.step * of_weight[3], of_weight[0]});
      phase.first_weight = h.last * of_weight[2] + w.last * of_weight[3];
      phase.first_x = top * of_x[2] + left * of_x[3];
      phase.first_packed = plan.workspace_bytes;
      const std::int64_t bytes = phase.plan.packing.count() *
                                 static_cast<std::int64_t>(sizeof(typename Instance::Element));
      plan.workspace_bytes += conv_ceil_div(bytes, 16) * 16;
      plan.phases.push_back(phase);
    }
  }
  return plan;
}

// One convolution of d, of any stride, instead of phases. Its weights are the caller's to pack, in
// the call's workspace.
template <class Instance>
ConvBackwardInputPlan plan_gradient_instance(const ConvBackwardCall& call, ConvKernel kernel,
                                             const ConvReLUPoolParams& conv) {
  ConvBackwardInputPlan plan;
  plan.kernel = kernel;
  plan.windows = pooling_of(*call.params);
  ConvBackwardInputPhase phase{};
  phase.plan.kernel = kernel;
  const bool fits = make_shape(*call.params, plan.pooled) && make_shape(conv, phase.plan.shape);
  if (!fits || !plan_tiles<Instance>(phase.plan, call.grad_y_stride[1] == 1)) return {};
  const std::int64_t (&stride)[4] = call.weight_stride;
  const ConvPacking packing =
      conv_packing<Instance>(phase.plan.shape, {0, stride[1], stride[2], stride[3], stride[0]});
  plan.workspace_bytes =
      packing.count() * static_cast<std::int64_t>(sizeof(typename Instance::Element));
  phase.plan.packing = packing;
  plan.phases.push_back(phase);
  return plan;
}

template <class Instance>
cudaError_t launch_gradient_instance(const ConvBackwardCall& call,
                                     const ConvBackwardInputPlan& plan, cudaStream_t stream) {
  using T = typename Instance::Element;
  typename Instance::Args a{};
  a.gradient = gradient_of<T>(call, plan.pooled);
  a.pooled = plan.pooled;
  for (const ConvBackwardInputPhase& phase : plan.phases) {
    void* const packed = static_cast<char*>(call.workspace) + phase.first_packed;
    cudaError_t error =
        launch_packing<T>(phase.plan.packing,
                          static_cast<const T*>(call.weight) + phase.first_weight, packed, stream);
    if (error != cudaSuccess) return error;
    a.weight = packed;
    a.y = static_cast<T*>(call.grad_x) + phase.first_x;
    for (int d = 0; d < 4; d++) a.y_stride[d] = call.grad_x_stride[d];
    a.y_stride[2] *= plan.pooled.stride_h;
    a.y_stride[3] *= plan.pooled.stride_w;
    error = launch_tiles<Instance>(phase.plan, a, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

inline ConvBackwardInputPlan plan_conv_backward_input(const ConvBackwardCall& call,
                                                      ConvKernel kernel) {
  const Pooling windows = pooling_of(*call.params);
  return with_gradient_instance<ConvBackwardInputPlan>(
      kernel, call.dtype, windows,
      [&](auto instance) { return plan_gradient_instance<decltype(instance)>(call, kernel); });
}

// Tensor cores where the dtype allows them.
inline ConvKernel choose_conv_backward_input(const ConvBackwardCall& call) {
  const ConvReLUPoolParams& p = *call.params;
  const bool exact = call.dtype == DType::kFloat32 && !p.allow_tf32;
  const ConvKernel mma = p.C / p.groups > 64 ? ConvKernel::kMmaWide : ConvKernel::kMma;
  return exact ? ConvKernel::kSimt : mma;
}

inline ConvBackwardInputPlan plan_conv_backward_input(const ConvBackwardCall& call) {
  return plan_conv_backward_input(call, choose_conv_backward_input(call));
}

// Does not wait for the device. The plan must be one of this call's.
inline cudaError_t launch_conv_backward_input(const ConvBackwardCall& call,
                                              const ConvBackwardInputPlan& plan,
                                              cudaStream_t stream) {
  if (plan.phases.empty()) return cudaErrorInvalidValue;
  return with_gradient_instance<cudaError_t>(
      plan.kernel, call.dtype, plan.windows, [&](auto instance) {
        return launch_gradient_instance<decltype(instance)>(call, plan, stream);
      });
}

}  // namespace imgfast::cuda
