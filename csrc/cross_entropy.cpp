// cross_entropy on the CPU: share out the rows, add up, register. What a call is made of is in
// cross_entropy_call.h, the kernels are in cpu/cross_entropy*-inl.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/scratch.h"
#include "cross_entropy_call.h"

namespace imgfast {
namespace {

thread_local cpu::Scratch thread_buffer;

// What function(i, scratch) gives for each of n units, in parallel if there is more than one.
template <class Result, class Function>
std::vector<Result> map_units(const cpu::CrossEntropyArgs& args, int64_t n, Function function) {
  const int64_t scratch = cpu::kernels().cross_entropy.scratch(args);
  std::vector<Result> results(n);
  const auto range = [&](int64_t begin, int64_t end) {
    void* buffer = thread_buffer.reserve(scratch);
    for (int64_t i = begin; i < end; i++) results[i] = function(i, buffer);
  };
  if (n == 1) {
    range(0, 1);
  } else if (n > 1) {
    torch::stable::parallel_for(0, n, 1, range);
  }
  return results;
}

// What kernel(args, first row, last row + 1, scratch) gives for each chunk of the rows. Chunks, and
// parts, depend on the shape alone, so that sums over them do not depend on the number of threads.
template <class Result>
std::vector<Result> map_chunks(const cpu::CrossEntropyArgs& args, int64_t rows,
                               Result (*kernel)(const cpu::CrossEntropyArgs&, int64_t, int64_t,
                                                void*)) {
  const int64_t chunk = cpu::kernels().cross_entropy.chunk_rows(args);
  return map_units<Result>(args, (rows + chunk - 1) / chunk, [&](int64_t i, void* scratch) {
    return kernel(args, i * chunk, std::min(rows, (i + 1) * chunk), scratch);
  });
}

// What function(part i, i, scratch) gives for each part of `classes` of the classes.
template <class Result, class Function>
std::vector<Result> map_parts(const CrossEntropyCall& call, int64_t classes, Function function) {
  const int64_t C = call.params.C;
  return map_units<Result>(call.args, (C + classes - 1) / classes, [&](int64_t i, void* scratch) {
    CrossEntropyCall::Part part(call, i * classes, std::min(classes, C - i * classes));
    return function(part, i, scratch);
  });
}

// If the classes are to be shared out: [parts, 4, rows], which forward joins.
std::optional<Tensor> normalise_parts(CrossEntropyCall& call) {
  const cpu::CrossEntropyKernels& kernels = cpu::kernels().cross_entropy;
  const int64_t classes = kernels.part_classes(call.args);
  if (classes >= call.params.C) return std::nullopt;
  call.args.num_parts = (call.params.C + classes - 1) / classes;
  Tensor parts = empty({{call.args.num_parts, 4, call.rows}}, call.compute);
  char* const data = static_cast<char*>(parts.data_ptr());
  const int64_t row_bytes = call.rows * call.width();
  map_parts<char>(call, classes, [&](CrossEntropyCall::Part& part, int64_t i, void* scratch) {
    part.use_parts(data + 4 * i * row_bytes, row_bytes);
    kernels.normalise_part(part.args, 0, call.rows, scratch);
    return 0;
  });
  call.args.parts = data;
  return parts;
}

// The gradient, from the normaliser.
void run_backward(const CrossEntropyCall& call) {
  const cpu::CrossEntropyKernels& kernels = cpu::kernels().cross_entropy;
  const int64_t classes = kernels.part_classes(call.args);
  const auto bad_rows =
      classes >= call.params.C
          ? map_chunks(call.args, call.rows, kernels.backward)
          : map_parts<int64_t>(call, classes,
                               [&](const CrossEntropyCall::Part& part, int64_t, void* scratch) {
                                 return kernels.backward(part.args, 0, call.rows, scratch);
                               });
  for (int64_t bad_row : bad_rows) call.check_target(bad_row);
}

// The loss and stats; and the gradient at input if there is to be one.
std::tuple<Tensor, Tensor, std::optional<Tensor>> run_forward(
    const Tensor& input, const Tensor& target, const std::optional<Tensor>& other_target,
    const std::optional<Tensor>& weight, const CrossEntropyOptions& options, bool float_loss,
    bool correct, bool with_gradient) {
  CrossEntropyCall call(input, target, other_target, weight, options);
  cpu::CrossEntropyArgs& args = call.args;
  STD_TORCH_CHECK(!correct || (args.target[0] && !other_target),
                  "cross_entropy: correctness is of one class target");
  const bool reduced = call.params.reduction != Reduction::kNone;
  const ScalarType loss_dtype = float_loss ? call.compute : input.scalar_type();
  args.loss_dtype = float_loss && args.dtype != DType::kFloat64 ? DType::kFloat32 : args.dtype;
  Tensor loss =
      empty(Sizes(call.row_sizes.data(), reduced ? 0 : call.row_sizes.size()), loss_dtype);
  Tensor stats = call.new_stats(correct);
  call.use_stats(stats);
  if (!reduced) args.loss = loss.data_ptr();

  std::optional<CrossEntropyCall::Gradient> gradient;
  if (with_gradient) {
    gradient.emplace(input, args);
    if (call.params.reduction == Reduction::kMean) call.set_divisors(call.sum_targets());
    call.set_grad_scales(1);
  }

  const std::optional<Tensor> parts = normalise_parts(call);
  cpu::CrossEntropySums sums{};
  for (const cpu::CrossEntropySums& part :
       map_chunks(args, call.rows, cpu::kernels().cross_entropy.forward)) {
    call.check_target(part.bad_row);
    for (int64_t k = 0; k < call.params.num_targets; k++) {
      sums.loss[k] += part.loss[k];
      sums.weight[k] += part.weight[k];
      sums.square[k] += part.square[k];
      sums.count[k] += part.count[k];
    }
  }
  call.count_probabilities(sums);
  call.set_divisors(sums);
  if (reduced) call.write_reduced(sums, loss.data_ptr(), loss_dtype);
  if (gradient && parts) run_backward(call);
  return {loss, stats, gradient ? std::optional<Tensor>(gradient->finish()) : std::nullopt};
}

std::tuple<Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target,
                                         const std::optional<Tensor>& other_target,
                                         const std::optional<Tensor>& weight, int64_t reduction,
                                         int64_t ignore_index, double label_smoothing, double lam,
                                         double z_loss, bool float_loss, bool correct) {
  auto [loss, stats, gradient] = run_forward(
      input, target, other_target, weight, {reduction, ignore_index, label_smoothing, lam, z_loss},
      float_loss, correct, false);
  return {loss, stats};
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_with_gradient(
    const Tensor& input, const Tensor& target, const std::optional<Tensor>& other_target,
    const std::optional<Tensor>& weight, int64_t reduction, int64_t ignore_index,
    double label_smoothing, double lam, double z_loss, bool float_loss, bool correct) {
  auto [loss, stats, gradient] = run_forward(
      input, target, other_target, weight, {reduction, ignore_index, label_smoothing, lam, z_loss},
      float_loss, correct, true);
  return {loss, stats, *gradient};
}

Tensor cross_entropy_backward(const Tensor& grad_loss, const std::optional<Tensor>& grad_lse,
                              const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& other_target,
                              const std::optional<Tensor>& weight, const Tensor& stats,
                              int64_t reduction, int64_t ignore_index, double label_smoothing,
                              double lam, double z_loss) {
  CrossEntropyCall call(input, target, other_target, weight,
                        {reduction, ignore_index, label_smoothing, lam, z_loss});
  cpu::CrossEntropyArgs& args = call.args;
  call.use_stats(stats);
  const auto dense = [&](const Tensor& given) {
    const Tensor tensor =
        given.scalar_type() == call.compute ? given : torch::stable::to(given, call.compute);
    return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
  };
  const bool reduced = call.params.reduction != Reduction::kNone;
  STD_TORCH_CHECK(grad_loss.is_cpu() && grad_loss.numel() == (reduced ? 1 : call.rows),
                  "cross_entropy: grad_loss must have the shape of the loss");
  const Tensor grad = dense(grad_loss);
  if (reduced) {
    call.set_grad_scales(call.read(grad.data_ptr(), 0));
  } else {
    args.grad_loss = grad.data_ptr();
    call.set_grad_scales(1);
  }
  std::optional<Tensor> of_lse;
  if (grad_lse) {
    STD_TORCH_CHECK(grad_lse->is_cpu() && grad_lse->numel() == call.rows,
                    "cross_entropy: grad_lse must have a number for each row");
    of_lse = dense(*grad_lse);
    args.grad_lse = of_lse->data_ptr();
  }
  CrossEntropyCall::Gradient gradient(input, args);
  run_backward(call);
  return gradient.finish();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  m.impl("cross_entropy_with_gradient", TORCH_BOX(&cross_entropy_with_gradient));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
}

}  // namespace imgfast
