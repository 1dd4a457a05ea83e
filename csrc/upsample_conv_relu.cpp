// upsample_conv_relu on the CPU: y = activation(conv2d(upsample_nearest(x, 2), weight, bias,
// padding=1)), by conv_relu_pool's kernels on maps of x's size.
//
// The outputs of even and odd rows and columns are four convolutions of x with filters of 2 x 2
// taps, sums of weight's: along a dimension of taps w0 w1 w2,
//
//   y[2 i]     = w0 x[i - 1] + (w1 + w2) x[i]
//   y[2 i + 1] = (w0 + w1) x[i] + w2 x[i + 1]
//
// Read the other way, x's gradient is one convolution of stride 2 with 4 taps, w2, w1 + w2, w0 +
// w1, w0, from row 2 i - 1 of the gradient at the convolution's output on. The weight gradient is
// that of the four, added up.
#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "conv_relu_pool_call.h"
#include "conv_units.h"
#include "cpu/dispatch.h"
#include "cpu/scratch.h"
#include "empty.h"

namespace imgfast {
namespace {

constexpr int64_t kChunkBytes = 512 << 10;  // of expanded gradients, to stay in a core's cache
constexpr int kParities = 4;                // of row and column: 2 * (row % 2) + column % 2

Tensor new_tensor(const Ints& sizes, ScalarType dtype, bool channels_last = false) {
  return empty({sizes.data(), sizes.size()}, dtype, channels_last);
}

// Buffers of the calling thread; each worker has its own.
thread_local cpu::Scratch shared_buffer, thread_buffer, gradient_buffer;

// A call: the whole convolution, of the upsampled map, and what it is made of.
struct Call {
  ConvReLUPoolParams whole;  // as of x upsampled
  std::array<ConvReLUPoolParams, kParities> parity;
  ScalarType compute;

  Call(const Tensor& x, const Tensor& weight, int64_t activation, int64_t winograd) {
    STD_TORCH_CHECK(x.dim() == 4, "upsample_conv_relu: x must be [N, C, H, W], got ", x.dim(),
                    " dimensions");
    STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == 3 &&
                        weight.size(3) == 3,
                    "upsample_conv_relu: weight must be [K, C = ", x.size(1), ", 3, 3]");
    STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(),
                    "upsample_conv_relu: weight must have the dtype of x");
    STD_TORCH_CHECK(x.numel() > 0 && weight.numel() > 0,
                    "upsample_conv_relu: no dimension of x or weight may be empty");
    STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::kSiLU) &&
                        winograd >= 0 &&
                        winograd <= (kWinogradForward | kWinogradInput | kWinogradWeight),
                    "upsample_conv_relu: unknown activation or algorithm");
    STD_TORCH_CHECK(winograd == 0 || x.scalar_type() != ScalarType::Double,
                    "upsample_conv_relu: Winograd's algorithm is not for float64");
    compute = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    Ints geometry(kGeometrySize, 1);
    geometry[kActivation] = activation;
    geometry[kPool] = static_cast<int64_t>(Pool::kNone);
    geometry[kWinograd] = winograd;
    geometry[kEpilogue] = geometry[kAllowTF32] = 0;
    whole = conv_relu_pool_params(x.size(0), x.size(1), 2 * x.size(2), 2 * x.size(3),
                                  weight.size(0), 3, 3, geometry.data());
    for (int i = 0; i < kParities; i++) {
      ConvReLUPoolParams& p = parity[i];
      p = whole;
      p.H = p.P = p.PH = x.size(2);
      p.W = p.Q = p.PW = x.size(3);
      p.R = p.S = 2;
      p.padding_h = 1 - i / 2;  // the last row of taps of an odd one lies in padding instead
      p.padding_w = 1 - i % 2;
    }
  }

  // The convolution of a gradient [n, K, 2 H, 2 W] that is x's.
  ConvReLUPoolParams adjoint(int64_t n) const {
    ConvReLUPoolParams p = whole;
    p.N = n;
    p.C = whole.K;
    p.K = whole.C;
    p.R = p.S = 4;
    p.stride_h = p.stride_w = 2;
    p.P = p.PH = parity[0].P;
    p.Q = p.PW = parity[0].Q;
    p.activation = Activation::kNone;
    p.winograd = whole.winograd & kWinogradInput ? kWinogradForward : 0;
    return p;
  }

  int64_t width() const { return compute == ScalarType::Double ? 8 : 4; }
  DType dtype() const { return compute == ScalarType::Double ? DType::kFloat64 : DType::kFloat32; }
};

