// conv_relu_pool on the CPU: validate, allocate, share out the work, register. The kernels are in
// cpu/conv_*-inl.h.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <tuple>

#include "conv_relu_pool_call.h"
#include "conv_units.h"
#include "cpu/dispatch.h"
#include "cpu/weight_cache.h"
#include "empty.h"
#include "tensor_dtype.h"

namespace imgfast {
namespace {

constexpr int64_t kWorthAThreadBytes = 1 << 18;  // below which a thread does not pay to compare

Tensor empty(const Ints& sizes, ScalarType dtype, bool channels_last = false) {
  return imgfast::empty({sizes.data(), sizes.size()}, dtype, channels_last);
}

// std::memcmp, but for 0 or not 0 only, by all threads.
int compare_bytes(const void* a, const void* b, size_t bytes) {
  std::atomic<bool> differ = false;
  torch::stable::parallel_for(0, bytes, kWorthAThreadBytes, [&](int64_t begin, int64_t end) {
    const auto* from = static_cast<const char*>(a) + begin;
    if (std::memcmp(from, static_cast<const char*>(b) + begin, end - begin) != 0) differ = true;
  });
  return differ;
}

// Never destroyed, as threads may outlive static objects.
cpu::WeightCache& weight_cache() {
  static auto* const cache = new cpu::WeightCache(cpu::WeightCache::kCapacity, compare_bytes);
  return *cache;
}

// Fills in args.packed_weight: from the cache, if the result is not null and for as long as it is
// held, or packed for this call. A pass that saves codes is training, after which the weights
// change; and a weight with gaps between its elements is not compared.
std::shared_ptr<void> pack_weight(cpu::ConvForwardArgs& args, const Tensor& weight,
                                  const cpu::PackedKernel<cpu::ConvForwardArgs>& kernel) {
  using Source = cpu::WeightCache::Source;
  const ConvReLUPoolParams& p = *args.params;
  const int64_t* stride = args.weight.stride;
  const int64_t bytes = kernel.pack_size(args);
  int64_t span = 1;
  for (int d = 0; d < 4; d++) span += (weight.size(d) - 1) * stride[d];
  std::shared_ptr<void> kept;
  if (!args.codes && span <= weight.numel()) {
    const int64_t element = weight.element_size();
    const cpu::WeightCache::Key key = {
        reinterpret_cast<int64_t>(args.weight.data),
        static_cast<int64_t>(args.x.dtype),
        p.winograd & kWinogradForward ? 16 * p.stride_h + cpu::winograd_forward_points(p)
                                      : cpu::has_few_filters(p),
        args.bias != nullptr,
        p.groups,
        p.K,
        p.C,
        p.R,
        p.S,
        stride[0],
        stride[1],
        stride[2],
        stride[3],
    };
    const Source source = {args.weight.data, span * element, args.bias,
                           args.bias ? p.K * element : 0};
    kept = weight_cache().find(key, source, bytes, [&](const Source& copy, void* packed) {
      cpu::ConvForwardArgs of_copy = args;
      of_copy.weight.data = const_cast<void*>(copy.weight);
      of_copy.bias = copy.bias;
      of_copy.packed_weight = packed;
      pack(kernel, of_copy);
    });
  }
  if (kept) {
    args.packed_weight = kept.get();
  } else {
    args.packed_weight = shared_buffer.reserve(bytes);
    pack(kernel, args);
  }
  return kept;
}

// Which of a pass's kernels runs: see ConvReLUPoolKernels.
int kernel_of(const ConvReLUPoolParams& p, int winograd) {
  return p.winograd & winograd ? 1 : is_depthwise(p) ? 2 : cpu::has_few_filters(p) ? 3 : 0;
}

ConvReLUPoolParams make_cpu_params(const Tensor& x, const Tensor& weight, const Ints& geometry) {
  const ConvReLUPoolParams p = make_params(x, weight, geometry);
  STD_TORCH_CHECK(p.epilogue == 0,
                  "conv_relu_pool: the epilogue around torch's convolution runs on CUDA only");
  return p;
}

std::tuple<Tensor, Tensor> conv_relu_pool(const Tensor& x, const Tensor& weight,
                                          const std::optional<Tensor>& bias, const Ints& geometry,
                                          bool save_codes) {
  const ConvReLUPoolParams p = make_cpu_params(x, weight, geometry);
  if (save_codes) check_codes(p);
  Tensor y = empty({p.N, p.K, p.PH, p.PW}, x.scalar_type(), answers_channels_last(p, x, weight));
  Tensor codes = empty(save_codes ? Ints{p.N, p.PH, p.PW, p.K} : Ints{0}, ScalarType::Byte);
  std::optional<Tensor> dense_bias;
  if (bias) {
    check_bias(p, x, *bias);
    dense_bias = torch::stable::contiguous(*bias);
  }
  cpu::ConvForwardArgs args{};
  args.params = &p;
  args.x = view(x);
  args.weight = view(weight);
  args.bias = dense_bias ? dense_bias->data_ptr() : nullptr;
  args.y = view(y);
  args.codes = save_codes ? static_cast<uint8_t*>(codes.data_ptr()) : nullptr;

  const cpu::ConvReLUPoolKernels& kernels = cpu::kernels().conv_relu_pool;
  args.threads = torch::stable::get_num_threads();
  const int choice = kernel_of(p, kWinogradForward);
  if (choice == 0 || choice == 3) divide_direct(args, args.x.dtype == DType::kFloat64 ? 8 : 4);
  if (choice == 2) {
    const int64_t overlap = (p.pool_h - 1) * p.pool_dilation_h + 1 - p.pool_stride_h;
    divide_depthwise(args, p.PH, p.pool_stride_h * p.stride_h,
                     std::max<int64_t>(0, overlap) * p.stride_h + (p.R - 1) * p.dilation_h);
  }
  const auto& kernel = kernels.forward[choice];
  const std::shared_ptr<void> kept = pack_weight(args, weight, kernel);
  const int64_t scratch = kernel.scratch(args), units = kernel.units(args);
  const int64_t grain =
      std::max<int64_t>(1, kWorthAThread / (p.N * p.PH * work_per_row(p) / units));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    kernel.run(args, begin, end, thread_buffer.reserve(scratch));
  });
  return {y, codes};
}

