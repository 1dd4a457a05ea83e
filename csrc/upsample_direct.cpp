#include "upsample_direct.h"

#include <array>
#include <cstring>

#include "conv_units.h"
#include "cpu/dispatch.h"
#include "empty.h"

namespace imgfast {
namespace {

constexpr int64_t kChunkBytes = 512 << 10;     // of expanded gradients, to stay in a core's cache
constexpr int64_t kWorthAThreadFilters = 512;  // of 3 x 3 taps, below which a thread does not pay

Tensor new_tensor(const Ints& sizes, ScalarType dtype, bool channels_last = false) {
  return empty({sizes.data(), sizes.size()}, dtype, channels_last);
}

// Of the cache, in bytes.
int64_t whole_lines(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// The whole convolution, of the upsampled map, and what it is made of.
struct Call : UpsampleConvReLUParams {
  ScalarType compute;

  Call(const UpsampleConvReLUParams& params, const Tensor& x)
      : UpsampleConvReLUParams(params),
        compute(x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float) {}

  int64_t width() const { return bytes_of(dtype()); }
  DType dtype() const { return compute == ScalarType::Double ? DType::kFloat64 : DType::kFloat32; }
};

// The view that begins so many elements further on.
cpu::View4 from(const cpu::View4& v, int64_t elements) {
  cpu::View4 part = v;
  part.data = static_cast<char*>(v.data) + elements * bytes_of(v.dtype);
  return part;
}

// The rows and columns of one parity.
cpu::View4 part_of(const cpu::View4& v, int i) {
  cpu::View4 part = from(v, i / 2 * v.stride[2] + i % 2 * v.stride[3]);
  part.stride[2] *= 2;
  part.stride[3] *= 2;
  return part;
}

// Filter k of [4, K * C, 2, 2] of weight [K * C, 3, 3], both of the compute type and contiguous.
template <class T>
void fold_parities(const T* w, int64_t filters, int64_t k, T* out) {
  for (int i = 0; i < kParities; i++) {
    for (int tap = 0; tap < 4; tap++) {
      out[4 * (i * filters + k) + tap] =
          sum_taps(w + 9 * k, taps_of_parity(i / 2, tap / 2), taps_of_parity(i % 2, tap % 2));
    }
  }
}

// Filter k of [K * C, 4, 4] of weight [K * C, 3, 3].
template <class T>
void fold_adjoint(const T* w, int64_t, int64_t k, T* out) {
  for (int tap = 0; tap < 16; tap++) {
    out[16 * k + tap] = sum_taps(w + 9 * k, taps_of_adjoint(tap / 4), taps_of_adjoint(tap % 4));
  }
}

// The derivative of fold_parities: from [4, K * C, 2, 2] to [K * C, 3, 3].
template <class T>
void unfold_parities(const T* grad, int64_t filters, int64_t k, T* out) {
  for (int tap = 0; tap < 9; tap++) {
    T sum = 0;
    for (int i = 0; i < kParities; i++) {
      const int at = 2 * tap_of_parity(i / 2, tap / 3) + tap_of_parity(i % 2, tap % 3);
      sum += grad[4 * (i * filters + k) + at];
    }
    out[9 * k + tap] = sum;
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

// Calls function(k) of each filter, by all threads.
template <class Function>
void for_each_filter(int64_t filters, Function function) {
  torch::stable::parallel_for(0, filters, kWorthAThreadFilters, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) function(k);
  });
}

// Of the compute type, contiguous.
Tensor widened(const Tensor& t, ScalarType compute) {
  const Tensor wide = t.scalar_type() == compute ? t : torch::stable::to(t, compute);
  return wide.is_contiguous() ? wide : torch::stable::contiguous(wide);
}

// A tensor of such sizes that fold makes of the taps of weight.
template <class Fold>
Tensor folded_weight(const Call& call, const Tensor& weight, const Ints& sizes, Fold fold) {
  const Tensor wide = widened(weight, call.compute);
  Tensor result = new_tensor(sizes, call.compute);
  with_type(call.compute, [&](auto t) {
    using T = decltype(t);
    const auto* from = static_cast<const T*>(wide.data_ptr());
    auto* to = static_cast<T*>(result.data_ptr());
    const int64_t filters = call.whole.K * call.whole.C;
    for_each_filter(filters, [&](int64_t k) { fold(from, filters, k, to); });
  });
  return result;
}

cpu::View4 dense_view(void* data, const Ints& sizes, DType dtype) {
  return {data, {sizes[1] * sizes[2] * sizes[3], sizes[2] * sizes[3], sizes[3], 1}, dtype};
}

// The gradients of x, weight and bias, from gradients at the convolution's output, of the compute
// type and [images][P][Q][K].
class Backward {
 public:
  Backward(const Call& call, const Tensor& x, const Tensor& weight, int64_t slots, int64_t chunk,
           bool need_x, bool need_weight, bool need_bias)
      : call_(call),
        adjoint_(call.adjoint(chunk)),
        parity_(call.parity),
        slots_(slots),
        sums_weight_(need_weight),
        sums_bias_(need_bias) {
    const ConvReLUPoolParams& whole = call.whole;
    const int64_t filters = whole.K * whole.C;
    if (need_x) {
      grad_x_ = new_tensor({whole.N, whole.C, whole.H / 2, whole.W / 2}, x.scalar_type(),
                           answers_channels_last(x, weight));
      turned_ = folded_weight(call, weight, {whole.K, whole.C, 4, 4},
                              [](auto... arguments) { fold_adjoint(arguments...); });
      to_x_.params = &adjoint_;
      to_x_.x = expanded(nullptr);
      to_x_.weight = {turned_.data_ptr(), {16, 16 * whole.C, 4, 1}, call.dtype()};  // [C, K, 4, 4]
      to_x_.y = view(grad_x_);
      to_x_.threads = 1;
      divide_direct(to_x_, call.width());
    }
    if (sums()) {
      folded_ = new_tensor({kParities, whole.K, whole.C, 2, 2}, call.compute);
      for (int i = 0; i < kParities; i++) {
        parity_[i].N = chunk;
        parity_[i].activation = Activation::kNone;
        to_weight_[i].params = &parity_[i];
        to_weight_[i].grad_y = expanded(nullptr);
        to_weight_[i].x = view(x);
        to_weight_[i].grad_weight =
            dense_view(static_cast<char*>(folded_.data_ptr()) + i * filters * 4 * call.width(),
                       {whole.K, whole.C, 2, 2}, call.dtype());
        to_weight_[i].threads = 1;
      }
    }
    take_memory();
  }

  bool wants_x() const { return to_x_.params; }
  bool sums() const { return sums_weight_ || sums_bias_; }
  int64_t scratch() const { return scratch_; }
  int64_t units_of_x() const { return wants_x() ? input().units(to_x_) : 0; }

  // Units of the rows of grad_x of `images` images from n on, by default all.
  void run_x(void* gradient, int64_t n, int64_t images, void* scratch, int64_t begin = 0,
             int64_t end = -1) const {
    ConvReLUPoolParams p = adjoint_;
    p.N = images;
    cpu::ConvForwardArgs part = to_x_;
    part.params = &p;
    part.x = expanded(gradient);
    part.y = from(to_x_.y, n * to_x_.y.stride[0]);
    input().run(part, begin, end < 0 ? input().units(part) : end, scratch);
  }

  // Sets the sums of one parity and slot to zero.
  void clear(int i, int64_t slot) const {
    if (sums_weight_) {
      const int64_t bytes = weights().partial_size(to_weight_[i]);
      std::memset(static_cast<char*>(to_weight_[i].partial_weight) + slot * bytes, 0, bytes);
    }
    if (sums_bias_) {
      const int64_t bytes = call_.whole.K * call_.width();
      std::memset(static_cast<char*>(to_weight_[i].partial_bias) + slot * bytes, 0, bytes);
    }
  }

  // Adds one parity of `images` images from n on to a slot.
  void run_weight(int i, void* gradient, int64_t n, int64_t images, int64_t slot,
                  void* scratch) const {
    ConvReLUPoolParams p = parity_[i];
    p.N = images;
    cpu::ConvBackwardArgs part = of_images(i, gradient, n);
    part.params = &p;
    weights().run(part, 0, weights().units(part), slot, scratch);
  }

  // Adds all parities.
  void run_weights(void* gradient, int64_t n, int64_t images, int64_t slot, void* scratch) const {
    for (int i = 0; i < kParities; i++) run_weight(i, gradient, n, images, slot, scratch);
  }

  // Adds up slots and parities. The gradients are in the layouts of stock's, and have no element
  // where they are not needed.
  std::tuple<Tensor, Tensor, Tensor> finish(const Tensor& x, const Tensor& weight) {
    const ConvReLUPoolParams& whole = call_.whole;
    Tensor grad_weight =
        new_tensor(sums_weight_ ? Ints{whole.K, whole.C, 3, 3} : Ints{0}, call_.compute);
    Tensor grad_bias = new_tensor({sums_bias_ ? whole.K : 0}, call_.compute);
    with_type(call_.compute, [&](auto t) {
      using T = decltype(t);
      if (sums_weight_) {
        torch::stable::parallel_for(0, kParities, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i++) {
            cpu::ConvBackwardArgs args = to_weight_[i];
            args.partial_bias = nullptr;
            weights().reduce(args, slots_);
          }
        });
        const auto* from = static_cast<const T*>(folded_.data_ptr());
        auto* to = static_cast<T*>(grad_weight.data_ptr());
        const int64_t filters = whole.K * whole.C;
        for_each_filter(filters, [&](int64_t k) { unfold_parities(from, filters, k, to); });
      }
      T* bias = static_cast<T*>(grad_bias.data_ptr());
      for (int64_t k = 0; k < whole.K && sums_bias_; k++) {
        bias[k] = 0;
        for (int64_t i = 0; i < kParities * slots_; i++) {
          bias[k] += static_cast<const T*>(bias_)[i * whole.K + k];
        }
      }
    });
    if (call_.compute != x.scalar_type()) {
      grad_weight = torch::stable::to(grad_weight, x.scalar_type());
      grad_bias = torch::stable::to(grad_bias, x.scalar_type());
    }
    if (sums_weight_ && is_channels_last(weight)) {
      Tensor laid = new_tensor({whole.K, whole.C, 3, 3}, x.scalar_type(), true);
      torch::stable::copy_(laid, grad_weight);
      grad_weight = laid;
    }
    return {wants_x() ? grad_x_ : new_tensor({0}, x.scalar_type()), grad_weight, grad_bias};
  }