// The rows and columns of one parity.
cpu::View4 part_of(const cpu::View4& v, int i) {
  const int64_t bytes = v.dtype == DType::kFloat64 ? 8 : v.dtype == DType::kFloat32 ? 4 : 2;
  cpu::View4 part = v;
  part.data = static_cast<char*>(v.data) + (i / 2 * v.stride[2] + i % 2 * v.stride[3]) * bytes;
  part.stride[2] *= 2;
  part.stride[3] *= 2;
  return part;
}

// The images from n on.
cpu::View4 images_of(const cpu::View4& v, int64_t n) {
  const int64_t bytes = v.dtype == DType::kFloat64 ? 8 : v.dtype == DType::kFloat32 ? 4 : 2;
  cpu::View4 part = v;
  part.data = static_cast<char*>(v.data) + n * v.stride[0] * bytes;
  return part;
}

// Which of weight's taps [first, last] along one dimension a tap of another filter is the sum of.
struct Taps {
  int first, last;
};
constexpr Taps kOfParity[2][2] = {{{0, 0}, {1, 2}}, {{0, 1}, {2, 2}}};  // [parity][tap]
constexpr Taps kOfAdjoint[4] = {{2, 2}, {1, 2}, {0, 1}, {0, 0}};

template <class T>
T sum_taps(const T* w, Taps rows, Taps cols) {
  T sum = 0;
  for (int r = rows.first; r <= rows.last; r++) {
    for (int s = cols.first; s <= cols.last; s++) sum += w[3 * r + s];
  }
  return sum;
}

// [4, K, C, 2, 2] of weight [K, C, 3, 3], both of the compute type and contiguous.
template <class T>
void fold_parities(const T* w, int64_t filters, T* out) {
  for (int i = 0; i < kParities; i++) {
    for (int64_t k = 0; k < filters; k++) {
      for (int tap = 0; tap < 4; tap++) {
        *out++ = sum_taps(w + 9 * k, kOfParity[i / 2][tap / 2], kOfParity[i % 2][tap % 2]);
      }
    }
  }
}

// [K, C, 4, 4] of weight [K, C, 3, 3].
template <class T>
void fold_adjoint(const T* w, int64_t filters, T* out) {
  for (int64_t k = 0; k < filters; k++) {
    for (int tap = 0; tap < 16; tap++) {
      *out++ = sum_taps(w + 9 * k, kOfAdjoint[tap / 4], kOfAdjoint[tap % 4]);
    }
  }
}

// The derivative of fold_parities: from [4, K, C, 2, 2] to [K, C, 3, 3].
template <class T>
void unfold_parities(const T* grad, int64_t filters, T* out) {
  std::fill_n(out, 9 * filters, T(0));
  for (int i = 0; i < kParities; i++) {
    for (int64_t k = 0; k < filters; k++) {
      for (int tap = 0; tap < 4; tap++, grad++) {
        const Taps rows = kOfParity[i / 2][tap / 2], cols = kOfParity[i % 2][tap % 2];
        for (int r = rows.first; r <= rows.last; r++) {
          for (int s = cols.first; s <= cols.last; s++) out[9 * k + 3 * r + s] += *grad;
        }
      }
    }
  }
}

template <class Function>
void with_type(ScalarType compute, Function function) {
  if (compute == ScalarType::Double) {
    function(double{});
  } else {
    function(float{});
  }
}

// Of the compute type, contiguous.
Tensor widened(const Tensor& t, ScalarType compute) {
  const Tensor wide = t.scalar_type() == compute ? t : torch::stable::to(t, compute);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

cpu::View4 dense_view(void* data, const Ints& sizes, DType dtype) {
  return {data, {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1}, dtype};
}

Tensor upsample_conv_relu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          int64_t activation, int64_t winograd) {
  const Call call(x, weight, activation, winograd);
  const ConvReLUPoolParams& whole = call.whole;
  if (bias) check_bias(whole, x, *bias);
  const int64_t filters = whole.K * whole.C;
  const Tensor wide = widened(weight, call.compute);
  const std::optional<Tensor> wide_bias =
      bias ? std::optional(widened(*bias, call.compute)) : std::nullopt;
  Tensor folded = new_tensor({kParities, whole.K, whole.C, 2, 2}, call.compute);
  with_type(call.compute, [&](auto t) {
    using T = decltype(t);
    fold_parities(static_cast<const T*>(wide.data_ptr()), filters,
                  static_cast<T*>(folded.data_ptr()));
  });
  const bool channels_last = answers_channels_last(whole, x, weight);
  // Every other column of a plane is no run of memory.
  Tensor y = new_tensor({whole.N, whole.K, whole.P, whole.Q}, x.scalar_type(), true);

  const int choice = whole.winograd & kWinogradForward ? 1 : 0;
  const auto& kernel = cpu::kernels().conv_relu_pool.forward[choice];
  std::array<cpu::ConvForwardArgs, kParities> args{};
  for (int i = 0; i < kParities; i++) {
    args[i].params = &call.parity[i];
    args[i].x = view(x);
    args[i].weight =
        dense_view(static_cast<char*>(folded.data_ptr()) + i * filters * 4 * call.width(),
                   {whole.K, whole.C, 2, 2}, call.dtype());
    args[i].bias = wide_bias ? wide_bias->data_ptr() : nullptr;
    args[i].y = part_of(view(y), i);
    args[i].threads = torch::stable::get_num_threads();
    if (choice == 0) divide_direct(args[i], call.width());
  }
  const int64_t pack_bytes = (kernel.pack_size(args[0]) + 63) / 64 * 64;
  char* packed = static_cast<char*>(shared_buffer.reserve(kParities * pack_bytes));
  for (int i = 0; i < kParities; i++) {
    args[i].packed_weight = packed + i * pack_bytes;
    kernel.pack(args[i]);
  }
  const int64_t scratch = kernel.scratch(args[0]), units = kernel.units(args[0]);
  const int64_t work = call.parity[0].N * call.parity[0].PH * work_per_row(call.parity[0]);
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / (kParities * work / units + 1));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    void* buffer = thread_buffer.reserve(scratch);
    for (const cpu::ConvForwardArgs& of_parity : args) kernel.run(of_parity, begin, end, buffer);
  });
  return channels_last ? y : torch::stable::contiguous(y);
}

