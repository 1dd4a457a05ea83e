// One call of conv_relu_pool: its arguments, validated, and the layout of its answer. The CPU's and
// CUDA's operators share it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "conv_relu_pool.h"

namespace imgfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

// What Winograd's kernels are made for: see csrc/cpu/winograd-inl.h.
inline void check_winograd(const ConvReLUPoolParams& p, ScalarType dtype) {
  const int64_t stride = p.stride_h, taps = (std::max(p.R, p.S) + stride - 1) / stride;
  const bool gradients = p.winograd & (kWinogradInput | kWinogradWeight);
  const bool dilated = p.dilation_h != 1 || p.dilation_w != 1;
  STD_TORCH_CHECK(dtype != ScalarType::Double && p.stride_w == stride &&
                      stride <= (gradients || dilated ? 1 : 4) && taps >= 2 && taps <= 5,
                  "conv_relu_pool: Winograd needs 2 to 5 taps, times a stride of at most 4, or 1 "
                  "for gradients and dilated filters, and not float64");
}

inline ConvReLUPoolParams make_params(const Tensor& x, const Tensor& weight, const Ints& geometry) {
  STD_TORCH_CHECK(x.dim() == 4, "conv_relu_pool: x must be [N, C, H, W], got ", x.dim(),
                  " dimensions");
  STD_TORCH_CHECK(weight.dim() == 4, "conv_relu_pool: weight must be [K, C / groups, R, S], got ",
                  weight.dim(), " dimensions");
  STD_TORCH_CHECK(x.device() == weight.device(),
                  "conv_relu_pool: weight must be on the device of x");
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(),
                  "conv_relu_pool: weight must have the dtype of x");
  STD_TORCH_CHECK(geometry.size() == kGeometrySize, "conv_relu_pool: geometry must have ",
                  int{kGeometrySize}, " numbers, got ", geometry.size());
  STD_TORCH_CHECK(geometry[kActivation] >= 0 &&
                      geometry[kActivation] <= static_cast<int>(Activation::kSiLU) &&
                      geometry[kPool] >= 0 && geometry[kPool] <= static_cast<int>(Pool::kAvg),
                  "conv_relu_pool: unknown activation or pool");
  const bool pooled = static_cast<Pool>(geometry[kPool]) != Pool::kNone;
  for (int i = 0; i < (pooled ? kCeilMode : kActivation); i++) {
    if (i == kActivation || i == kPool) continue;
    if (i == kPaddingH || i == kPaddingW || i == kPoolPaddingH || i == kPoolPaddingW) {
      STD_TORCH_CHECK(geometry[i] >= 0, "conv_relu_pool: padding must not be negative, got ",
                      geometry[i]);
    } else {
      STD_TORCH_CHECK(geometry[i] > 0,
                      "conv_relu_pool: strides, dilations, groups and pool sizes must be positive");
    }
  }
  constexpr int kEveryPass = kWinogradForward | kWinogradInput | kWinogradWeight;
  STD_TORCH_CHECK(geometry[kWinograd] >= 0 && geometry[kWinograd] <= kEveryPass &&
                      geometry[kEpilogue] >= 0 &&
                      geometry[kEpilogue] <= (kEpilogueForward | kEpilogueBackward),
                  "conv_relu_pool: unknown algorithm");

  const ConvReLUPoolParams p =
      conv_relu_pool_params(x.size(0), x.size(1), x.size(2), x.size(3), weight.size(0),
                            weight.size(2), weight.size(3), geometry.data());
  STD_TORCH_CHECK(p.N > 0 && p.C > 0 && p.H > 0 && p.W > 0 && p.K > 0 && p.R > 0 && p.S > 0,
                  "conv_relu_pool: no dimension of x or weight may be empty");
  STD_TORCH_CHECK(p.K % p.groups == 0 && weight.size(1) * p.groups == p.C,
                  "conv_relu_pool: weight must have C / groups = ", p.C / p.groups,
                  " input channels, got ", weight.size(1));
  STD_TORCH_CHECK(p.P > 0 && p.Q > 0, "conv_relu_pool: the filter is larger than the padded input");
  if (p.winograd) check_winograd(p, x.scalar_type());
  if (!pooled) return p;
  // A window lies at least half inside, or it could have no position at all.
  STD_TORCH_CHECK(2 * p.pool_padding_h <= p.pool_h && 2 * p.pool_padding_w <= p.pool_w,
                  "conv_relu_pool: pool_padding must be at most half of pool_size");
  const bool dilated = p.pool_dilation_h != 1 || p.pool_dilation_w != 1;
  STD_TORCH_CHECK(
      !dilated || (p.pool == Pool::kMax && p.pool_padding_h == 0 && p.pool_padding_w == 0),
      "conv_relu_pool: a dilated pool must be a max pool without padding");
  STD_TORCH_CHECK(p.PH > 0 && p.PW > 0,
                  "conv_relu_pool: the pool is larger than the convolution's output");
  STD_TORCH_CHECK(p.pool_h * p.pool_w <= kMaxWindow, "conv_relu_pool: a pool window has at most ",
                  kMaxWindow, " positions");
  return p;
}

