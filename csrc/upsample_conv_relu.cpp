// upsample_conv_relu on the CPU: y = activation(conv2d(upsample_nearest(x, 2), weight, bias,
// padding=1)), by conv_relu_pool's kernels on maps of x's size: upsample_conv_relu.h tells how.
#include <torch/csrc/stable/library.h>

#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <tuple>

#include "conv_units.h"
#include "cpu/dispatch.h"
#include "empty.h"
#include "upsample_conv_relu_call.h"

namespace imgfast {
namespace {

constexpr int64_t kChunkBytes = 512 << 10;     // of expanded gradients, to stay in a core's cache
constexpr int64_t kWorthAThreadFilters = 512;  // of 3 x 3 taps, below which a thread does not pay

Tensor new_tensor(const Ints& sizes, ScalarType dtype, bool channels_last = false) {
  return empty({sizes.data(), sizes.size()}, dtype, channels_last);
}

// Of the cache, in bytes.
int64_t whole_lines(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

// A call: the whole convolution, of the upsampled map, and what it is made of.
struct Call : UpsampleConvReLUParams {
  ScalarType compute;

  Call(const Tensor& x, const Tensor& weight, int64_t activation, int64_t winograd)
      : UpsampleConvReLUParams(make_upsample_params(x, weight, activation, winograd, false)),
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

// The rows and columns of one parity, and the zeros around the map that are of them.
cpu::View4 part_of(const cpu::View4& v, int i) {
  cpu::View4 part = from(v, i / 2 * v.stride[2] + i % 2 * v.stride[3]);
  part.stride[2] *= 2;
  part.stride[3] *= 2;
  for (int axis = 0; axis < 2; axis++) {
    const int odd = axis == 0 ? i / 2 : i % 2;
    part.zeros.before[axis] = (v.zeros.before[axis] + odd) / 2;
    part.zeros.behind[axis] = (v.zeros.behind[axis] + 1 - odd) / 2;
  }
  return part;
}

// One call for those of all parities, which it has as its parts.
template <class Args>
Args over_windows(const ConvReLUPoolParams& windows, std::array<Args, kParities>& parity) {
  for (int i = 0; i < kParities; i++) {
    parity[i].first_row = i / 2;
    parity[i].first_col = i % 2;
  }
  Args all = parity[0];
  all.params = &windows;
  all.parts = parity.data();
  all.part_count = kParities;
  all.first_row = all.first_col = 0;
  return all;
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

Tensor upsample_conv_relu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          int64_t activation, int64_t winograd, bool) {
  const Call call(x, weight, activation, winograd);
  const ConvReLUPoolParams& whole = call.whole;
  if (bias) check_bias(whole, x, *bias);
  const int64_t filters = whole.K * whole.C;
  const std::optional<Tensor> wide_bias =
      bias ? std::optional(widened(*bias, call.compute)) : std::nullopt;
  const Tensor folded = folded_weight(call, weight, {kParities, whole.K, whole.C, 2, 2},
                                      [](auto... arguments) { fold_parities(arguments...); });
  const bool channels_last = answers_channels_last(whole, x, weight);
  // Every other column of a plane is no run of memory; with one filter, both layouts are the same.
  Tensor y = new_tensor({whole.N, whole.K, whole.P, whole.Q}, x.scalar_type(),
                        channels_last || whole.K > 1);

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
  // Winograd's kernel can make all parities in one call, of the same tiles of x.
  const bool tiled = whole.winograd & kWinogradForward;
  const bool together = tiled && call.shares_tiles();
  const auto& kernel = cpu::kernels().conv_relu_pool.forward[tiled ? 1 : 0];
  cpu::ConvForwardArgs all{};
  if (together) all = over_windows(call.windows, parity);
  const std::span<cpu::ConvForwardArgs> calls =
      together ? std::span(&all, 1) : std::span<cpu::ConvForwardArgs>(parity);
  if (!tiled) divide_direct(parity[0], call.width());
  for (cpu::ConvForwardArgs& args : parity) {  // the same units, which padding has a say in
    args.unit_rows = parity[0].unit_rows;
    args.unit_filters = parity[0].unit_filters;
  }
  const int64_t pack_bytes = whole_lines(kernel.pack_size(calls[0]));
  char* packed = static_cast<char*>(shared_buffer.reserve(calls.size() * pack_bytes));
  for (cpu::ConvForwardArgs& args : calls) {
    args.packed_weight = packed;
    pack(kernel, args);
    packed += pack_bytes;
  }
  const int64_t scratch = kernel.scratch(calls[0]), units = kernel.units(calls[0]);
  const int64_t work = call.parity[0].N * call.parity[0].PH * work_per_row(call.parity[0]);
  const int64_t grain = std::max<int64_t>(1, kWorthAThread / (kParities * work / units + 1));
  torch::stable::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    void* buffer = thread_buffer.reserve(scratch);
    for (const cpu::ConvForwardArgs& args : calls) kernel.run(args, begin, end, buffer);
  });
  return channels_last ? y : torch::stable::contiguous(y);
}

// Gradients at the convolution's output, of the compute type and [images][P][Q][K], with so many
// zeros around each map that Winograd's tiles find all that they read in memory: one row and column
// before it, and behind it what tiles of positions of each parity reach beyond it.
struct Expanded {
  int64_t K, rows, columns;  // of a map
  cpu::Border zeros{};
  int64_t row, image;  // elements from one to the next, of images whole lines of the cache

