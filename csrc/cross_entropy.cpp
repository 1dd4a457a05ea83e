// cross_entropy on the CPU: validate, allocate, share out the rows, register. The kernels are in
// cpu/cross_entropy*-inl.h.
#include "cross_entropy.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/scratch.h"
#include "cpu/simd/scalar.h"
#include "empty.h"
#include "tensor_dtype.h"

namespace imgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// Gradients from here on are stored past the cache: they would drive out what is still to be read,
// and be read themselves before they are written.
constexpr int64_t kStreamedBytes = 32 << 20;

thread_local cpu::Scratch thread_buffer;

bool same_sizes(Sizes a, Sizes b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

// A tensor [C], [N, C] or [N, C, d1, ...] as rows. There is none if d1, ... cannot be walked with
// one stride.
std::optional<cpu::RowsView> view_rows(const Tensor& x) {
  const Sizes sizes = x.sizes(), strides = x.strides();
  cpu::RowsView view{x.data_ptr(), 0, 0, strides[x.dim() == 1 ? 0 : 1]};
  if (x.dim() == 2) view.inner_stride = strides[0];
  if (x.dim() <= 2) return view;
  view.outer_stride = strides[0];
  int64_t next = -1;
  for (int64_t d = x.dim() - 1; d >= 2; d--) {
    if (sizes[d] == 1) continue;
    if (next < 0) {
      view.inner_stride = next = strides[d];
    } else if (strides[d] != next) {
      return std::nullopt;
    }
    next *= sizes[d];
  }
  if (next < 0)
    view.inner_stride =
        strides[0];  // one position a sample: make_params counts samples as positions
  return view;
}

// One call: its parameters, and the tensors in forms that can be walked, which the arguments point
// into.
struct Call {
  CrossEntropyParams params{};
  cpu::CrossEntropyArgs args{};
  ScalarType compute;
  int64_t rows;
  Tensor logits, target;
  std::optional<Tensor> weight;

  Call(const Tensor& input, const Tensor& given_target, const std::optional<Tensor>& given_weight,
       int64_t reduction, int64_t ignore_index, double label_smoothing)
      : logits(input), target(given_target) {
    STD_TORCH_CHECK(input.is_cpu() && target.is_cpu(),
                    "cross_entropy: input and target must be on the CPU");
    STD_TORCH_CHECK(reduction >= 0 && reduction <= 2,
                    "cross_entropy: reduction must be 0, 1 or 2, got ", reduction);
    STD_TORCH_CHECK(label_smoothing >= 0 && label_smoothing <= 1,
                    "cross_entropy: label_smoothing must be between 0 and 1, got ",
                    label_smoothing);
    const int64_t dim = input.dim();
    STD_TORCH_CHECK(dim >= 1, "cross_entropy: input must be [C] or [N, C, ...], got a scalar");
    const Sizes sizes = input.sizes();
    params.C = sizes[dim == 1 ? 0 : 1];
    params.num_classes = params.C;
    params.outer = params.inner = 1;
    if (dim >= 3) {
      for (int64_t d = 2; d < dim; d++) params.inner *= sizes[d];
    }
    (dim >= 3 && params.inner != 1 ? params.outer : params.inner) = dim == 1 ? 1 : sizes[0];
    params.ignore_index = ignore_index;
    params.label_smoothing = label_smoothing;
    params.reduction = static_cast<Reduction>(reduction);
    rows = params.outer * params.inner;
    STD_TORCH_CHECK(params.C > 0 && params.C <= kMaxClasses,
                    "cross_entropy: input must have 1 to 2^24 classes, got ", params.C);
    STD_TORCH_CHECK(ignore_index >= -kMaxClasses && ignore_index <= kMaxClasses,
                    "cross_entropy: ignore_index must be within +-2^24, got ", ignore_index);

    args.params = &params;
    args.dtype = dtype_of(input, "cross_entropy", "input");
    compute = args.dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
    auto view = view_rows(logits);
    if (!view) {
      logits = torch::stable::contiguous(logits);
      view = view_rows(logits);
    }
    args.logits = *view;
    if (same_sizes(sizes, target.sizes())) {
      take_probabilities();
    } else {
      take_classes();
    }
    args.weight_sum = static_cast<double>(params.C);
    if (given_weight) take_weight(*given_weight);
  }

  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  Tensor new_stats() const { return empty({{2 * rows + 1}}, compute); }

  void use_stats(const Tensor& stats) {
    STD_TORCH_CHECK(stats.is_cpu() && stats.scalar_type() == compute && stats.is_contiguous() &&
                        stats.numel() == 2 * rows + 1,
                    "cross_entropy: stats must be those of the forward pass");
    char* data = static_cast<char*>(stats.data_ptr());
    args.maximum = data;
    args.sum = data + rows * (compute == ScalarType::Double ? 8 : 4);
  }

  double divisor(const Tensor& stats) const {
    return compute == ScalarType::Double ? static_cast<const double*>(stats.data_ptr())[2 * rows]
                                         : static_cast<const float*>(stats.data_ptr())[2 * rows];
  }

  void set_divisor(const Tensor& stats, double value) const {
    if (compute == ScalarType::Double) {
      static_cast<double*>(stats.data_ptr())[2 * rows] = value;
    } else {
      static_cast<float*>(stats.data_ptr())[2 * rows] = static_cast<float>(value);
    }
  }

  // Throws what PyTorch's own kernel throws.
  void check_target(int64_t bad_row) const {
    if (bad_row < 0) return;
    throw std::out_of_range("Target " + std::to_string(args.target[bad_row]) +
                            " is out of bounds.");
  }

 private:
  void take_classes() {
    STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long,
                    "cross_entropy: class targets must be int64");
    const Sizes sizes = logits.sizes();
    std::vector<int64_t> expected;
    for (int64_t d = 0; d < logits.dim(); d++) {
      if (d != (logits.dim() == 1 ? 0 : 1)) expected.push_back(sizes[d]);
    }
    STD_TORCH_CHECK(same_sizes(Sizes(expected.data(), expected.size()), target.sizes()),
                    "cross_entropy: target must have the shape of input without its classes");
    if (!target.is_contiguous()) target = torch::stable::contiguous(target);
    args.target = static_cast<const int64_t*>(target.data_ptr());
  }

  void take_probabilities() {
    STD_TORCH_CHECK(target.scalar_type() == logits.scalar_type(),
                    "cross_entropy: probability targets must have the dtype of input");
    auto view = view_rows(target);
    if (!view) {
      target = torch::stable::contiguous(target);
      view = view_rows(target);
    }
    args.probabilities = *view;
  }

  void take_weight(const Tensor& given) {
    STD_TORCH_CHECK(given.is_cpu() && given.dim() == 1 && given.size(0) == params.C,
                    "cross_entropy: weight must be [C = ", params.C, "] on the CPU");
    weight = given.scalar_type() == compute ? given : torch::stable::to(given, compute);
    if (!weight->is_contiguous()) weight = torch::stable::contiguous(*weight);
    args.weight = weight->data_ptr();
    if (params.label_smoothing == 0) return;
    args.weight_sum = 0;
    for (int64_t c = 0; c < params.C; c++) {
      args.weight_sum += compute == ScalarType::Double ? static_cast<const double*>(args.weight)[c]
                                                       : static_cast<const float*>(args.weight)[c];
    }
  }
};

