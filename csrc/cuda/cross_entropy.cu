// cross_entropy and the tiles of linear_cross_entropy on CUDA: validate, allocate, register. Which
// kernel runs is decided in cross_entropy_launch.cuh.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "cross_entropy_shape.h"
#include "cuda/cross_entropy_launch.cuh"
#include "tensor_dtype.h"

namespace imgfast::cuda {
namespace {

DType float_dtype_of(const Tensor& tensor, const char* argument) {
  const DType dtype = dtype_of(tensor, "cross_entropy", argument);
  STD_TORCH_CHECK(dtype != DType::kFloat64, "cross_entropy: ", argument,
                  " must be float32, bfloat16 or float16 on CUDA, got float64");
  return dtype;
}

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

Tensor as_float(const Tensor& given) {
  const Tensor tensor = given.scalar_type() == ScalarType::Float
                            ? given
                            : torch::stable::to(given, ScalarType::Float);
  return torch::stable::contiguous(tensor);
}

// The arguments that kernels take, of the options that all calls have.
void take_params(const CrossEntropyParams& params, CrossEntropyArgs& args) {
  args.rows = params.outer * params.inner;
  args.inner = params.inner;
  args.C = static_cast<int>(params.C);
  args.num_targets = static_cast<int>(params.num_targets);
  args.ignore_index = params.ignore_index;
  args.reduction = params.reduction;
  args.share = static_cast<float>(1 - params.label_smoothing);
  args.smooth =
      static_cast<float>(params.label_smoothing / static_cast<double>(params.num_classes));
  args.lam[0] = static_cast<float>(params.lam[0]);
  args.lam[1] = static_cast<float>(params.lam[1]);
  args.z_loss = static_cast<float>(params.z_loss);
}

// Runs a launcher on the current stream, with scratch that lives as long as the stream needs it.
void run(cudaError_t (*launcher)(const CrossEntropyArgs&, const CrossEntropyPlan&, float*,
                                 cudaStream_t),
         CrossEntropyArgs& args, const Tensor& like) {
  const CrossEntropyPlan plan = choose_cross_entropy(args);
  const Tensor workspace =
      torch::stable::new_empty(like, {{cross_entropy_workspace(args, plan)}}, ScalarType::Float);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
  STD_CUDA_CHECK(launcher(args, plan, floats(workspace), static_cast<cudaStream_t>(stream)));
}

// One call: the arguments point into the tensors, which are in forms that can be walked.
struct Call : CrossEntropyShape {
  CrossEntropyArgs args{};
  int32_t device;
  Tensor logits, target;
  std::optional<Tensor> other_target, weight;

  Call(const Tensor& input, const Tensor& given_target, const std::optional<Tensor>& given_other,
       const std::optional<Tensor>& given_weight, const CrossEntropyOptions& options)
      : CrossEntropyShape(input, given_other.has_value(), options),
        device(input.get_device_index()),
        logits(input),
        target(given_target),
        other_target(given_other) {
    take_params(params, args);
    args.dtype = float_dtype_of(input, "input");
    args.logits = walkable(logits);
    if (same_sizes(input.sizes(), target.sizes())) {
      STD_TORCH_CHECK(!other_target, "cross_entropy: a pair of targets must be classes");
      STD_TORCH_CHECK(is_here(target) && target.scalar_type() == input.scalar_type(),
                      "cross_entropy: probability targets must have the dtype and device of input");
      args.probabilities = walkable(target);
    } else {
      args.target[0] = take_classes(target);
      if (other_target) args.target[1] = take_classes(*other_target);
    }
    if (given_weight) {
      STD_TORCH_CHECK(
          is_here(*given_weight) && given_weight->dim() == 1 && given_weight->size(0) == params.C,
          "cross_entropy: weight must be [C = ", params.C, "] on the device of input");
      weight = as_float(*given_weight);
      args.weight = floats(*weight);
    }
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  bool is_here(const Tensor& tensor) const {
    return tensor.is_cuda() && tensor.get_device_index() == device;
  }

  const int64_t* take_classes(Tensor& given) const {
    STD_TORCH_CHECK(is_here(given) && given.scalar_type() == ScalarType::Long,
                    "cross_entropy: class targets must be int64 on the device of input");
    check_row_sizes(given);
    given = torch::stable::contiguous(given);
    return static_cast<const int64_t*>(given.data_ptr());
  }

  // [m, s, what the means divide by, and with `correct` a number for each row], as on the CPU.
  void use_stats(const Tensor& stats) {
    STD_TORCH_CHECK(is_here(stats) && stats.scalar_type() == ScalarType::Float &&
                        stats.is_contiguous() && stats.numel() >= 2 * rows + 4,
                    "cross_entropy: stats must be those of the forward pass");
    args.maximum = floats(stats);
    args.sum = args.maximum + rows;
    args.divisors = args.sum + rows;
    if (stats.numel() > 2 * rows + 4) args.correct = args.divisors + 4;
  }

  // The gradient at logits, in the strides of input where those are dense. Where it cannot be
  // walked in those, it is written in another layout first.
  struct Gradient {
    Tensor result, walked;

    Gradient(const Tensor& like, CrossEntropyArgs& args)
        : result(torch::stable::empty_like(like)), walked(result) {
      auto view = view_rows(result);
      if (!view) {
        walked = torch::stable::new_empty(like, like.sizes());
        view = view_rows(walked);
      }
      args.grad_logits = *view;
    }

    const Tensor& finish() {
      if (walked.get() != result.get()) torch::stable::copy_(result, walked);
      return result;
    }
  };
};

// The loss and stats; and the gradient at input if there is to be one.
std::tuple<Tensor, Tensor, std::optional<Tensor>> run_forward(
    const Tensor& input, const Tensor& target, const std::optional<Tensor>& other_target,
    const std::optional<Tensor>& weight, const CrossEntropyOptions& options, bool float_loss,
    bool correct, bool with_gradient) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Call call(input, target, other_target, weight, options);
  CrossEntropyArgs& args = call.args;
  STD_TORCH_CHECK(!correct || (args.target[0] && !other_target),
                  "cross_entropy: correctness is of one class target");
  const bool reduced = call.params.reduction != Reduction::kNone;
  args.loss_dtype = float_loss ? DType::kFloat32 : args.dtype;
  Tensor loss = torch::stable::new_empty(
      input, Sizes(call.row_sizes.data(), reduced ? 0 : call.row_sizes.size()),
      float_loss ? ScalarType::Float : input.scalar_type());
  args.loss = loss.data_ptr();
  const Tensor stats =
      torch::stable::new_empty(input, {{(correct ? 3 : 2) * call.rows + 4}}, ScalarType::Float);
  call.use_stats(stats);
  std::optional<Call::Gradient> gradient;
  if (with_gradient) gradient.emplace(input, args);

