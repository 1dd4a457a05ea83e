// One call of cross_entropy on the CPU: its arguments, validated, and the memory that it works on.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/cross_entropy.h"
#include "cpu/simd/scalar.h"
#include "cross_entropy_shape.h"
#include "empty.h"
#include "tensor_dtype.h"

namespace imgfast {

// Gradients from here on are stored past the cache: they would drive out what is still to be read,
// and be read themselves before they are written.
inline constexpr int64_t kStreamedBytes = 32 << 20;

// The tensors are kept in forms that can be walked, which the arguments point into.
struct CrossEntropyCall : CrossEntropyShape {
  cpu::CrossEntropyArgs args{};
  ScalarType compute;
  Tensor logits, target;
  std::optional<Tensor> other_target, weight;

  CrossEntropyCall(const Tensor& input, const Tensor& given_target,
                   const std::optional<Tensor>& given_other,
                   const std::optional<Tensor>& given_weight, const CrossEntropyOptions& options)
      : CrossEntropyShape(input, given_other.has_value(), options),
        logits(input),
        target(given_target),
        other_target(given_other) {
    STD_TORCH_CHECK(input.is_cpu() && target.is_cpu(),
                    "cross_entropy: input and target must be on the CPU");
    args.params = &params;
    args.dtype = dtype_of(input, "cross_entropy", "input");
    compute = args.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
    args.logits = walkable(logits);
    if (same_sizes(input.sizes(), target.sizes())) {
      STD_TORCH_CHECK(!other_target, "cross_entropy: a pair of targets must be classes");
      STD_TORCH_CHECK(target.scalar_type() == input.scalar_type(),
                      "cross_entropy: probability targets must have the dtype of input");
      args.probabilities = walkable(target);
    } else {
      args.target[0] = take_classes(target);
      if (other_target) args.target[1] = take_classes(*other_target);
    }
    args.weight_sum = static_cast<double>(params.C);
    if (given_weight) take_weight(*given_weight);
  }

  CrossEntropyCall(const CrossEntropyCall&) = delete;
  CrossEntropyCall& operator=(const CrossEntropyCall&) = delete;

  // [m, s, what the means divide by: each target's weights and rows, and with `correct` a number
  // for each row].
  Tensor new_stats(bool correct) const { return empty({{(correct ? 3 : 2) * rows + 4}}, compute); }

  void use_stats(const Tensor& stats) {
    STD_TORCH_CHECK(stats.is_cpu() && stats.scalar_type() == compute && stats.is_contiguous() &&
                        stats.numel() >= 2 * rows + 4,
                    "cross_entropy: stats must be those of the forward pass");
    char* data = static_cast<char*>(stats.data_ptr());
    args.maximum = data;
    args.sum = data + rows * width();
    divisors_ = data + 2 * rows * width();
    if (stats.numel() > 2 * rows + 4) args.correct = data + (2 * rows + 4) * width();
  }

  int64_t width() const { return compute == ScalarType::Double ? 8 : 4; }

  // Number i of those of the compute type at data.
  double read(const void* data, int64_t i) const {
    return compute == ScalarType::Double ? static_cast<const double*>(data)[i]
                                         : static_cast<const float*>(data)[i];
  }

  void set_divisors(const cpu::CrossEntropySums& sums) {
    for (int64_t k = 0; k < 2; k++) {
      write(divisors_, compute, k, sums.weight[k]);
      write(divisors_, compute, 2 + k, sums.count[k]);
    }
  }

  // What the rows' gradients are multiplied by, from the gradient at the reduced loss, or from 1.
  void set_grad_scales(double grad) {
    for (int64_t k = 0; k < params.num_targets; k++) {
      const bool mean = params.reduction == Reduction::kMean;
      args.grad_scale[k] = grad * params.lam[k] / (mean ? read(divisors_, k) : 1);
      args.grad_z_scale[k] =
          grad * params.lam[k] * params.z_loss / (mean ? read(divisors_, 2 + k) : 1);
    }
  }

  // Of dtype, of the sums of all rows.
  void write_reduced(const cpu::CrossEntropySums& sums, void* loss, ScalarType dtype) const {
    double value = 0;
    for (int64_t k = 0; k < params.num_targets; k++) {
      const bool mean = params.reduction == Reduction::kMean;
      double of_target = sums.loss[k] / (mean ? sums.weight[k] : 1);
      if (params.z_loss != 0) {
        of_target += params.z_loss * sums.square[k] / (mean ? sums.count[k] : 1);
      }
      value += params.lam[k] * of_target;
    }
    write(loss, dtype, 0, value);
  }