// Codes to be saved must exist.
inline void check_codes(const ConvReLUPoolParams& p) {
  STD_TORCH_CHECK(
      p.pool == Pool::kMax || (p.pool == Pool::kAvg && p.pool_h * p.pool_w <= kMaxAvgWindow),
      "conv_relu_pool: codes exist for max pools, and for avg pools of at most ", kMaxAvgWindow,
      " positions");
}

inline void check_bias(const ConvReLUPoolParams& p, const Tensor& x, const Tensor& bias) {
  STD_TORCH_CHECK(bias.device() == x.device() && bias.scalar_type() == x.scalar_type() &&
                      bias.dim() == 1 && bias.size(0) == p.K,
                  "conv_relu_pool: bias must be [K = ", p.K, "] of the dtype of x");
}

// Whether t lies dense in memory, channels_last or not; strides of single elements say nothing.
inline bool lies_dense(const Tensor& t, bool channels_last) {
  int64_t next = 1;
  const auto follows = [&](int d) {
    const bool right = t.size(d) == 1 || t.stride(d) == next;
    next *= t.size(d);
    return right;
  };
  return channels_last ? follows(1) && follows(3) && follows(2) && follows(0)
                       : follows(3) && follows(2) && follows(1) && follows(0);
}

// Whether PyTorch would call these strides channels_last (c10/core/MemoryFormat.h decides it in
// this order).
inline bool is_channels_last(const Tensor& t) {
  int64_t least = 0;
  if (t.stride(1) == 0) return false;
  for (int d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = t.stride(d) * std::max<int64_t>(t.size(d), 1);
  }
  return true;
}

// The layout stock convolution answers in.
inline bool answers_channels_last(const Tensor& x, const Tensor& weight) {
  return is_channels_last(x) || is_channels_last(weight);
}

// And the whole composition: a convolution output that is dense in both layouts loses channels_last
// in stock's activation.
inline bool answers_channels_last(const ConvReLUPoolParams& p, const Tensor& x,
                                  const Tensor& weight) {
  const bool both = p.activation != Activation::kNone && (p.K == 1 || (p.P == 1 && p.Q == 1));
  return answers_channels_last(x, weight) && !both;
}

// What the gradient kernels read of a forward pass.
struct GradientReads {
  bool y, codes;
};

inline GradientReads check_gradient(const ConvReLUPoolParams& p, const Tensor& x,
                                    const Tensor& grad_y, const std::optional<Tensor>& y,
                                    const std::optional<Tensor>& codes) {
  const auto check_output = [&](const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.device() == x.device() && t.scalar_type() == x.scalar_type() &&
                        t.dim() == 4 && t.size(0) == p.N && t.size(1) == p.K && t.size(2) == p.PH &&
                        t.size(3) == p.PW,
                    "conv_relu_pool: ", name, " must be [", p.N, ", ", p.K, ", ", p.PH, ", ", p.PW,
                    "] of the dtype of x");
  };
  check_output(grad_y, "grad_y");
  const bool smooth = p.activation == Activation::kSigmoid || p.activation == Activation::kTanh;
  STD_TORCH_CHECK(p.activation != Activation::kGELU && p.activation != Activation::kSiLU &&
                      !(smooth && p.pool == Pool::kAvg),
                  "conv_relu_pool: no gradient kernel for this activation and pool");
  GradientReads reads;
  reads.y = smooth || (p.pool == Pool::kNone && p.activation != Activation::kNone);
  if (reads.y) {
    STD_TORCH_CHECK(y.has_value(), "conv_relu_pool: this gradient needs y");
    check_output(*y, "y");
  }
  reads.codes = p.pool == Pool::kMax || (p.pool == Pool::kAvg && p.activation != Activation::kNone);
  if (reads.codes) {
    STD_TORCH_CHECK(codes && codes->device() == x.device() &&
                        codes->scalar_type() == ScalarType::Byte && codes->dim() == 4 &&
                        codes->is_contiguous() && codes->size(0) == p.N && codes->size(1) == p.PH &&
                        codes->size(2) == p.PW && codes->size(3) == p.K,
                    "conv_relu_pool: this gradient needs the codes of the forward pass");
  }
  return reads;
}

// The gradients of x, weight and bias in the layouts of stock's, by empty(sizes, dtype,
// channels_last); without an element what is not needed.
template <class Empty>
std::tuple<Tensor, Tensor, Tensor> empty_gradients(const ConvReLUPoolParams& p, const Tensor& x,
                                                   const Tensor& weight, bool need_x,
                                                   bool need_weight, bool need_bias,
                                                   const Empty& empty) {
  return {empty(need_x ? Ints{p.N, p.C, p.H, p.W} : Ints{0}, x.scalar_type(),
                need_x && answers_channels_last(x, weight)),
          empty(need_weight ? Ints{p.K, p.C / p.groups, p.R, p.S} : Ints{0}, x.scalar_type(),
                need_weight && is_channels_last(weight)),
          empty(Ints{need_bias ? p.K : 0}, x.scalar_type(), false)};
}

}  // namespace imgfast