// The gradients, a few images at a time: the gradient at their convolution's output stays in the
// cache of the thread that all gradients are computed by.
std::tuple<Tensor, Tensor, Tensor> upsample_conv_relu_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& y,
    int64_t activation, int64_t winograd, bool need_x, bool need_weight, bool need_bias) {
  const Call call(x, weight, activation, winograd);
  const ConvReLUPoolParams& whole = call.whole;
  const GradientReads reads = check_gradient(whole, x, grad_y, y, std::nullopt);
  const cpu::ConvReLUPoolKernels& kernels = cpu::kernels().conv_relu_pool;
  const int64_t filters = whole.K * whole.C, image = whole.K * whole.P * whole.Q;
  const bool sums = need_weight || need_bias;

  const int64_t threads = threads_for(whole.N * whole.PH * work_per_row(whole));
  const int64_t slots = std::min(threads, whole.N), per_slot = (whole.N + slots - 1) / slots;
  const int64_t chunk = std::clamp<int64_t>(kChunkBytes / (image * call.width()), 1, per_slot);
  const ConvReLUPoolParams adjoint = call.adjoint(chunk);

  cpu::ConvBackwardArgs from{};
  from.params = &whole;
  from.grad_y = view(grad_y);
  if (reads.y) from.y = view(*y);

  // x's gradient.
  Tensor grad_x = new_tensor(need_x ? Ints{whole.N, whole.C, whole.H / 2, whole.W / 2} : Ints{0},
                             x.scalar_type(), need_x && answers_channels_last(x, weight));
  const auto& input = kernels.forward[adjoint.winograd & kWinogradForward ? 1 : 0];
  cpu::ConvForwardArgs to_x{};
  Tensor turned;
  int64_t input_scratch = 0;
  const cpu::View4 of_gradient = {
      nullptr, {image, 1, whole.Q * whole.K, whole.K}, call.dtype()};  // channels_last
  if (need_x) {
    const Tensor wide = widened(weight, call.compute);
    turned = new_tensor({whole.K, whole.C, 4, 4}, call.compute);
    with_type(call.compute, [&](auto t) {
      using T = decltype(t);
      fold_adjoint(static_cast<const T*>(wide.data_ptr()), filters,
                   static_cast<T*>(turned.data_ptr()));
    });
    to_x.params = &adjoint;
    to_x.x = of_gradient;
    to_x.weight = {turned.data_ptr(), {16, 16 * whole.C, 4, 1}, call.dtype()};  // [C, K, 4, 4]
    to_x.y = view(grad_x);
    to_x.threads = 1;
    if (!(adjoint.winograd & kWinogradForward)) divide_direct(to_x, call.width());
  }

  // Weight's and bias's: each slot has the sums of all parities.
  std::array<ConvReLUPoolParams, kParities> parity = call.parity;
  std::array<cpu::ConvBackwardArgs, kParities> to_weight{};
  const auto& weights = kernels.weight[need_weight && (whole.winograd & kWinogradWeight) ? 1 : 0];
  Tensor folded = new_tensor(Ints{kParities, whole.K, whole.C, 2, 2}, call.compute);
  Tensor bias_sums = new_tensor(Ints{whole.K}, call.compute);
  int64_t partial_bytes = 0, weight_scratch = 0;
  for (int i = 0; i < kParities && sums; i++) {
    parity[i].N = chunk;
    parity[i].activation = Activation::kNone;
    parity[i].winograd = need_weight ? whole.winograd & kWinogradWeight : 0;
    to_weight[i].params = &parity[i];
    to_weight[i].grad_y = part_of(of_gradient, i);
    to_weight[i].x = view(x);
    to_weight[i].grad_weight =
        dense_view(static_cast<char*>(folded.data_ptr()) + i * filters * 4 * call.width(),
                   {whole.K, whole.C, 2, 2}, call.dtype());
    to_weight[i].grad_bias = bias_sums.data_ptr();
    to_weight[i].threads = 1;
    partial_bytes = need_weight ? slots * weights.partial_size(to_weight[i]) : 0;
    weight_scratch = std::max(weight_scratch, weights.scratch(to_weight[i]));
  }
  partial_bytes = (partial_bytes + 63) / 64 * 64;
  const int64_t bias_bytes = need_bias ? slots * whole.K * call.width() : 0;
  const int64_t pack_bytes = need_x ? (input.pack_size(to_x) + 63) / 64 * 64 : 0;
  const int64_t zeroed = kParities * partial_bytes + bias_bytes;
  char* shared = static_cast<char*>(shared_buffer.reserve(pack_bytes + zeroed));
  std::fill_n(shared + pack_bytes, zeroed, 0);
  if (need_x) {
    to_x.packed_weight = shared;
    input.pack(to_x);
    input_scratch = input.scratch(to_x);
  }
  for (int i = 0; i < kParities && sums; i++) {
    if (need_weight) to_weight[i].partial_weight = shared + pack_bytes + i * partial_bytes;
    if (need_bias) to_weight[i].partial_bias = shared + pack_bytes + kParities * partial_bytes;
  }

  torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
    const int64_t image_bytes = image * call.width();
    char* gradient =
        static_cast<char*>(gradient_buffer.reserve((chunk + (reads.y ? 1 : 0)) * image_bytes));
    void* scratch = thread_buffer.reserve(std::max(input_scratch, weight_scratch));
    for (int64_t slot = begin; slot < end; slot++) {
      const int64_t last = whole.N * (slot + 1) / slots;
      for (int64_t n = whole.N * slot / slots; n < last; n += chunk) {
        const int64_t images = std::min(chunk, last - n);
        for (int64_t i = 0; i < images; i++) {
          kernels.output_gradient(from, n + i, gradient + i * image_bytes,
                                  gradient + chunk * image_bytes);
        }
        cpu::View4 expanded = of_gradient;
        expanded.data = gradient;
        if (need_x) {
          ConvReLUPoolParams p = adjoint;
          p.N = images;
          cpu::ConvForwardArgs part = to_x;
          part.params = &p;
          part.x = expanded;
          part.y = images_of(to_x.y, n);
          input.run(part, 0, input.units(part), scratch);
        }
        for (int i = 0; i < kParities && sums; i++) {
          ConvReLUPoolParams p = parity[i];
          p.N = images;
          cpu::ConvBackwardArgs part = to_weight[i];
          part.params = &p;
          part.grad_y = part_of(expanded, i);
          part.x = images_of(to_weight[i].x, n);
          weights.run(part, 0, weights.units(part), slot, scratch);
        }
      }
    }
  });

  Tensor grad_weight =
      new_tensor(need_weight ? Ints{whole.K, whole.C, 3, 3} : Ints{0}, call.compute);
  for (int i = 0; i < kParities && sums; i++) {
    if (i > 0) to_weight[i].partial_bias = nullptr;  // added up once
    weights.reduce(to_weight[i], slots);
  }
  if (need_weight) {
    with_type(call.compute, [&](auto t) {
      using T = decltype(t);
      unfold_parities(static_cast<const T*>(folded.data_ptr()), filters,
                      static_cast<T*>(grad_weight.data_ptr()));
    });
  }
  Tensor grad_bias = need_bias ? bias_sums : new_tensor(Ints{0}, call.compute);
  if (call.compute != x.scalar_type()) {
    grad_weight = torch::stable::to(grad_weight, x.scalar_type());
    grad_bias = torch::stable::to(grad_bias, x.scalar_type());
  }
  if (need_weight && is_channels_last(weight)) {
    Tensor laid = new_tensor({whole.K, whole.C, 3, 3}, x.scalar_type(), true);
    torch::stable::copy_(laid, grad_weight);
    grad_weight = laid;
  }
  return {grad_x, grad_weight, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("upsample_conv_relu", TORCH_BOX(&upsample_conv_relu));
  m.impl("upsample_conv_relu_backward", TORCH_BOX(&upsample_conv_relu_backward));
}

}  // namespace imgfast