 private:
  const cpu::PackedKernel<cpu::ConvForwardArgs>& input() const {
    return cpu::kernels().conv_relu_pool.forward[0];
  }
  const cpu::SummedKernel& weights() const { return cpu::kernels().conv_relu_pool.weight[0]; }

  // A parity's call on the images from n on.
  cpu::ConvBackwardArgs of_images(int i, void* gradient, int64_t n) const {
    cpu::ConvBackwardArgs part = to_weight_[i];
    part.grad_y = part_of(expanded(gradient), i);
    part.x = from(part.x, n * part.x.stride[0]);
    return part;
  }

  cpu::View4 expanded(void* gradient) const {
    const ConvReLUPoolParams& whole = call_.whole;
    return {gradient, {whole.P * whole.Q * whole.K, 1, whole.Q * whole.K, whole.K}, call_.dtype()};
  }

  // Packed weights, and the sums of every parity and slot.
  void take_memory() {
    const int64_t pack = wants_x() ? whole_lines(input().pack_size(to_x_)) : 0;
    int64_t weight = 0, bias = 0;
    if (sums_weight_) weight = whole_lines(slots_ * weights().partial_size(to_weight_[0]));
    if (sums_bias_) bias = slots_ * call_.whole.K * call_.width();
    auto* memory = static_cast<char*>(shared_buffer.reserve(pack + kParities * (weight + bias)));
    if (wants_x()) {
      to_x_.packed_weight = memory;
      imgfast::pack(input(), to_x_);
      scratch_ = input().scratch(to_x_);
    }
    bias_ = memory + pack + kParities * weight;
    for (int i = 0; i < kParities && sums(); i++) {
      if (sums_weight_) to_weight_[i].partial_weight = memory + pack + i * weight;
      if (sums_bias_) to_weight_[i].partial_bias = static_cast<char*>(bias_) + i * bias;
      scratch_ = std::max(scratch_, weights().scratch(to_weight_[i]));
    }
    scratch_ = whole_lines(scratch_);
  }

