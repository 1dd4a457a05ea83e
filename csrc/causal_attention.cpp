// Causal attention on the CPU: validate, share out the heads of the sequences, register. The
// kernels are in cpu/causal_attention-inl.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <tuple>

#include "cpu/dispatch.h"
#include "empty.h"
#include "share_out.h"
#include "tensor_dtype.h"

namespace imgfast {
namespace {

using torch::stable::Tensor;

struct Call {
  cpu::CausalAttentionArgs args{};
  int64_t N;

  Call(const Tensor& qkv, double scale) {
    STD_TORCH_CHECK(qkv.is_cpu() && qkv.dim() == 5 && qkv.size(2) == 3 && qkv.is_contiguous(),
                    "causal_attention: qkv must be dense [N, T, 3, H, D] on the CPU");
    args.dtype = dtype_of(qkv, "causal_attention", "qkv");
    STD_TORCH_CHECK(args.dtype == DType::kFloat32 || args.dtype == DType::kFloat64,
                    "causal_attention: qkv must be float32 or float64");
    N = qkv.size(0), args.T = qkv.size(1), args.H = qkv.size(3), args.D = qkv.size(4);
    args.scale = scale;
    args.qkv = qkv.data_ptr();
  }

  void run(decltype(cpu::CausalAttentionKernels::forward) kernel) const {
    const int64_t units = N * args.H, work = args.T * args.T * args.D;
    if (units == 0 || work == 0) return;
    share_out(
        units, work, cpu::kernels().causal_attention.scratch(args),
        [&](int64_t begin, int64_t end, void* scratch) { kernel(args, begin, end, scratch); });
  }
};

std::tuple<Tensor, Tensor> causal_attention(const Tensor& qkv, double scale) {
  Call call(qkv, scale);
  auto& a = call.args;
  Tensor out = empty({{call.N, a.T, a.H, a.D}}, qkv.scalar_type());
  Tensor logsumexp = empty({{call.N, a.H, a.T}}, qkv.scalar_type());
  a.out = out.data_ptr();
  a.logsumexp = logsumexp.data_ptr();
  call.run(cpu::kernels().causal_attention.forward);
  return {out, logsumexp};
}

Tensor causal_attention_backward(const Tensor& grad_out, const Tensor& qkv, const Tensor& logsumexp,
                                 double scale) {
  Call call(qkv, scale);
  auto& a = call.args;
  STD_TORCH_CHECK(grad_out.is_cpu() && grad_out.scalar_type() == qkv.scalar_type() &&
                      grad_out.numel() * 3 == qkv.numel(),
                  "causal_attention: grad_out must be [N, T, H, D] of qkv's dtype");
  STD_TORCH_CHECK(logsumexp.is_cpu() && logsumexp.scalar_type() == qkv.scalar_type() &&
                      logsumexp.is_contiguous() && logsumexp.numel() == call.N * a.H * a.T,
                  "causal_attention: logsumexp must be dense [N, H, T] of qkv's dtype");
  const Tensor dense = torch::stable::contiguous(grad_out);
  Tensor grad_qkv = empty({{call.N, a.T, 3, a.H, a.D}}, qkv.scalar_type());
  a.grad_out = dense.data_ptr();
  a.logsumexp = const_cast<void*>(logsumexp.data_ptr());
  a.grad_qkv = grad_qkv.data_ptr();
  call.run(cpu::kernels().causal_attention.backward);
  return grad_qkv;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&causal_attention));
  m.impl("causal_attention_backward", TORCH_BOX(&causal_attention_backward));
}

}  // namespace imgfast
