// What a call of cross_entropy is about, whatever the device: its parameters, validated, and
// tensors as rows.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cross_entropy.h"

namespace imgfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline bool same_sizes(Sizes a, Sizes b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

// A tensor [C], [N, C] or [N, C, d1, ...] as rows. There is none if d1, ... cannot be walked with
// one stride.
inline std::optional<RowsView> view_rows(const Tensor& x) {
  const Sizes sizes = x.sizes(), strides = x.strides();
  RowsView view{x.data_ptr(), 0, 0, strides[x.dim() == 1 ? 0 : 1]};
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
  // One position a sample: CrossEntropyShape counts samples as positions.
  if (next < 0) view.inner_stride = strides[0];
  return view;
}

// A view of the tensor, which is replaced by a dense one if it has none.
inline RowsView walkable(Tensor& tensor) {
  auto view = view_rows(tensor);
  if (!view) {
    tensor = torch::stable::contiguous(tensor);
    view = view_rows(tensor);
  }
  return *view;
}

// The arguments that are no tensors, as the operators' schemas have them.
struct CrossEntropyOptions {
  int64_t reduction, ignore_index;
  double label_smoothing, lam, z_loss;
};

// Of one call. Samples of one position each count as positions of one sample.
struct CrossEntropyShape {
  CrossEntropyParams params{};
  int64_t rows;
  std::vector<int64_t> row_sizes;  // of input, without its classes

  CrossEntropyShape(const Tensor& input, bool pair, const CrossEntropyOptions& options) {
    take_options(pair, options);
    const int64_t dim = input.dim();
    STD_TORCH_CHECK(dim >= 1, "cross_entropy: input must be [C] or [N, C, ...], got a scalar");
    const Sizes sizes = input.sizes();
    params.C = sizes[dim == 1 ? 0 : 1];
    params.num_classes = params.C;
    params.outer = params.inner = 1;
    for (int64_t d = 0; d < dim; d++) {
      if (d != (dim == 1 ? 0 : 1)) row_sizes.push_back(sizes[d]);
    }
    if (dim >= 3) {
      for (int64_t d = 2; d < dim; d++) params.inner *= sizes[d];
    }
    (dim >= 3 && params.inner != 1 ? params.outer : params.inner) = dim == 1 ? 1 : sizes[0];
    rows = params.outer * params.inner;
    STD_TORCH_CHECK(params.C > 0 && params.C <= kMaxClasses,
                    "cross_entropy: input must have 1 to 2^24 classes, got ", params.C);
  }

  void check_row_sizes(const Tensor& target) const {
    STD_TORCH_CHECK(same_sizes(Sizes(row_sizes.data(), row_sizes.size()), target.sizes()),
                    "cross_entropy: target must have the shape of input without its classes");
  }

 private:
  void take_options(bool pair, const CrossEntropyOptions& options) {
    STD_TORCH_CHECK(options.reduction >= 0 && options.reduction <= 2,
                    "cross_entropy: reduction must be 0, 1 or 2, got ", options.reduction);
    STD_TORCH_CHECK(options.ignore_index >= -kMaxClasses && options.ignore_index <= kMaxClasses,
                    "cross_entropy: ignore_index must be within +-2^24, got ",
                    options.ignore_index);
    STD_TORCH_CHECK(options.label_smoothing >= 0 && options.label_smoothing <= 1,
                    "cross_entropy: label_smoothing must be between 0 and 1, got ",
                    options.label_smoothing);
    STD_TORCH_CHECK(options.lam >= 0 && options.lam <= 1,
                    "cross_entropy: lam must be between 0 and 1, got ", options.lam);
    STD_TORCH_CHECK(options.z_loss >= 0, "cross_entropy: z_loss must not be negative, got ",
                    options.z_loss);
    params.reduction = static_cast<Reduction>(options.reduction);
    params.ignore_index = options.ignore_index;
    params.label_smoothing = options.label_smoothing;
    params.z_loss = options.z_loss;
    params.num_targets = pair ? 2 : 1;
    params.lam[0] = pair ? options.lam : 1;
    params.lam[1] = 1 - params.lam[0];
  }
};

}  // namespace imgfast