// Calls work(chunk, first row, last row + 1), in parallel if there is more than one chunk. Chunks
// depend on the shape alone, so that sums over them do not depend on the number of threads.
template <class Work>
void for_chunks(const cpu::CrossEntropyArgs& args, int64_t rows, int64_t chunk_rows, int64_t chunks,
                const Work& work) {
  const int64_t scratch = cpu::kernels().cross_entropy.scratch(args);
  const auto range = [&](int64_t begin, int64_t end) {
    void* buffer = thread_buffer.reserve(scratch);
    for (int64_t chunk = begin; chunk < end; chunk++) {
      work(chunk, chunk * chunk_rows, std::min(rows, (chunk + 1) * chunk_rows), buffer);
    }
  };
  if (chunks == 1) {
    range(0, 1);
  } else {
    torch::stable::parallel_for(0, chunks, 1, range);
  }
}

std::tuple<Tensor, Tensor> cross_entropy(const Tensor& input, const Tensor& target,
                                         const std::optional<Tensor>& weight, int64_t reduction,
                                         int64_t ignore_index, double label_smoothing,
                                         bool float_loss) {
  Call call(input, target, weight, reduction, ignore_index, label_smoothing);
  cpu::CrossEntropyArgs& args = call.args;
  const bool reduced = call.params.reduction != Reduction::kNone;
  const ScalarType loss_dtype = float_loss ? call.compute : input.scalar_type();
  args.loss_dtype = float_loss && args.dtype != DType::kFloat64 ? DType::kFloat32 : args.dtype;

  std::vector<int64_t> loss_sizes;
  if (!reduced) {
    const Sizes sizes = input.sizes();
    for (int64_t d = 0; d < input.dim(); d++) {
      if (d != (input.dim() == 1 ? 0 : 1)) loss_sizes.push_back(sizes[d]);
    }
  }
  Tensor loss = empty(Sizes(loss_sizes.data(), loss_sizes.size()), loss_dtype);
  Tensor stats = call.new_stats();
  call.use_stats(stats);
  if (!reduced) args.loss = loss.data_ptr();

  const cpu::CrossEntropyKernels& kernels = cpu::kernels().cross_entropy;
  const int64_t chunk_rows = kernels.chunk_rows(args),
                chunks = (call.rows + chunk_rows - 1) / chunk_rows;
  std::vector<cpu::CrossEntropySums> sums(chunks);
  if (chunks > 0) {
    for_chunks(args, call.rows, chunk_rows, chunks,
               [&](int64_t chunk, int64_t begin, int64_t end, void* scratch) {
                 sums[chunk] = kernels.forward(args, begin, end, scratch);
               });
  }
  double total = 0, divisor = 0;
  for (const cpu::CrossEntropySums& part : sums) {
    call.check_target(part.bad_row);
    total += part.loss;
    divisor += part.weight;
  }
  if (!args.target) divisor = static_cast<double>(call.rows);
  call.set_divisor(stats, divisor);
  if (reduced) {
    const double value = call.params.reduction == Reduction::kMean ? total / divisor : total;
    switch (loss_dtype) {
      case ScalarType::Double:
        *static_cast<double*>(loss.data_ptr()) = value;
        break;
      case ScalarType::BFloat16:
        *static_cast<BFloat16*>(loss.data_ptr()) = to_bfloat16(static_cast<float>(value));
        break;
      case ScalarType::Half:
        *static_cast<Float16*>(loss.data_ptr()) = to_float16(static_cast<float>(value));
        break;
      default:
        *static_cast<float*>(loss.data_ptr()) = static_cast<float>(value);
    }
  }
  return {loss, stats};
}

