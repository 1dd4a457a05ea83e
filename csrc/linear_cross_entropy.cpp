// What linear_cross_entropy does with a tile of logits, on the CPU: validate, share out the rows,
// register. The kernels are in cpu/cross_entropy_tile-inl.h; the products and the order of the
// tiles are in imgfast/ops/linear_cross_entropy_tiles.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "cpu/dispatch.h"
#include "cpu/scratch.h"
#include "cross_entropy.h"
#include "tensor_dtype.h"

namespace imgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kWorthAThread = 1 << 15;  // logits below which a thread does not pay

thread_local cpu::Scratch thread_buffer;

struct TileCall {
  CrossEntropyParams params{};
  cpu::CrossEntropyArgs args{};
  int64_t n;
  std::optional<Tensor> dense_target;

  TileCall(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
           const Tensor& state, int64_t first_class, int64_t num_classes, double label_smoothing) {
    STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 2 && logits.is_contiguous(),
                    "cross_entropy_tile: logits must be a dense matrix on the CPU");
    n = logits.size(0);
    params.outer = 1, params.inner = n, params.C = logits.size(1);
    params.num_classes = num_classes;
    params.num_targets = 1;
    params.ignore_index = -1;
    params.label_smoothing = label_smoothing;
    STD_TORCH_CHECK(
        first_class >= 0 && params.C <= kMaxClasses && first_class + params.C <= num_classes,
        "cross_entropy_tile: classes ", first_class, " to ", first_class + params.C,
        " are not among ", num_classes);
    args.params = &params;
    args.dtype = dtype_of(logits, "cross_entropy_tile", "logits");
    const int64_t width = args.dtype == DType::kFloat64 ? 8 : 4;
    const ScalarType compute = width == 8 ? ScalarType::Double : ScalarType::Float;
    args.logits = {logits.data_ptr(), 0, params.C, 1};
    args.first_class = first_class;

    if (target.dim() == 2) {
      STD_TORCH_CHECK(target.is_cpu() && target.scalar_type() == logits.scalar_type() &&
                          target.size(0) == n && target.size(1) == params.C,
                      "cross_entropy_tile: probabilities must have the shape and dtype of logits");
      dense_target = target.stride(1) == 1 ? target : torch::stable::contiguous(target);
      args.probabilities = {dense_target->data_ptr(), 0, dense_target->stride(0), 1};
    } else {
      STD_TORCH_CHECK(target.is_cpu() && target.scalar_type() == ScalarType::Long &&
                          target.dim() == 1 && target.size(0) == n,
                      "cross_entropy_tile: class targets must be int64 [", n, "]");
      dense_target = torch::stable::contiguous(target);
      args.target[0] = static_cast<const int64_t*>(dense_target->data_ptr());
    }
    if (weight) {
      STD_TORCH_CHECK(weight->is_cpu() && weight->scalar_type() == compute && weight->dim() == 1 &&
                          weight->size(0) == num_classes && weight->is_contiguous(),
                      "cross_entropy_tile: weight must be [", num_classes, "] of the compute type");
      args.weight = static_cast<const char*>(weight->data_ptr()) + first_class * width;
    }
    STD_TORCH_CHECK(state.is_cpu() && state.scalar_type() == compute && state.dim() == 2 &&
                        state.size(0) == 4 && state.size(1) == n &&
                        (state.stride(1) == 1 || n <= 1),
                    "cross_entropy_tile: state must be [4, ", n, "] of the compute type");
    void** const rows[] = {&args.maximum, &args.sum, &args.mass, &args.dot};
    for (int64_t i = 0; i < 4; i++) {
      *rows[i] = static_cast<char*>(state.data_ptr()) + i * state.stride(0) * width;
    }
  }

  TileCall(const TileCall&) = delete;
  TileCall& operator=(const TileCall&) = delete;

  // Rows do not depend on one another.
  void run(decltype(cpu::CrossEntropyKernels::tile) kernel) const {
    if (n == 0 || params.C == 0) return;
    const int64_t scratch = cpu::kernels().cross_entropy.scratch(args);
    const int64_t grain = (kWorthAThread + params.C - 1) / params.C;
    torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
      kernel(args, begin, end, thread_buffer.reserve(scratch));
    });
  }
};

void cross_entropy_tile(const Tensor& logits, const Tensor& target,
                        const std::optional<Tensor>& weight, const Tensor& state,
                        int64_t first_class, int64_t num_classes, double label_smoothing) {
  const TileCall call(logits, target, weight, state, first_class, num_classes, label_smoothing);
  call.run(cpu::kernels().cross_entropy.tile);
}

void cross_entropy_tile_gradient_(const Tensor& logits, const Tensor& target,
                                  const std::optional<Tensor>& weight, const Tensor& state,
                                  const Tensor& grad_rows, int64_t first_class, int64_t num_classes,
                                  double label_smoothing) {
  TileCall call(logits, target, weight, state, first_class, num_classes, label_smoothing);
  STD_TORCH_CHECK(grad_rows.is_cpu() && grad_rows.scalar_type() == state.scalar_type() &&
                      grad_rows.dim() == 1 && grad_rows.size(0) == call.n,
                  "cross_entropy_tile: grad_rows must be [", call.n, "] of the compute type");
  const Tensor dense = torch::stable::contiguous(grad_rows);
  call.args.grad_loss = dense.data_ptr();
  call.args.grad_scale[0] = 1;
  call.args.grad_logits = call.args.logits;  // in place
  call.run(cpu::kernels().cross_entropy.tile_gradient);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("cross_entropy_tile", TORCH_BOX(&cross_entropy_tile));
  m.impl("cross_entropy_tile_gradient_", TORCH_BOX(&cross_entropy_tile_gradient_));
}

}  // namespace imgfast