  const Call& call_;
  ConvReLUPoolParams adjoint_;
  std::array<ConvReLUPoolParams, kParities> parity_;
  int64_t slots_, scratch_ = 0;
  bool sums_weight_, sums_bias_;
  Tensor grad_x_, turned_, folded_;
  cpu::ConvForwardArgs to_x_{};
  std::array<cpu::ConvBackwardArgs, kParities> to_weight_{};
  void* bias_ = nullptr;
};

}  // namespace

void upsample_direct(const UpsampleConvReLUParams& params, const Tensor& x, const Tensor& weight,
                     const std::optional<Tensor>& bias, const Tensor& y) {
  const Call call(params, x);
  const ConvReLUPoolParams& whole = call.whole;
  const int64_t filters = whole.K * whole.C;
  const std::optional<Tensor> wide_bias =
      bias ? std::optional(widened(*bias, call.compute)) : std::nullopt;
  const Tensor folded = folded_weight(call, weight, {kParities, whole.K, whole.C, 2, 2},
                                      [](auto... arguments) { fold_parities(arguments...); });
  std::array<cpu::ConvForwardArgs, kParities> parity{};
  for (int i = 0; i < kParities; i++) {
    parity[i].params = &call.parity[i];
    parity[i].x = view(x);
    parity[i].weight =
        dense_view(static_cast<char*>(folded.data_ptr()) + i * filters * 4 * call.width(),
                   {whole.K, whole.C, 2, 2}, call.dtype());
    parity[i].bias = wide_bias ? wide_bias->data_ptr() : nullptr;
    parity[i].y = part_of(view(y), i);
    parity[i].threads = torch::stable::get_num_threads();
  }
  const auto& kernel = cpu::kernels().conv_relu_pool.forward[0];
  divide_direct(parity[0], call.width());
  for (cpu::ConvForwardArgs& args : parity) {  // the same units, which padding has a say in
    args.unit_rows = parity[0].unit_rows;
    args.unit_filters = parity[0].unit_filters;
  }
  const int64_t pack_bytes = whole_lines(kernel.pack_size(parity[0]));
  char* packed = static_cast<char*>(shared_buffer.reserve(kParities * pack_bytes));
  for (cpu::ConvForwardArgs& args : parity) {
    args.packed_weight = packed;
    pack(kernel, args);
    packed += pack_bytes;
  }
  const int64_t scratch = kernel.scratch(parity[0]), units = kernel.units(parity[0]);
  const int64_t work = call.parity[0].N * call.parity[0].PH * work_per_row(call.parity[0]);
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / (kParities * work / units + 1));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    void* buffer = thread_buffer.reserve(scratch);
    for (const cpu::ConvForwardArgs& args : parity) kernel.run(args, begin, end, buffer);
  });
}