  explicit Expanded(const Call& call) : K(call.whole.K), rows(call.whole.P), columns(call.whole.Q) {
    const ConvReLUPoolParams adjoint = call.adjoint(1),
                             own = call.shares_tiles() ? call.windows : call.parity[0];
    reserve(adjoint, cpu::winograd_forward_points(adjoint));
    reserve(own, winograd_points(own, own.P, own.Q));
    row = (columns + zeros.before[1] + zeros.behind[1]) * K;
    image = ceil_div((rows + zeros.before[0] + zeros.behind[0]) * row, 16) * 16;
  }

  // For tiles over the maps of one parity.
  void reserve(const ConvReLUPoolParams& p, int64_t points) {
    const int64_t held = points + 1 - winograd_taps(p);
    for (int axis = 0; axis < 2; axis++) {
      const int64_t reach = ceil_div(axis == 0 ? p.P : p.Q, held) * held;
      const int64_t beyond = reach - (axis == 0 ? rows : columns) / 2;
      zeros.before[axis] = 1;
      zeros.behind[axis] = std::max(zeros.behind[axis], 2 * beyond + 1);
    }
  }

  // Where the first map begins in memory for some images.
  int64_t first() const { return zeros.before[0] * row + zeros.before[1] * K; }

  void clear_border(void* memory, int64_t width) const {
    char* const to = static_cast<char*>(memory);
    const int64_t map_row = columns * K, end = first() + rows * row - (row - map_row);
    std::memset(to, 0, first() * width);
    for (int64_t h = 1; h < rows; h++)
      std::memset(to + (first() + (h - 1) * row + map_row) * width, 0, (row - map_row) * width);
    std::memset(to + end * width, 0, (image - end) * width);
  }
};

// The gradients of x, weight and bias, from expanded gradients.
class Backward {
 public:
  // together: the weight gradients of all parities, of the same tiles of x, in one call
  Backward(const Call& call, const Tensor& x, const Tensor& weight, int64_t slots, int64_t chunk,
           bool together, bool need_x, bool need_weight, bool need_bias)
      : call_(call),
        adjoint_(call.adjoint(chunk)),
        parity_(call.parity),
        windows_(call.windows),
        slots_(slots),
        expanded_(call),
        sums_weight_(need_weight),
        sums_bias_(need_bias),
        together_(together) {
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
      if (!adjoint_.winograd) divide_direct(to_x_, call.width());
    }
    if (sums()) {
      folded_ = new_tensor({kParities, whole.K, whole.C, 2, 2}, call.compute);
      for (int i = 0; i < kParities; i++) {
        parity_[i].N = chunk;
        parity_[i].activation = Activation::kNone;
        parity_[i].winograd = need_weight ? whole.winograd & kWinogradWeight : 0;
        to_weight_[i].params = together ? &windows_ : &parity_[i];
        to_weight_[i].grad_y = expanded(nullptr);
        to_weight_[i].x = view(x);
        to_weight_[i].grad_weight =
            dense_view(static_cast<char*>(folded_.data_ptr()) + i * filters * 4 * call.width(),
                       {whole.K, whole.C, 2, 2}, call.dtype());
        to_weight_[i].threads = 1;
      }
      windows_.N = chunk;
      windows_.activation = Activation::kNone;
      windows_.winograd = parity_[0].winograd;
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
    if (!together_) {
      for (int i = 0; i < kParities; i++) run_weight(i, gradient, n, images, slot, scratch);
      return;
    }
    std::array<cpu::ConvBackwardArgs, kParities> parity{};
    for (int i = 0; i < kParities; i++) {
      parity[i] = of_images(i, gradient, n);
      parity[i].params = &parity_[i];
    }
    ConvReLUPoolParams p = windows_;
    p.N = images;
    const cpu::ConvBackwardArgs all = over_windows(p, parity);
    weights().run(all, 0, weights().units(all), slot, scratch);
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
    return cpu::kernels().conv_relu_pool.forward[adjoint_.winograd ? 1 : 0];
  }
  const cpu::SummedKernel& weights() const {
    return cpu::kernels().conv_relu_pool.weight[parity_[0].winograd ? 1 : 0];
  }

