// The sums of taps of upsample_conv_relu for the emulator: weights for the kernel of a number, and
// parts of weight gradients in pieces of so many channels.
#include "cuda/upsample_taps.cuh"

#include <simt/export.h>

using namespace imgfast;
using namespace imgfast::cuda;

namespace {

template <class Instance>
ConvForwardPlan plan_of(int K, int C, int taps, const ConvWeightStrides& stride) {
  ConvForwardPlan plan;
  plan.shape.groups = 1;
  plan.shape.K = K;
  plan.shape.C = C;
  plan.shape.R = plan.shape.S = taps;
  plan.packing = conv_packing<Instance>(plan.shape, stride);
  plan.filters_last = Instance::kFiltersLast;
  return plan;
}

}  // namespace

// weight: [K, C, 3, 3] of these strides. told: the rows and columns of `to`, which is not written
// if it is null.
SIMT_EXPORT int upsample_fold_taps(int K, int C, const std::int64_t* stride, int dtype, int kernel,
                                   bool adjoint, const void* weight, void* to, std::int64_t* told) {
  return with_element<cudaError_t>(static_cast<DType>(dtype), [&](auto element) {
    using T = decltype(element);
    const auto fold_for = [&](auto instance) {
      using Instance = decltype(instance);
      return adjoint
                 ? TapFolding(
                       plan_of<Instance>(C, K, 4, {0, stride[1], stride[2], stride[3], stride[0]}),
                       true)
                 : TapFolding(
                       plan_of<Instance>(K, C, 2, {0, stride[0], stride[2], stride[3], stride[1]}),
                       false);
    };
    TapFolding fold;
    switch (static_cast<ConvKernel>(kernel)) {
      case ConvKernel::kSimt:
        fold = fold_for(ConvSimtInstance<4, Pooling::kElement>{});
        break;
      case ConvKernel::kSimtFew:
        fold = fold_for(ConvSimtInstance<1, Pooling::kElement>{});
        break;
      case ConvKernel::kMmaFew:
        fold = fold_for(ConvMmaFewInstance<T, Pooling::kElement>{});
        break;
      default:
        fold = fold_for(ConvMmaInstance<T, 2, Pooling::kElement>{});
    }
    told[0] = fold.rows;
    told[1] = fold.cols;
    return to == nullptr ? cudaSuccess : launch_fold_taps<T>(fold, weight, to, nullptr);
  });
}

// partial: [4][parts][K][pieces of C][2 * 2][piece]; to: [K, C, 3, 3] of these strides.
SIMT_EXPORT int upsample_unfold_taps(int K, int C, int piece, int parts, int dtype,
                                     const std::int64_t* stride, const float* partial, void* to) {
  ConvSum sum{.partial = partial, .parts = parts, .filters = K};
  sum.C = C, sum.R = sum.S = 2, sum.piece = piece;
  std::copy_n(stride, 4, sum.stride);
  return with_element<cudaError_t>(static_cast<DType>(dtype), [&](auto element) {
    return launch_unfold_taps<decltype(element)>(sum, to, nullptr);
  });
}
