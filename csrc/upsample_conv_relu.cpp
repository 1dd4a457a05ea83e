// upsample_conv_relu on the CPU: y = activation(conv2d(upsample_nearest(x, 2), weight, bias,
// padding=1)), by Winograd's kernels of its own (cpu/upsample_winograd-inl.h), or directly.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "conv_units.h"
#include "cpu/dispatch.h"
#include "empty.h"
#include "upsample_direct.h"

namespace imgfast {
namespace {

constexpr int64_t kWorthAThreadFilters = 32;  // whose weight gradients are added up

// Units that are worth a thread.
int64_t grain_of(const ConvReLUPoolParams& whole, int64_t units) {
  const int64_t work = whole.N * whole.PH * work_per_row(whole);
  return std::max<int64_t>(1, kWorthAThread * units / work);
}

void by_winograd(const ConvReLUPoolParams& whole, const Tensor& x, const Tensor& weight,
                 const std::optional<Tensor>& bias, const Tensor& y) {
  const auto& kernel = cpu::kernels().upsample_conv_relu.forward;
  cpu::ConvForwardArgs args{};
  args.params = &whole;
  args.x = view(x);
  args.weight = view(weight);
  Tensor dense;
  if (bias) {
    dense = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
    args.bias = dense.data_ptr();
  }
  args.y = view(y);
  args.packed_weight = shared_buffer.reserve(kernel.pack_size(args));
  pack(kernel, args);
  const int64_t units = kernel.units(args), scratch = kernel.scratch(args);
  torch::stable::parallel_for(0, units, grain_of(whole, units), [&](int64_t begin, int64_t end) {
    kernel.run(args, begin, end, thread_buffer.reserve(scratch));
  });
}

Tensor upsample_conv_relu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          int64_t activation, int64_t winograd, bool) {
  const UpsampleConvReLUParams params =
      make_upsample_params(x, weight, activation, winograd, false);
  const ConvReLUPoolParams& whole = params.whole;
  if (bias) check_bias(whole, x, *bias);
  const bool channels_last = answers_channels_last(whole, x, weight);
  // Every other column of a plane is no run of memory; with one filter, both layouts are the same.
  const Tensor y = empty(Ints{whole.N, whole.K, whole.P, whole.Q}, x.scalar_type(),
                         channels_last || whole.K > 1);
  if (whole.winograd & kWinogradForward) {
    by_winograd(whole, x, weight, bias, y);
  } else {
    upsample_direct(params, x, weight, bias, y);
  }
  return channels_last ? y : torch::stable::contiguous(y);
}

std::tuple<Tensor, Tensor, Tensor> by_winograd_backward(const ConvReLUPoolParams& whole,
                                                        const Tensor& grad_y, const Tensor& x,
                                                        const Tensor& weight, const Tensor* y,
                                                        bool need_x, bool need_weight,
                                                        bool need_bias) {
  ConvReLUPoolParams sizes = whole;  // of the gradients, which are those of x and weight
  sizes.H = x.size(2), sizes.W = x.size(3);
  auto [grad_x, grad_weight, grad_bias] =
      empty_gradients(sizes, x, weight, need_x, need_weight, need_bias,
                      [](const Ints& of, ScalarType dtype, bool channels_last) {
                        return empty({of.data(), of.size()}, dtype, channels_last);
                      });
  const auto& kernel = cpu::kernels().upsample_conv_relu.backward;
  cpu::ConvBackwardArgs args{};
  args.params = &whole;
  args.grad_y = view(grad_y);
  if (y) args.y = view(*y);
  args.x = view(x);
  args.weight = view(weight);
  if (need_x) args.grad_x = view(grad_x);
  if (need_weight) args.grad_weight = view(grad_weight);
  args.grad_bias = grad_bias.data_ptr();

  const int64_t units = kernel.units(args), scratch = kernel.scratch(args);
  const int64_t slots = std::min(threads_for(whole.N * whole.PH * work_per_row(whole)), units);
  const int64_t filter_bytes = need_x ? kernel.pack_size(args) : 0;
  const int64_t sum_bytes = need_weight ? slots * kernel.partial_size(args) : 0;
  const int64_t bias_bytes = need_bias ? slots * whole.K * static_cast<int64_t>(sizeof(float)) : 0;
  char* const memory =
      static_cast<char*>(shared_buffer.reserve(filter_bytes + sum_bytes + bias_bytes));
  if (need_x) {
    args.packed_weight = memory;
    pack(kernel, args);
  }
  if (need_weight) args.partial_weight = memory + filter_bytes;
  if (need_bias) args.partial_bias = memory + filter_bytes + sum_bytes;
  torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; slot++) {
      kernel.run(args, units * slot / slots, units * (slot + 1) / slots, slot,
                 thread_buffer.reserve(scratch));
    }
  });
  if (!need_weight && !need_bias) return {grad_x, grad_weight, grad_bias};
  torch::stable::parallel_for(
      0, need_weight ? whole.K : 1, kWorthAThreadFilters,
      [&](int64_t begin, int64_t end) { kernel.reduce(args, slots, begin, end); });
  return {grad_x, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> upsample_conv_relu_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& y,
    int64_t activation, int64_t winograd, bool, bool need_x, bool need_weight, bool need_bias) {
  const UpsampleConvReLUParams params =
      make_upsample_params(x, weight, activation, winograd, false);
  const GradientReads reads = check_gradient(params.whole, x, grad_y, y, std::nullopt);
  const Tensor* const needed_y = reads.y ? &*y : nullptr;
  if (winograd & (kWinogradInput | kWinogradWeight)) {
    return by_winograd_backward(params.whole, grad_y, x, weight, needed_y, need_x, need_weight,
                                need_bias);
  }
  return upsample_direct_backward(params, grad_y, x, weight, needed_y, need_x, need_weight,
                                  need_bias);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("upsample_conv_relu", TORCH_BOX(&upsample_conv_relu));
  m.impl("upsample_conv_relu_backward", TORCH_BOX(&upsample_conv_relu_backward));
}

}  // namespace imgfast
