// conv_relu_pool's weight and bias gradients on a GPU, torch-free: which kernels run, their tiles,
// their memory and their launch.
//
//   ConvBackwardWeightPlan plan = plan_conv_backward_weight(call);  // kNone: nothing serves it
//   call.workspace = plan.workspace_bytes bytes of the device
//   launch_conv_backward_weight(call, plan, stream)
#pragma once

#include "cuda/conv_backward_bias.cuh"
#include "cuda/conv_backward_call.cuh"
#include "cuda/conv_backward_weight_mma.cuh"
#include "cuda/conv_backward_weight_simt.cuh"

namespace imgfast::cuda {

// As many blocks as an A100 holds at once, three a multiprocessor: a larger GPU holds them, too,
// and a smaller one has little left to do at the end.
constexpr std::int64_t kMostParallelBlocks = 324;

// --- instances -----------------------------------------------------------------------------------

template <int kV, Pooling kPooling>
struct ConvWeightSimtInstance {
  using Element = float;
  using Size = ConvWeightSimt<kV>;
  static constexpr Pooling kPool = kPooling;
  static auto kernel() { return &conv_backward_weight_simt_kernel<kV, kPooling>; }
};

template <class T, Pooling kPooling>
struct ConvWeightMmaInstance {
  using Element = T;
  using Size = ConvWeightMma<T>;
  static constexpr Pooling kPool = kPooling;
  static auto kernel() { return &conv_backward_weight_mma_kernel<T, kPooling>; }
};

// --- planning ------------------------------------------------------------------------------------

// The box of positions with the least work for all boxes together, of those that fit; those of
// quads are whole windows, and leave out what no window covers. To stage a pixel costs an eighth of
// what a position's products cost, a row of pixels as much as row_cost pixels more, and a box as
// much as kBoxCost positions. Rows of other lengths than kRow cost some conflicts between banks.
template <class Size, class Fits>
ConvTile choose_box(const ConvShape& s, Pooling pooling, int row_cost, const Fits& fits) {
  constexpr double kStagingCost = 1.0 / 8, kBoxCost = 16, kConflicts = 1.2;
  constexpr std::int64_t kMostPixels = 1 << 16;  // of an image: fits may count in 32 bits
  const int unit = pooling == Pooling::kQuad ? 2 : 1;
  const int height = unit == 2 ? s.PH : s.P, width = unit == 2 ? s.PW : s.Q;
  ConvTile best{};
  double least = std::numeric_limits<double>::infinity();
  // What divides a side most evenly into a number of boxes.
  const auto next = [](int side, int size) {
    const std::int64_t boxes = conv_ceil_div(side, size);
    return static_cast<int>(conv_ceil_div(side, boxes + 1));
  };
  for (int cols = std::min(width, Size::kMostPositions / (unit * unit)); cols > 0;) {
    for (int rows = std::min(height, Size::kMostPositions / (unit * unit * cols)); rows > 0;) {
      ConvTile t{.images = 1, .rows = rows, .cols = cols};
      t.conv_rows = rows * unit, t.conv_cols = cols * unit;
      t.in_rows = (t.conv_rows - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1;
      t.in_cols = (t.conv_cols - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1;
      t.tiles_h = static_cast<int>(conv_ceil_div(height, rows));
      t.tiles_w = static_cast<int>(conv_ceil_div(width, cols));
      if (rows == height && cols == width) {
        t.images = std::min(s.N, Size::kMostPositions / t.positions());
      }
      const bool countable = static_cast<std::int64_t>(t.in_rows) * t.in_cols <= kMostPixels;
      while (t.images > 1 && !(countable && fits(t))) t.images--;
      if (countable && fits(t)) {
        const double boxes =
            static_cast<double>(conv_ceil_div(s.N, t.images)) * t.tiles_h * t.tiles_w;
        const double steps =
            static_cast<double>(conv_ceil_div(t.positions(), Size::kStep)) * Size::kStep;
        const double pixels = t.pixels() + static_cast<double>(t.images) * t.in_rows * row_cost;
        const double cost = boxes * (steps * (t.conv_cols % Size::kRow == 0 ? 1 : kConflicts) +
                                     kStagingCost * pixels + kBoxCost);
        if (cost < least) {
          least = cost;
          best = t;
        }
      }
      const int fewer = next(height, rows);
      rows = fewer < rows ? fewer : rows - 1;
    }
    const int fewer = next(width, cols);
    cols = fewer < cols ? fewer : cols - 1;
  }
  return best;
}

template <class Instance>
ConvBackwardWeightPlan plan_weight_instance(const ConvBackwardCall& call, ConvWeightKernel kernel,
                                            std::int64_t most_blocks) {
  using Size = typename Instance::Size;
  ConvBackwardWeightPlan plan;
  plan.kernel = kernel;
  plan.pooling = Instance::kPool;
  if (!make_shape(*call.params, plan.shape)) return {};
  const ConvShape& s = plan.shape;
  // Where channels lie apart a row is read in sectors of 32 bytes, which its ends do not fill.
  const int row_cost =
      call.x_stride[1] == 1 ? 0 : 32 / static_cast<int>(sizeof(typename Instance::Element));
  // So small that a multiprocessor holds several blocks; where nothing is, one.
  constexpr std::size_t kSeveral = 48 * 1024;
  for (const std::size_t most : {kSeveral, kMostSharedBytes}) {
    const auto fits = [&](const ConvTile& t) {
      return WeightLayout<Size>(s, t).carver.bytes <= most;
    };
    plan.tile = choose_box<Size>(s, plan.pooling, row_cost, fits);
    if (plan.tile.images > 0) break;
  }
  if (plan.tile.images == 0) return {};
  plan.shared_bytes = WeightLayout<Size>(s, plan.tile).carver.bytes;
  plan.boxes = conv_ceil_div(s.N, plan.tile.images) * plan.tile.tiles_h * plan.tile.tiles_w;
  const std::int64_t tiles = static_cast<std::int64_t>(WeightColumns<Size>(s).tiles()) *
                             conv_ceil_div(s.K, Size::kFilters) * s.groups;
  constexpr std::int64_t kBoxes = 2;  // that are worth the sums of a part
  plan.parts = std::max<std::int64_t>(1, std::min(most_blocks / tiles, plan.boxes / kBoxes));
  plan.blocks = plan.parts * tiles;
  plan.sum.parts = plan.parts * Size::kSlices;
  plan.sum.filters = static_cast<std::int64_t>(s.groups) * s.K;
  plan.sum.C = s.C, plan.sum.R = s.R, plan.sum.S = s.S, plan.sum.piece = Size::kPiece;
  std::copy_n(call.grad_weight_stride, 4, plan.sum.stride);
  plan.weight_bytes = plan.sum.parts * plan.sum.count() * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t sum_blocks = conv_ceil_div(plan.sum.count(), ConvSum::kElements);
  if (std::max({plan.boxes, plan.blocks, sum_blocks}) > kMostBlocks) return {};
  return plan;
}

// function(instance) for the one that was chosen; a default Result where there is none.
template <class Result, class T, Pooling kPooling, class Function>
Result with_weight_instance(ConvWeightKernel kernel, const Function& function) {
  switch (kernel) {
    case ConvWeightKernel::kSimt:
      if constexpr (std::is_same_v<T, float>)
        return function(ConvWeightSimtInstance<4, kPooling>{});
      break;
    case ConvWeightKernel::kSimtFew:
      if constexpr (std::is_same_v<T, float>)
        return function(ConvWeightSimtInstance<1, kPooling>{});
      break;
    case ConvWeightKernel::kMma:
      return function(ConvWeightMmaInstance<T, kPooling>{});
    default:
      break;
  }
  return Result{};
}

template <class Result, class Function>
Result with_weight_instance(ConvWeightKernel kernel, DType dtype, Pooling pooling,
                            const Function& function) {
  return with_element_and_pooling<Result>(dtype, pooling, [&](auto element, auto kind) {
    return with_weight_instance<Result, decltype(element), decltype(kind)::value>(kernel, function);
  });
}

// Adds what the bias gradient needs.
inline ConvBackwardWeightPlan plan_bias(const ConvBackwardCall& call, ConvBackwardWeightPlan plan,
                                        std::int64_t most_blocks) {
  if (plan.kernel == ConvWeightKernel::kNone) return {};
  plan.workspace_bytes = plan.weight_bytes;
  if (call.grad_bias == nullptr) return plan;
  const ConvReLUPoolParams& p = *call.params;
  const std::int64_t windows = p.N * p.PH * p.PW;
  if (!make_shape(p, plan.shape) || windows > kMostBlocks) return {};
  constexpr std::int64_t kWindows = 64;  // that are worth a block
  const std::int64_t tiles = conv_ceil_div(p.K, ConvBackwardBias<float>::kFilters);
  plan.bias_parts =
      std::clamp<std::int64_t>(most_blocks / tiles, 1, conv_ceil_div(windows, kWindows));
  plan.workspace_bytes += plan.bias_parts * p.K * static_cast<std::int64_t>(sizeof(float));
  return plan;
}

// Positions are shared out to at most so many blocks.
inline ConvBackwardWeightPlan plan_conv_backward_weight(
    const ConvBackwardCall& call, ConvWeightKernel kernel,
    std::int64_t most_blocks = kMostParallelBlocks) {
  ConvBackwardWeightPlan plan;
  if (kernel == ConvWeightKernel::kBias) {
    if (call.dtype != DType::kFloat64) plan.kernel = kernel;
    return plan_bias(call, plan, most_blocks);
  }
  const Pooling pooling = pooling_of(*call.params);
  plan =
      with_weight_instance<ConvBackwardWeightPlan>(kernel, call.dtype, pooling, [&](auto instance) {
        return plan_weight_instance<decltype(instance)>(call, kernel, most_blocks);
      });
  return plan_bias(call, plan, most_blocks);
}

// Tensor cores where the dtype allows them.
inline ConvWeightKernel choose_conv_backward_weight(const ConvBackwardCall& call) {
  if (call.grad_weight == nullptr) return ConvWeightKernel::kBias;
  const ConvReLUPoolParams& p = *call.params;
  const std::int64_t C = p.C / p.groups;
  const bool exact = call.dtype == DType::kFloat32 && !(p.allow_tf32 && C > 4);
  const ConvWeightKernel simt = C < 4 ? ConvWeightKernel::kSimtFew : ConvWeightKernel::kSimt;
  return exact ? simt : ConvWeightKernel::kMma;
}

inline ConvBackwardWeightPlan plan_conv_backward_weight(const ConvBackwardCall& call) {
  return plan_conv_backward_weight(call, choose_conv_backward_weight(call));
}

// --- launch --------------------------------------------------------------------------------------

template <class T>
cudaError_t launch_sum(const ConvSum& sum, void* to, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(conv_ceil_div(sum.count(), ConvSum::kElements));
  return launch(conv_sum_parts_kernel<T>, dim3(blocks), dim3(ConvSum::kThreads), 0, stream, sum,
                static_cast<T*>(to));
}

// What the parts sum, each on its own.
template <class Instance>
cudaError_t launch_weight_products(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan,
                                   cudaStream_t stream) {
  using T = typename Instance::Element;
  ConvBackwardWeight<T> a{};
  a.gradient = gradient_of<T>(call, plan.shape);
  a.x = static_cast<const T*>(call.x);
  std::copy_n(call.x_stride, 4, a.x_stride);
  a.vector_x = conv_vectors(call.x, call.x_stride, plan.shape.C, 16 / sizeof(T), sizeof(T));
  a.partial = static_cast<float*>(call.workspace);
  a.shape = plan.shape;
  a.tile = plan.tile;
  a.boxes = static_cast<int>(plan.boxes);
  a.parts = static_cast<int>(plan.parts);
  return launch(Instance::kernel(), dim3(static_cast<unsigned>(plan.blocks)),
                dim3(Instance::Size::kThreads), plan.shared_bytes, stream, a);
}

template <class Instance>
cudaError_t launch_weight_instance(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan,
                                   cudaStream_t stream) {
  const cudaError_t error = launch_weight_products<Instance>(call, plan, stream);
  if (error != cudaSuccess) return error;
  ConvSum sum = plan.sum;
  sum.partial = static_cast<const float*>(call.workspace);
  return launch_sum<typename Instance::Element>(sum, call.grad_weight, stream);
}

template <class T>
cudaError_t launch_bias(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan,
                        cudaStream_t stream) {
  ConvBackwardBias<T> a{};
  a.gradient = gradient_of<T>(call, plan.shape);
  a.partial = static_cast<float*>(call.workspace) + plan.weight_bytes / sizeof(float);
  a.shape = plan.shape;
  a.windows = static_cast<int>(call.params->N * call.params->PH * call.params->PW);
  a.parts = static_cast<int>(plan.bias_parts);
  const auto blocks = static_cast<unsigned>(plan.bias_parts * a.filter_tiles());
  const cudaError_t error = launch(conv_backward_bias_kernel<T>, dim3(blocks),
                                   dim3(ConvBackwardBias<T>::kThreads), 0, stream, a);
  if (error != cudaSuccess) return error;
  ConvSum sum{.partial = a.partial, .parts = plan.bias_parts, .filters = a.filters()};
  sum.C = sum.R = sum.S = sum.piece = 1;
  sum.stride[0] = 1;
  return launch_sum<T>(sum, call.grad_bias, stream);
}

inline cudaError_t launch_bias(const ConvBackwardCall& call, const ConvBackwardWeightPlan& plan,
                               cudaStream_t stream) {
  return with_element<cudaError_t>(
      call.dtype, [&](auto element) { return launch_bias<decltype(element)>(call, plan, stream); });
}

// Does not wait for the device. The plan must be one of this call's.
inline cudaError_t launch_conv_backward_weight(const ConvBackwardCall& call,
                                               const ConvBackwardWeightPlan& plan,
                                               cudaStream_t stream) {
  if (plan.kernel == ConvWeightKernel::kNone) return cudaErrorInvalidValue;
  if (plan.kernel != ConvWeightKernel::kBias) {
    const cudaError_t error = with_weight_instance<cudaError_t>(
        plan.kernel, call.dtype, plan.pooling, [&](auto instance) {
          return launch_weight_instance<decltype(instance)>(call, plan, stream);
        });
    if (error != cudaSuccess) return error;
  }
  return plan.bias_parts == 0 ? cudaSuccess : launch_bias(call, plan, stream);
}

}  // namespace imgfast::cuda
