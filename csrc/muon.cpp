// A step of Muon on the CPU: validate, share out the matrices, register. The kernel is in
// cpu/muon-inl.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/scratch.h"
#include "tensor_dtype.h"

namespace imgfast {
namespace {

using torch::stable::Tensor;

thread_local cpu::Scratch thread_buffer;

// Whether the first dimension's entries are rows that lie one behind the other, in any order
// within.
bool is_matrix(const Tensor& t) {
  if (t.dim() < 2) return false;
  int64_t reach = 1;
  for (int64_t d = 0; d < t.dim(); d++) reach += (t.size(d) - 1) * t.stride(d);
  return reach == t.numel() && (t.size(0) == 1 || t.stride(0) == t.numel() / t.size(0));
}

cpu::MuonMatrix matrix_of(const Tensor& weight, const Tensor& grad, const Tensor& average) {
  STD_TORCH_CHECK(weight.is_cpu() && weight.numel() > 0 && is_matrix(weight),
                  "muon_: weights must be dense [K, ...] on the CPU, of at least one number");
  for (const Tensor* other : {&grad, &average}) {
    bool alike = other->is_cpu() && other->dim() == weight.dim() &&
                 other->scalar_type() == weight.scalar_type();
    for (int64_t d = 0; alike && d < weight.dim(); d++)
      alike = other->size(d) == weight.size(d) &&
              (weight.size(d) == 1 || other->stride(d) == weight.stride(d));
    STD_TORCH_CHECK(alike, "muon_: grads and averages must be as their weights");
  }
  return {weight.size(0), weight.numel() / weight.size(0), weight.data_ptr(), grad.data_ptr(),
          average.data_ptr()};
}

void muon_(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads,
           const std::vector<Tensor>& averages, double momentum, double keep, double step,
           const std::vector<double>& coefficients) {
  STD_TORCH_CHECK(grads.size() == weights.size() && averages.size() == weights.size(),
                  "muon_: weights, grads and averages must be equally many");
  STD_TORCH_CHECK(!coefficients.empty() && coefficients.size() % 3 == 0,
                  "muon_: coefficients must be three for each polynomial");
  if (weights.empty()) return;
  const cpu::MuonArgs args{
      dtype_of(weights[0], "muon_", "weights"),     momentum, keep, step, coefficients.data(),
      static_cast<int64_t>(coefficients.size() / 3)};
  STD_TORCH_CHECK(args.dtype == DType::kFloat32 || args.dtype == DType::kFloat64,
                  "muon_: weights must be float32 or float64");
  const auto& kernels = cpu::kernels().muon;
  std::vector<cpu::MuonMatrix> matrices;
  int64_t scratch = 0;
  for (size_t i = 0; i < weights.size(); i++) {
    STD_TORCH_CHECK(weights[i].scalar_type() == weights[0].scalar_type(),
                    "muon_: weights must be of one dtype");
    matrices.push_back(matrix_of(weights[i], grads[i], averages[i]));
    scratch = std::max(scratch, kernels.scratch(args, matrices.back()));
  }
  // The largest first, each by the thread that is free: so the last ones end together.
  const auto work = [](const cpu::MuonMatrix& m) { return m.K * m.L * std::min(m.K, m.L); };
  std::stable_sort(matrices.begin(), matrices.end(),
                   [&](const auto& a, const auto& b) { return work(a) > work(b); });
  const auto count = static_cast<int64_t>(matrices.size());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) {
    void* const buffer = thread_buffer.reserve(scratch);
    for (int64_t i; (i = next++) < count;) kernels.update(args, matrices[i], buffer);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) { m.impl("muon_", TORCH_BOX(&muon_)); }

}  // namespace imgfast