  run(cross_entropy_forward, args, input);
  return {loss, stats, gradient ? std::optional<Tensor>(gradient->finish()) : std::nullopt};
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const Tensor& target,
                                   const std::optional<Tensor>& other_target,
                                   const std::optional<Tensor>& weight, int64_t reduction,
                                   int64_t ignore_index, double label_smoothing, double lam,
                                   double z_loss, bool float_loss, bool correct) {
  auto [loss, stats, gradient] = run_forward(
      input, target, other_target, weight, {reduction, ignore_index, label_smoothing, lam, z_loss},
      float_loss, correct, false);
  return {loss, stats};
}

std::tuple<Tensor, Tensor, Tensor> with_gradient(const Tensor& input, const Tensor& target,
                                                 const std::optional<Tensor>& other_target,
                                                 const std::optional<Tensor>& weight,
                                                 int64_t reduction, int64_t ignore_index,
                                                 double label_smoothing, double lam, double z_loss,
                                                 bool float_loss, bool correct) {
  auto [loss, stats, gradient] = run_forward(
      input, target, other_target, weight, {reduction, ignore_index, label_smoothing, lam, z_loss},
      float_loss, correct, true);
  return {loss, stats, *gradient};
}

Tensor backward(const Tensor& grad_loss, const std::optional<Tensor>& grad_lse, const Tensor& input,
                const Tensor& target, const std::optional<Tensor>& other_target,
                const std::optional<Tensor>& weight, const Tensor& stats, int64_t reduction,
                int64_t ignore_index, double label_smoothing, double lam, double z_loss) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Call call(input, target, other_target, weight,
            {reduction, ignore_index, label_smoothing, lam, z_loss});
  CrossEntropyArgs& args = call.args;
  call.use_stats(stats);
  args.correct = nullptr;  // which backward has no use for
  const bool reduced = call.params.reduction != Reduction::kNone;
  STD_TORCH_CHECK(call.is_here(grad_loss) && grad_loss.numel() == (reduced ? 1 : call.rows),
                  "cross_entropy: grad_loss must have the shape of the loss");
  args.loss_dtype = float_dtype_of(grad_loss, "grad_loss");
  const Tensor dense = torch::stable::contiguous(grad_loss);
  args.grad_loss = dense.data_ptr();
  std::optional<Tensor> of_lse;
  if (grad_lse) {
    STD_TORCH_CHECK(call.is_here(*grad_lse) && grad_lse->numel() == call.rows,
                    "cross_entropy: grad_lse must have a number for each row");
    of_lse = as_float(*grad_lse);
    args.grad_lse = floats(*of_lse);
  }
  Call::Gradient gradient(input, args);
  run(cross_entropy_backward, args, input);
  return gradient.finish();
}

// What linear_cross_entropy does with a tile of logits [n, c].
struct TileCall {
  CrossEntropyArgs args{};
  Tensor target;

