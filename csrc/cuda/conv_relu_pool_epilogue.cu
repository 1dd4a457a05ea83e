// conv_relu_pool around torch's convolution, which wants channels_last: what is in NCHW is turned,
// as cuDNN would turn it, but for the convolution's output and its gradient, which stay as they
// are.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <array>

#include "cuda/conv_operator_backward.h"
#include "cuda/conv_relu_pool_epilogue.cuh"
#include "cuda/conv_turn.cuh"

namespace imgfast::cuda {
namespace {

ConvShape epilogue_shape(const ConvReLUPoolParams& p) {
  ConvShape s{};
  STD_TORCH_CHECK(plan_conv_epilogue(p, s),
                  "conv_relu_pool: too many positions for the epilogue's kernels; "
                  "algorithm='stock' runs it");
  return s;
}

// t, or a copy of it that lies so.
Tensor laid_out(const Tensor& t, bool channels_last, const Allocator& empty, cudaStream_t stream) {
  using torch::headeronly::MemoryFormat;
  if (lies_dense(t, channels_last)) return t;
  const std::int64_t pixels = t.size(2) * t.size(3);
  const Turn turn{.images = t.size(0),
                  .rows = channels_last ? t.size(1) : pixels,
                  .cols = channels_last ? pixels : t.size(1)};
  if (!lies_dense(t, !channels_last) || !can_turn(turn)) {
    return torch::stable::contiguous(
        t, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  }
  Tensor turned =
      empty({t.size(0), t.size(1), t.size(2), t.size(3)}, t.scalar_type(), channels_last);
  STD_CUDA_CHECK(launch_turn(turn, t.const_data_ptr(), turned.mutable_data_ptr(),
                             static_cast<int>(t.element_size()), stream));
  return turned;
}

// The arguments of torch's convolution as its C interface takes them.
struct TorchConvolution {
  static constexpr std::array<std::int64_t, 2> kNone = {0, 0};
  const std::array<std::int64_t, 2> stride, padding, dilation;
  const std::int64_t groups;

  explicit TorchConvolution(const ConvReLUPoolParams& p)
      : stride{p.stride_h, p.stride_w},
        padding{p.padding_h, p.padding_w},
        dilation{p.dilation_h, p.dilation_w},
        groups(p.groups) {}

  Tensor operator()(const Tensor& x, const Tensor& weight) const {
    AtenTensorHandle y = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_convolution(
        x.get(), weight.get(), nullptr, stride.data(), 2, padding.data(), 2, dilation.data(), 2,
        false, kNone.data(), 2, groups, &y));
    return Tensor(y);
  }

  // The gradients of x and weight, undefined where they are not needed.
  std::array<Tensor, 2> backward(const Tensor& grad_y, const Tensor& x, const Tensor& weight,
                                 bool need_x, bool need_weight) const {
    const std::int32_t needs[3] = {need_x, need_weight, false};
    AtenTensorHandle grads[3] = {};
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_convolution_backward(
        grad_y.get(), x.get(), weight.get(), nullptr, 0, stride.data(), 2, padding.data(), 2,
        dilation.data(), 2, false, kNone.data(), 2, groups, needs, 3, &grads[0], &grads[1],
        &grads[2]));
    const Tensor of_bias(grads[2]);  // undefined, but a handle to be given back
    return {Tensor(grads[0]), Tensor(grads[1])};
  }
};

}  // namespace

bool serves_epilogue(const ConvReLUPoolParams& p) {
  ConvShape shape{};
  return plan_conv_epilogue(p, shape);
}

void forward_around_torch(ConvForwardCall& call, const Tensor& x, const Tensor& weight,
                          const Allocator& empty, cudaStream_t stream) {
  const ConvShape shape = epilogue_shape(*call.params);
  const auto turned = [&](const Tensor& t) { return laid_out(t, true, empty, stream); };
  const Tensor sums = turned(TorchConvolution(*call.params)(turned(x), turned(weight)));
  call.x = sums.const_data_ptr();
  STD_CUDA_CHECK(launch_conv_epilogue(call, shape, stream));
}

std::tuple<Tensor, Tensor, Tensor> backward_around_torch(ConvBackwardCall& call, const Tensor& x,
                                                         const Tensor& weight, bool need_x,
                                                         bool need_weight, bool need_bias,
                                                         const Allocator& empty,
                                                         cudaStream_t stream) {
  const ConvReLUPoolParams& p = *call.params;
  const ConvShape shape = epilogue_shape(p);
  Tensor grad_x = empty({0}, x.scalar_type()), grad_weight = empty({0}, x.scalar_type());
  Tensor grad_bias = empty({need_bias ? p.K : 0}, x.scalar_type());
  if (need_x || need_weight) {
    Tensor grad_sums = empty({p.N, p.K, p.P, p.Q}, x.scalar_type(), true);
    call.grad_x = grad_sums.mutable_data_ptr();
    STD_CUDA_CHECK(launch_conv_epilogue_backward(call, shape, stream));
    const auto laid = [&](const Tensor& t, bool channels_last) {
      return laid_out(t, channels_last, empty, stream);
    };
    const auto [of_x, of_weight] = TorchConvolution(p).backward(
        grad_sums, laid(x, true), laid(weight, true), need_x, need_weight);
    if (need_x) grad_x = laid(of_x, answers_channels_last(x, weight));
    if (need_weight) grad_weight = laid(of_weight, is_channels_last(weight));
  }
  if (need_bias) {
    call.grad_bias = grad_bias.mutable_data_ptr();
    launch_weight_gradients(call, empty, stream);
  }
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace imgfast::cuda
