// The nearest code of each row on the CPU: validate, share out the rows, register. The kernel is in
// cpu/nearest_code-inl.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "cpu/dispatch.h"
#include "empty.h"
#include "share_out.h"
#include "tensor_dtype.h"

namespace imgfast {
namespace {

using torch::stable::Tensor;

Tensor nearest_code(const Tensor& rows, const Tensor& book) {
  STD_TORCH_CHECK(rows.is_cpu() && rows.dim() == 2, "nearest_code: rows must be [N, D] on the CPU");
  STD_TORCH_CHECK(book.is_cpu() && book.dim() == 2 && book.size(1) == rows.size(1) &&
                      book.scalar_type() == rows.scalar_type(),
                  "nearest_code: book must be [K, D] of rows' D and dtype");
  STD_TORCH_CHECK(book.size(0) >= 1 && book.size(0) <= cpu::kMaxCodes,
                  "nearest_code: book must have 1 to ", cpu::kMaxCodes, " codes, got ",
                  book.size(0));
  const DType dtype = dtype_of(rows, "nearest_code", "rows");
  STD_TORCH_CHECK(dtype == DType::kFloat32 || dtype == DType::kFloat64,
                  "nearest_code: rows must be float32 or float64");
  const Tensor x = torch::stable::contiguous(rows), b = torch::stable::contiguous(book);
  Tensor codes = empty({{rows.size(0)}}, torch::headeronly::ScalarType::Long);
  const cpu::NearestCodeArgs args{rows.size(0),
                                  book.size(0),
                                  rows.size(1),
                                  dtype,
                                  x.data_ptr(),
                                  b.data_ptr(),
                                  static_cast<int64_t*>(codes.data_ptr())};
  if (args.N == 0) return codes;
  const auto& kernels = cpu::kernels().nearest_code;
  const int64_t units = kernels.units(args);
  share_out(
      units, args.N * args.K * args.D / units, kernels.scratch(args),
      [&](int64_t begin, int64_t end, void* scratch) { kernels.find(args, begin, end, scratch); });
  return codes;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) { m.impl("nearest_code", TORCH_BOX(&nearest_code)); }

}  // namespace imgfast