  // A parity's call on the images from n on.
  cpu::ConvBackwardArgs of_images(int i, void* gradient, int64_t n) const {
    cpu::ConvBackwardArgs part = to_weight_[i];
    part.grad_y = part_of(expanded(gradient), i);
    part.x = from(part.x, n * part.x.stride[0]);
    return part;
  }

  cpu::View4 expanded(void* gradient) const {
    const cpu::View4 memory = {
        gradient, {expanded_.image, 1, expanded_.row, expanded_.K}, call_.dtype(), expanded_.zeros};
    return gradient ? from(memory, expanded_.first()) : memory;  // null: for sizes alone
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
  ConvReLUPoolParams windows_;
  int64_t slots_, scratch_ = 0;
  Expanded expanded_;
  bool sums_weight_, sums_bias_, together_;
  Tensor grad_x_, turned_, folded_;
  cpu::ConvForwardArgs to_x_{};
  std::array<cpu::ConvBackwardArgs, kParities> to_weight_{};
  void* bias_ = nullptr;
};

std::tuple<Tensor, Tensor, Tensor> upsample_conv_relu_backward(
    const Tensor& grad_y, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& y,
    int64_t activation, int64_t winograd, bool, bool need_x, bool need_weight, bool need_bias) {
  const Call call(x, weight, activation, winograd);
  const int64_t N = call.whole.N;
  const GradientReads reads = check_gradient(call.whole, x, grad_y, y, std::nullopt);
  const auto expand = cpu::kernels().conv_relu_pool.output_gradient;
  cpu::ConvBackwardArgs at_y{};
  at_y.params = &call.whole;
  at_y.grad_y = view(grad_y);
  if (reads.y) at_y.y = view(*y);

  const Expanded expanded(call);
  const int64_t image_bytes = expanded.image * call.width();
  const int64_t room_bytes =
      reads.y ? call.whole.K * call.whole.P * call.whole.Q * call.width() : 0;
  const auto expand_image = [&](int64_t n, char* image, char* room) {
    expand(at_y, n, image + expanded.first() * call.width(), expanded.row, room);
  };
  const int64_t threads = threads_for(N * call.whole.PH * work_per_row(call.whole));
  if (N >= threads) {
    // A thread expands a few images, which stay in its cache while all gradients are computed.
    const int64_t slots = std::min(threads, N), most = (N + slots - 1) / slots;
    const int64_t chunk = std::clamp<int64_t>(kChunkBytes / image_bytes, 1, most);
    const bool together =
        need_weight && call.whole.winograd & kWinogradWeight && call.shares_tiles();
    Backward backward(call, x, weight, slots, chunk, together, need_x, need_weight, need_bias);
    torch::stable::parallel_for(0, slots, 1, [&](int64_t begin, int64_t end) {
      char* scratch = static_cast<char*>(
          thread_buffer.reserve(backward.scratch() + chunk * image_bytes + room_bytes));
      char* gradient = scratch + backward.scratch();
      for (int64_t i = 0; i < chunk; i++)
        expanded.clear_border(gradient + i * image_bytes, call.width());
      for (int64_t slot = begin; slot < end; slot++) {
        for (int i = 0; i < kParities && backward.sums(); i++) backward.clear(i, slot);
        const int64_t last = N * (slot + 1) / slots;
        for (int64_t n = N * slot / slots; n < last; n += chunk) {
          const int64_t images = std::min(chunk, last - n);
          for (int64_t i = 0; i < images; i++) {
            expand_image(n + i, gradient + i * image_bytes, gradient + chunk * image_bytes);
          }
          if (need_x) backward.run_x(gradient, n, images, scratch);
          if (backward.sums()) backward.run_weights(gradient, n, images, slot, scratch);
        }
      }
    });
    return backward.finish(x, weight);
  }
  // Fewer images than threads: these share the parities and the rows of grad_x.
  Backward backward(call, x, weight, 1, N, false, need_x, need_weight, need_bias);
  const Tensor gradients =
      new_tensor({N * (image_bytes + room_bytes) / call.width()}, call.compute);
  char* gradient = static_cast<char*>(gradients.data_ptr());
  torch::stable::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; n++) {
      expanded.clear_border(gradient + n * image_bytes, call.width());
      expand_image(n, gradient + n * image_bytes, gradient + N * image_bytes + n * room_bytes);
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(imgfast, CPU, m) {
  m.impl("upsample_conv_relu", TORCH_BOX(&upsample_conv_relu));
  m.impl("upsample_conv_relu_backward", TORCH_BOX(&upsample_conv_relu_backward));
}

}  // namespace imgfast
