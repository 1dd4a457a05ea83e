// Mixing the positions of sequences on the CPU: validate, share out the sequences, register. The
// kernels are in cpu/neighbour_mix-inl.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "cpu/dispatch.h"
#include "empty.h"
#include "share_out.h"
#include "tensor_dtype.h"

namespace imgfast {
namespace {

using torch::stable::Tensor;

struct Call {
  cpu::NeighbourMixArgs args{};

  Call(const Tensor& x, const Tensor& gain, const Tensor& weight, const Tensor& places) {
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 3 && x.is_contiguous(),
                    "neighbour_mix: x must be dense [N, T, D] on the CPU");
    auto& a = args;
    a.dtype = dtype_of(x, "neighbour_mix", "x");
    STD_TORCH_CHECK(a.dtype == DType::kFloat32 || a.dtype == DType::kFloat64,
                    "neighbour_mix: x must be float32 or float64");
    a.N = x.size(0), a.T = x.size(1), a.D = x.size(2), a.J = weight.dim() ? weight.size(0) : 0;
    STD_TORCH_CHECK(gain.is_cpu() && gain.dim() == 1 && gain.size(0) == a.D &&
                        gain.scalar_type() == x.scalar_type() && gain.is_contiguous(),
                    "neighbour_mix: gain must be dense [D] of x's D and dtype");
    STD_TORCH_CHECK(weight.is_cpu() && weight.dim() == 2 && weight.size(1) == a.D &&
                        weight.scalar_type() == x.scalar_type() && weight.is_contiguous(),
                    "neighbour_mix: weight must be dense [J, D] of x's D and dtype");
    STD_TORCH_CHECK(a.J <= cpu::kMostNeighbours, "neighbour_mix: weight must be of at most ",
                    cpu::kMostNeighbours, " neighbours, got ", a.J);
    STD_TORCH_CHECK(places.is_cpu() && places.dim() == 2 && places.size(0) == a.J &&
                        places.size(1) == a.T && places.is_contiguous() &&
                        places.scalar_type() == torch::headeronly::ScalarType::Long,
                    "neighbour_mix: places must be dense int64 [J, T]");
    a.places = static_cast<const int64_t*>(places.data_ptr());
    const bool inside = std::all_of(a.places, a.places + a.J * a.T,
                                    [&](int64_t place) { return -1 <= place && place < a.T; });
    STD_TORCH_CHECK(inside, "neighbour_mix: places must lie in [-1, ", a.T, ")");
    a.x = x.data_ptr(), a.gain = gain.data_ptr(), a.weight = weight.data_ptr();
  }

  // The memory of a gradient at x.
  static const void* like_x(const Tensor& t, const char* name, const Tensor& x) {
    STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == x.scalar_type() && t.is_contiguous() &&
                        t.numel() == x.numel(),
                    "neighbour_mix: ", name, " must be dense [N, T, D] of x's dtype");
    return t.data_ptr();
  }

  void run(decltype(cpu::NeighbourMixKernels::forward) kernel) const {
    if (args.units() == 0 || args.D == 0) return;
    // What is read takes some four times as long as a multiply-add.
    const int64_t work = 4 * cpu::kMixedAtOnce * args.T * args.D * (1 + args.J);
    share_out(
        args.units(), work, cpu::kernels().neighbour_mix.scratch(args),
        [&](int64_t begin, int64_t end, void* scratch) { kernel(args, begin, end, scratch); });
  }
};

Tensor neighbour_mix(const Tensor& x, const Tensor& gain, const Tensor& weight,
                     const Tensor& places) {
  Call call(x, gain, weight, places);
  Tensor y = imgfast::empty_like(x);
  call.args.y = y.data_ptr();
  call.run(cpu::kernels().neighbour_mix.forward);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> neighbour_mix_backward(const Tensor& grad_y,
                                                          const std::optional<Tensor>& grad_too,
                                                          const Tensor& x, const Tensor& gain,
                                                          const Tensor& weight,
                                                          const Tensor& places) {
  Call call(x, gain, weight, places);
  auto& a = call.args;
  a.grad_y = Call::like_x(grad_y, "grad_y", x);
  a.grad_too = grad_too ? Call::like_x(*grad_too, "grad_too", x) : nullptr;
  const Tensor sums = empty({{a.units(), 1 + a.J, a.D}}, x.scalar_type());
  Tensor grad_x = imgfast::empty_like(x);
  Tensor grad_gain = imgfast::empty_like(gain), grad_weight = imgfast::empty_like(weight);
  a.grad_x = grad_x.data_ptr(), a.sums = sums.data_ptr();
  a.grad_gain = grad_gain.data_ptr(), a.grad_weight = grad_weight.data_ptr();
  const auto& kernels = cpu::kernels().neighbour_mix;
  call.run(kernels.backward);
  kernels.reduce(a);
  return {grad_x, grad_gain, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("neighbour_mix", TORCH_BOX(&neighbour_mix));
  m.impl("neighbour_mix_backward", TORCH_BOX(&neighbour_mix_backward));
}

}  // namespace imgfast
