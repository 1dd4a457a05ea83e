// The feed-forward layers of a transformer on the CPU: validate, share out rows and weights,
// register. The kernels are in cpu/feed_forward-inl.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>

#include "cpu/dispatch.h"
#include "empty.h"
#include "share_out.h"
#include "tensor_dtype.h"

namespace imgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Call {
  cpu::FeedForwardArgs args{};

  Call(const Tensor& x, const Tensor& up, const Tensor& down) {
    STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && x.is_contiguous(),
                    "feed_forward: x must be dense [N, D] on the CPU");
    auto& a = args;
    a.dtype = dtype_of(x, "feed_forward", "x");
    STD_TORCH_CHECK(a.dtype == DType::kFloat32 || a.dtype == DType::kFloat64,
                    "feed_forward: x must be float32 or float64");
    a.N = x.size(0), a.D = x.size(1), a.H = up.dim() ? up.size(0) : 0;
    check(up, "up", a.H, a.D, "[H, D]", x);
    check(down, "down", a.D, a.H, "[D, H]", x);
    a.x = x.data_ptr(), a.up = up.data_ptr(), a.down = down.data_ptr();
  }

  static void check(const Tensor& t, const char* name, int64_t rows, int64_t columns,
                    const char* shape, const Tensor& x) {
    STD_TORCH_CHECK(t.is_cpu() && t.dim() == 2 && t.size(0) == rows && t.size(1) == columns &&
                        t.scalar_type() == x.scalar_type() && t.is_contiguous(),
                    "feed_forward: ", name, " must be dense ", shape, " of x's dtype");
  }

  void run(decltype(cpu::FeedForwardKernels::forward) kernel, int64_t units) const {
    if (units == 0 || args.D == 0) return;
    share_out(
        units, args.N * args.D * args.H / units, cpu::kernels().feed_forward.scratch(args),
        [&](int64_t begin, int64_t end, void* scratch) { kernel(args, begin, end, scratch); });
  }
};

// Most of which is never touched: large pages would be filled with zeros whole.
Tensor lists(int64_t units, int64_t bytes) {
  return empty_on(aoti_torch_device_type_cpu(), 0, {{units, bytes}}, ScalarType::Byte, false);
}

std::tuple<Tensor, Tensor> feed_forward(const Tensor& x, const Tensor& up, const Tensor& down,
                                        double threshold, const std::optional<Tensor>& residual) {
  STD_TORCH_CHECK(threshold >= 0, "feed_forward: threshold must be at least 0, got ", threshold);
  Call call(x, up, down);
  auto& a = call.args;
  if (residual) Call::check(*residual, "residual", a.N, a.D, "[N, D]", x);
  a.residual = residual ? residual->data_ptr() : nullptr;
  Tensor y = imgfast::empty_like(x);
  Tensor h = lists(a.units(), a.kept_bytes());
  a.threshold = threshold;
  a.y = y.data_ptr(), a.h = h.data_ptr();
  call.run(cpu::kernels().feed_forward.forward, a.units());
  return {y, h};
}

std::tuple<Tensor, Tensor, Tensor> feed_forward_backward(const Tensor& grad_y, const Tensor& x,
                                                         const Tensor& up, const Tensor& down,
                                                         const Tensor& h) {
  Call call(x, up, down);
  auto& a = call.args;
  Call::check(grad_y, "grad_y", a.N, a.D, "[N, D]", x);
  STD_TORCH_CHECK(h.is_cpu() && h.scalar_type() == ScalarType::Byte && h.is_contiguous() &&
                      h.numel() == a.units() * a.kept_bytes(),
                  "feed_forward: h must be what forward made");
  Tensor grad_x = imgfast::empty_like(x);
  const Tensor columns = lists(a.units(), a.column_bytes());
  Tensor grad_up = imgfast::empty_like(up), grad_down = imgfast::empty_like(down);
  a.grad_y = grad_y.data_ptr(), a.h = h.data_ptr();
  a.grad_x = grad_x.data_ptr(), a.columns = columns.data_ptr();
  a.grad_up = grad_up.data_ptr(), a.grad_down = grad_down.data_ptr();
  const auto& kernels = cpu::kernels().feed_forward;
  call.run(kernels.backward_rows, a.units());
  call.run(kernels.backward_weights, a.tiles());
  return {grad_x, grad_up, grad_down};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("feed_forward", TORCH_BOX(&feed_forward));
  m.impl("feed_forward_backward", TORCH_BOX(&feed_forward_backward));
}

}  // namespace imgfast