  TileCall(const Tensor& logits, const Tensor& given_target, const std::optional<Tensor>& weight,
           const Tensor& state, int64_t first_class, int64_t num_classes, double label_smoothing)
      : target(given_target) {
    STD_TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(),
                    "cross_entropy_tile: logits must be a dense matrix");
    const int64_t n = logits.size(0), c = logits.size(1);
    STD_TORCH_CHECK(first_class >= 0 && c <= kMaxClasses && first_class + c <= num_classes,
                    "cross_entropy_tile: classes ", first_class, " to ", first_class + c,
                    " are not among ", num_classes);
    CrossEntropyParams params{};
    params.outer = 1, params.inner = n, params.C = c;
    params.num_classes = num_classes;
    params.label_smoothing = label_smoothing;
    params.reduction = Reduction::kNone;
    params.num_targets = 1;
    params.lam[0] = 1;
    take_params(params, args);
    args.first_class = first_class;
    args.dtype = float_dtype_of(logits, "logits");
    args.loss_dtype = DType::kFloat32;
    args.logits = {logits.data_ptr(), 0, c, 1};

    const auto is_here = [&](const Tensor& tensor) {
      return tensor.is_cuda() && tensor.get_device_index() == logits.get_device_index();
    };
    if (target.dim() == 2) {
      STD_TORCH_CHECK(is_here(target) && target.scalar_type() == logits.scalar_type() &&
                          target.size(0) == n && target.size(1) == c,
                      "cross_entropy_tile: probabilities must have the shape and dtype of logits");
      if (target.stride(1) != 1) target = torch::stable::contiguous(target);
      args.probabilities = {target.data_ptr(), 0, target.stride(0), 1};
    } else {
      STD_TORCH_CHECK(is_here(target) && target.scalar_type() == ScalarType::Long &&
                          target.dim() == 1 && target.size(0) == n,
                      "cross_entropy_tile: class targets must be int64 [", n, "]");
      target = torch::stable::contiguous(target);
      args.target[0] = static_cast<const int64_t*>(target.data_ptr());
    }
    if (weight) {
      STD_TORCH_CHECK(is_here(*weight) && weight->scalar_type() == ScalarType::Float &&
                          weight->dim() == 1 && weight->size(0) == num_classes &&
                          weight->is_contiguous(),
                      "cross_entropy_tile: weight must be float32 [", num_classes, "]");
      args.weight = floats(*weight) + first_class;
    }
    STD_TORCH_CHECK(is_here(state) && state.scalar_type() == ScalarType::Float &&
                        state.dim() == 2 && state.size(0) == 4 && state.size(1) == n &&
                        (state.stride(1) == 1 || n <= 1),
                    "cross_entropy_tile: state must be float32 [4, ", n, "]");
    float** const rows[] = {&args.maximum, &args.sum, &args.mass, &args.dot};
    for (int64_t i = 0; i < 4; i++) *rows[i] = floats(state) + i * state.stride(0);
  }

  TileCall(const TileCall&) = delete;
  TileCall& operator=(const TileCall&) = delete;

  bool is_empty() const { return args.rows == 0 || args.C == 0; }
};

void tile(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
          const Tensor& state, int64_t first_class, int64_t num_classes, double label_smoothing) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  TileCall call(logits, target, weight, state, first_class, num_classes, label_smoothing);
  if (!call.is_empty()) run(cross_entropy_forward, call.args, logits);
}

void tile_gradient_(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight,
                    const Tensor& state, const Tensor& grad_rows, int64_t first_class,
                    int64_t num_classes, double label_smoothing) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  TileCall call(logits, target, weight, state, first_class, num_classes, label_smoothing);
  STD_TORCH_CHECK(grad_rows.is_cuda() &&
                      grad_rows.get_device_index() == logits.get_device_index() &&
                      grad_rows.scalar_type() == ScalarType::Float && grad_rows.dim() == 1 &&
                      grad_rows.size(0) == call.args.rows,
                  "cross_entropy_tile: grad_rows must be float32 [", call.args.rows, "]");
  const Tensor dense = torch::stable::contiguous(grad_rows);
  call.args.grad_loss = dense.data_ptr();
  call.args.grad_logits = call.args.logits;  // in place
  if (!call.is_empty()) run(cross_entropy_backward, call.args, logits);
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) {
  m.impl("cross_entropy", TORCH_BOX(&forward));
  m.impl("cross_entropy_with_gradient", TORCH_BOX(&with_gradient));
  m.impl("cross_entropy_backward", TORCH_BOX(&backward));
  m.impl("cross_entropy_tile", TORCH_BOX(&tile));
  m.impl("cross_entropy_tile_gradient_", TORCH_BOX(&tile_gradient_));
}

}  // namespace
}  // namespace imgfast::cuda