std::tuple<Tensor, Tensor, Tensor> upsample_direct_backward(const UpsampleConvReLUParams& params,
                                                            const Tensor& grad_y, const Tensor& x,
                                                            const Tensor& weight, const Tensor* y,
                                                            bool need_x, bool need_weight,
                                                            bool need_bias) {
  const Call call(params, x);
  const int64_t N = call.whole.N;
  const auto expand = cpu::kernels().conv_relu_pool.output_gradient;
  cpu::ConvBackwardArgs at_y{};
  at_y.params = &call.whole;
  at_y.grad_y = view(grad_y);
  if (y) at_y.y = view(*y);

  const int64_t image_bytes = call.whole.P * call.whole.Q * call.whole.K * call.width();
  const int64_t room_bytes = y ? image_bytes : 0;
  const int64_t threads = threads_for(N * call.whole.PH * work_per_row(call.whole));
  if (N >= threads) {
    // A thread expands a few images, which stay in its cache while all gradients are computed.
    const int64_t slots = std::min(threads, N), most = (N + slots - 1) / slots;
    const int64_t chunk = std::clamp<int64_t>(kChunkBytes / image_bytes, 1, most);
    Backward backward(call, x, weight, slots, chunk, need_x, need_weight, need_bias);
    torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
      char* scratch = static_cast<char*>(
          thread_buffer.reserve(backward.scratch() + chunk * image_bytes + room_bytes));
      char* gradient = scratch + backward.scratch();
      for (int64_t slot = begin; slot < end; slot++) {
        for (int i = 0; i < kParities && backward.sums(); i++) backward.clear(i, slot);
        const int64_t last = N * (slot + 1) / slots;
        for (int64_t n = N * slot / slots; n < last; n += chunk) {
          const int64_t images = std::min(chunk, last - n);
          for (int64_t i = 0; i < images; i++) {
            expand(at_y, n + i, gradient + i * image_bytes, gradient + chunk * image_bytes);
          }
          if (need_x) backward.run_x(gradient, n, images, scratch);
          if (backward.sums()) backward.run_weights(gradient, n, images, slot, scratch);
        }
      }
    });
    return backward.finish(x, weight);
  }
  // Fewer images than threads: these share the parities and the rows of grad_x.
  Backward backward(call, x, weight, 1, N, need_x, need_weight, need_bias);
  const Tensor gradients =
      new_tensor({N * (image_bytes + room_bytes) / call.width()}, call.compute);
  char* gradient = static_cast<char*>(gradients.data_ptr());
  torch::stable::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      expand(at_y, n, gradient + n * image_bytes, gradient + N * image_bytes + n * room_bytes);
    }
  });
  const int64_t units = backward.units_of_x(), parts = std::min(units, threads * 2);
  const int64_t sums = backward.sums() ? kParities : 0;
  torch::stable::parallel_for(0, sums + parts, 1, [&](int64_t begin, int64_t end) {
    void* scratch = thread_buffer.reserve(backward.scratch());
    for (int64_t task = begin; task < end; task++) {
      if (task < sums) {
        backward.clear(static_cast<int>(task), 0);
        backward.run_weight(static_cast<int>(task), gradient, 0, N, 0, scratch);
      } else {
        const int64_t part = task - sums;
        backward.run_x(gradient, 0, N, scratch, units * part / parts, units * (part + 1) / parts);
      }
    }
  });
  return backward.finish(x, weight);
}

}  // namespace imgfast