  // What the means divide by, from the targets alone.
  cpu::CrossEntropySums sum_targets() const {
    cpu::CrossEntropySums sums{};
    for (int64_t k = 0; args.target[0] && k < params.num_targets; k++) {
      int64_t counted = 0;
      for (int64_t row = 0; row < rows; row++) {
        const int64_t y = args.target[k][row];
        if (y == params.ignore_index) continue;
        if (y < 0 || y >= params.C) check_target(row);
        if (weight) sums.weight[k] += read(args.weight, y);
        counted++;
      }
      if (!weight) sums.weight[k] = static_cast<double>(counted);
      sums.count[k] = static_cast<double>(counted);
    }
    count_probabilities(sums);
    return sums;
  }

  // Their means are over all rows.
  void count_probabilities(cpu::CrossEntropySums& sums) const {
    if (!args.target[0]) sums.weight[0] = sums.count[0] = static_cast<double>(rows);
  }

  // The gradient at logits, of memory of its own in the strides of `like` where those are dense.
  // Where it cannot be walked in those, it is written in another layout first.
  struct Gradient {
    Tensor result, walked;

    Gradient(const Tensor& like, cpu::CrossEntropyArgs& args)
        : result(imgfast::empty_like(like)), walked(result) {
      auto view = view_rows(result);
      if (!view) {
        walked = empty(like.sizes(), like.scalar_type());
        view = view_rows(walked);
      }
      args.grad_logits = *view;
      args.streams = walked.numel() * walked.element_size() >= kStreamedBytes;
    }

    const Tensor& finish() {
      if (walked.get() != result.get()) torch::stable::copy_(result, walked);
      return result;
    }
  };

  // The call over classes [first, first + n) alone.
  struct Part {
    CrossEntropyParams params;
    cpu::CrossEntropyArgs args;

    Part(const CrossEntropyCall& call, int64_t first, int64_t n)
        : params(call.params), args(call.args) {
      params.C = n;
      args.params = &params;
      args.first_class = first;
      for (RowsView* view : {&args.logits, &args.grad_logits}) {
        if (!view->data) continue;
        const int64_t offset = first * view->class_stride * call.logits.element_size();
        view->data = static_cast<char*>(view->data) + offset;
      }
      if (args.weight) {
        args.weight = static_cast<const char*>(args.weight) + first * call.width();
      }
    }

    Part(const Part&) = delete;
    Part& operator=(const Part&) = delete;

    // Where its normaliser goes, for forward to join.
    void use_parts(char* part, int64_t row_bytes) {
      params.num_targets = 0;
      args.maximum = part;
      args.sum = part + row_bytes;
      args.dot = part + 2 * row_bytes;
      args.mass = part + 3 * row_bytes;
    }
  };

  // Throws what PyTorch's own kernel throws, if there is a bad row.
  void check_target(int64_t bad_row) const {
    for (int64_t k = 0; bad_row >= 0 && k < params.num_targets; k++) {
      const int64_t y = args.target[k][bad_row];
      if (y != params.ignore_index && (y < 0 || y >= params.C)) {
        throw std::out_of_range("Target " + std::to_string(y) + " is out of bounds.");
      }
    }
  }

 private:
  void* divisors_ = nullptr;

  static void write(void* data, ScalarType dtype, int64_t i, double value) {
    switch (dtype) {
      case ScalarType::Double:
        static_cast<double*>(data)[i] = value;
        break;
      case ScalarType::BFloat16:
        static_cast<BFloat16*>(data)[i] = to_bfloat16(static_cast<float>(value));
        break;
      case ScalarType::Half:
        static_cast<Float16*>(data)[i] = to_float16(static_cast<float>(value));
        break;
      default:
        static_cast<float*>(data)[i] = static_cast<float>(value);
    }
  }

  const int64_t* take_classes(Tensor& given) const {
    STD_TORCH_CHECK(given.is_cpu() && given.scalar_type() == ScalarType::Long,
                    "cross_entropy: class targets must be int64 on the CPU");
    check_row_sizes(given);
    if (!given.is_contiguous()) given = torch::stable::contiguous(given);
    return static_cast<const int64_t*>(given.data_ptr());
  }

  void take_weight(const Tensor& given) {
    STD_TORCH_CHECK(given.is_cpu() && given.dim() == 1 && given.size(0) == params.C,
                    "cross_entropy: weight must be [C = ", params.C, "] on the CPU");
    weight = given.scalar_type() == compute ? given : torch::stable::to(given, compute);
    if (!weight->is_contiguous()) weight = torch::stable::contiguous(*weight);
    args.weight = weight->data_ptr();
    if (params.label_smoothing == 0) return;
    args.weight_sum = 0;
    for (int64_t c = 0; c < params.C; c++) args.weight_sum += read(args.weight, c);
  }
};

}  // namespace imgfast