Tensor cross_entropy_backward(const Tensor& grad_loss, const Tensor& input, const Tensor& target,
                              const std::optional<Tensor>& weight, const Tensor& stats,
                              int64_t reduction, int64_t ignore_index, double label_smoothing) {
  Call call(input, target, weight, reduction, ignore_index, label_smoothing);
  cpu::CrossEntropyArgs& args = call.args;
  call.use_stats(stats);
  const bool reduced = call.params.reduction != Reduction::kNone;
  STD_TORCH_CHECK(grad_loss.is_cpu() && grad_loss.numel() == (reduced ? 1 : call.rows),
                  "cross_entropy: grad_loss must have the shape of the loss");
  Tensor grad = grad_loss.scalar_type() == call.compute
                    ? grad_loss
                    : torch::stable::to(grad_loss, call.compute);
  if (!grad.is_contiguous()) grad = torch::stable::contiguous(grad);
  if (reduced) {
    args.grad_scale = call.compute == ScalarType::Double
                          ? *static_cast<const double*>(grad.data_ptr())
                          : *static_cast<const float*>(grad.data_ptr());
    if (call.params.reduction == Reduction::kMean) args.grad_scale /= call.divisor(stats);
  } else {
    args.grad_loss = grad.data_ptr();
  }

  Tensor grad_input = imgfast::empty_like(input);
  Tensor walked = grad_input;
  auto view = view_rows(grad_input);
  if (!view) {  // written in another layout first
    walked = empty(input.sizes(), input.scalar_type());
    view = view_rows(walked);
  }
  args.grad_logits = *view;
  args.streams = walked.numel() * walked.element_size() >= kStreamedBytes;

  const cpu::CrossEntropyKernels& kernels = cpu::kernels().cross_entropy;
  const int64_t chunk_rows = kernels.chunk_rows(args),
                chunks = (call.rows + chunk_rows - 1) / chunk_rows;
  std::vector<int64_t> bad_rows(chunks);
  if (chunks > 0) {
    for_chunks(args, call.rows, chunk_rows, chunks,
               [&](int64_t chunk, int64_t begin, int64_t end, void* scratch) {
                 bad_rows[chunk] = kernels.backward(args, begin, end, scratch);
               });
  }
  for (int64_t bad_row : bad_rows) call.check_target(bad_row);
  if (walked.get() != grad_input.get()) torch::stable::copy_(grad_input, walked);
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
}

}  // namespace imgfast