std::tuple<Tensor, Tensor, Tensor> conv_relu_pool_backward(const Tensor& grad_y, const Tensor& x,
                                                           const Tensor& weight,
                                                           const std::optional<Tensor>& y,
                                                           const std::optional<Tensor>& codes,
                                                           const Ints& geometry, bool need_x,
                                                           bool need_weight, bool need_bias) {
  const ConvReLUPoolParams p = make_cpu_params(x, weight, geometry);
  const GradientReads reads = check_gradient(p, x, grad_y, y, codes);
  auto [grad_x, grad_weight, grad_bias] =
      empty_gradients(p, x, weight, need_x, need_weight, need_bias, empty);
  cpu::ConvBackwardArgs args{};
  args.params = &p;
  args.grad_y = view(grad_y);
  if (reads.y) args.y = view(*y);
  args.x = view(x);
  args.weight = view(weight);
  args.codes = reads.codes ? static_cast<const uint8_t*>(codes->data_ptr()) : nullptr;
  const cpu::ConvReLUPoolKernels& kernels = cpu::kernels().conv_relu_pool;
  const int64_t threads = threads_for(p.N * p.PH * work_per_row(p));

  args.threads = torch::stable::get_num_threads();
  if (need_x) {
    const int choice = kernel_of(p, kWinogradInput);
    if (choice == 2) divide_depthwise(args, p.H, 1, (p.R - 1) * p.dilation_h);
    const auto& kernel = kernels.input[choice];
    args.grad_x = view(grad_x);
    args.packed_weight = shared_buffer.reserve(kernel.pack_size(args));
    pack(kernel, args);
    const int64_t scratch = kernel.scratch(args), units = kernel.units(args);
    const int64_t parts = std::min(threads, units);
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      kernel.run(args, units * begin / parts, units * end / parts, thread_buffer.reserve(scratch));
    });
  }
  if (need_weight || need_bias) {
    const int choice = kernel_of(p, need_weight ? kWinogradWeight : 0);
    if (choice == 2) divide_depthwise(args, p.P, p.stride_h + 1, (p.R - 1) * p.dilation_h);
    const auto& kernel = kernels.weight[choice];
    const int64_t scratch = kernel.scratch(args), units = kernel.units(args);
    const int64_t slots = std::min(threads, units);
    const int64_t element = args.x.dtype == DType::kFloat64 ? 8 : 4;
    const int64_t weight_bytes = need_weight ? slots * kernel.partial_size(args) : 0;
    const int64_t bias_bytes = need_bias ? slots * p.K * element : 0;
    char* partial = static_cast<char*>(shared_buffer.reserve(weight_bytes + bias_bytes));
    if (need_weight) {
      args.partial_weight = partial;
      args.grad_weight = view(grad_weight);
    }
    if (need_bias) {
      args.partial_bias = partial + weight_bytes;
      args.grad_bias = grad_bias.data_ptr();
    }
    torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
      for (int64_t slot = begin; slot < end; slot++) {
        std::memset(partial + slot * (weight_bytes / slots), 0, weight_bytes / slots);
        std::memset(partial + weight_bytes + slot * (bias_bytes / slots), 0, bias_bytes / slots);
        kernel.run(args, units * slot / slots, units * (slot + 1) / slots, slot,
                   thread_buffer.reserve(scratch));
      }
    });
    kernel.reduce(args, slots);
  }
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("conv_relu_pool", TORCH_BOX(&conv_relu_pool));
  m.impl("conv_relu_pool_backward", TORCH_BOX(&conv_relu_pool_backward));
}

}  // namespace imgfast
