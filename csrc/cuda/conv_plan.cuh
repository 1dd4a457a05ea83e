// One kernel of a convolution, given: its tiles, its memory and its launch. conv_forward.cuh and
// conv_backward_input.cuh choose it.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "cuda/conv_mma.cuh"
#include "cuda/conv_mma_few.cuh"
#include "cuda/conv_pack.cuh"
#include "cuda/conv_simt.cuh"

namespace imgfast::cuda {

struct ConvForwardCall {
  const ConvReLUPoolParams* params;
  DType dtype;  // of x, weight, bias and y
  const void* x;
  std::int64_t x_stride[4];  // [N, C, H, W]
  const void* weight;
  std::int64_t weight_stride[4];  // [K, C / groups, R, S]
  const void* bias;               // [K] or null
  void* y;
  std::int64_t y_stride[4];  // [N, K, PH, PW]
  std::uint8_t* codes;       // [N, PH, PW, K] or null
  void* workspace;
};

enum class ConvKernel { kNone, kSimt, kSimtFew, kMma, kMmaWide, kMmaFew };

struct ConvForwardPlan {
  ConvKernel kernel = ConvKernel::kNone;
  Pooling pooling = Pooling::kElement;
  ConvShape shape{};
  ConvTile tile{};
  std::int64_t blocks = 0;
  std::size_t shared_bytes = 0;
  ConvPacking packing{};
  bool filters_last = false;         // of packed weights, or channels
  std::int64_t workspace_bytes = 0;  // of packed weights; 0: the kernel reads them where they are
};

constexpr std::size_t kMostSharedBytes = 99 * 1024;  // a block's, of compute capability 8.6 and on
constexpr std::int64_t kMostBlocks = std::numeric_limits<int>::max();

// --- instances -----------------------------------------------------------------------------------

// What planning and launching need to know of a kernel.
template <int kV, Pooling kPooling, class Arguments = ConvForward<float>>
struct ConvSimtInstance {
  using Element = float;
  using Args = Arguments;
  using Layout = ConvSimtLayout<kV, kReadsGradient<Args>>;
  static constexpr int kM = ConvSimt::kM, kN = ConvSimt::kN, kThreads = ConvSimt::kThreads;
  static constexpr int kChannels = kV;  // multiples of them are packed,
  static constexpr int kVectorX = kV;   // and as many read of x at once
  static constexpr bool kFiltersLast = true;
  static constexpr Pooling kPool = kPooling;
  static auto kernel() { return &conv_simt_kernel<kV, kPooling, Args>; }
};

template <class T, int kWarpsN, Pooling kPooling, class Arguments = ConvForward<T>>
struct ConvMmaInstance {
  using Element = T;
  using Args = Arguments;
  using Size = ConvMma<T, kWarpsN>;
  using Layout = ConvMmaLayout<T, kWarpsN>;
  static constexpr int kM = Size::kM, kN = Size::kN, kThreads = Size::kThreads;
  static constexpr int kChannels = Size::kPiece, kVectorX = Size::kPiece;
  static constexpr bool kFiltersLast = false;
  static constexpr Pooling kPool = kPooling;
  static auto kernel() { return &conv_mma_kernel<T, kWarpsN, kPooling, Args>; }
};

template <class T, Pooling kPooling>
struct ConvMmaFewInstance {
  using Element = T;
  using Args = ConvForward<T>;
  using Layout = ConvMmaFewLayout<T>;
  static constexpr int kM = ConvMmaFew::kM, kN = ConvMmaFew::kN, kThreads = ConvMmaFew::kThreads;
  static constexpr int kChannels = 1, kVectorX = 1;
  static constexpr bool kFiltersLast = false;
  static constexpr Pooling kPool = kPooling;
  static auto kernel() { return &conv_mma_few_kernel<T, kPooling>; }
};

// function(T{}) for the element of a dtype.
template <class Result, class Function>
Result with_element(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::kFloat32:
      return function(float{});
    case DType::kBFloat16:
      return function(__nv_bfloat16{});
    case DType::kFloat16:
      return function(__half{});
    default:
      return Result{};
  }
}

// function(T{}, kind) for the element and for a kind of pooling, an integral constant.
template <class Result, class Function>
Result with_element_and_pooling(DType dtype, Pooling pooling, const Function& function) {
  return with_element<Result>(dtype, [&](auto element) {
    switch (pooling) {
      case Pooling::kElement:
        return function(element, std::integral_constant<Pooling, Pooling::kElement>{});
      case Pooling::kQuad:
        return function(element, std::integral_constant<Pooling, Pooling::kQuad>{});
      default:
        return function(element, std::integral_constant<Pooling, Pooling::kWindow>{});
    }
  });
}

// --- planning ------------------------------------------------------------------------------------

inline std::int64_t conv_ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// False if a number, or the furthest pixel that padding reaches, is not far below what 32 bits
// hold.
inline bool make_shape(const ConvReLUPoolParams& p, ConvShape& s) {
  constexpr std::int64_t kMost = 1 << 28;
  const std::int64_t C = p.C / p.groups;
  for (std::int64_t number :
       {p.N, p.C, p.K, p.R * p.S * C, p.H + 2 * p.padding_h + p.stride_h * p.pool_padding_h,
        p.W + 2 * p.padding_w + p.stride_w * p.pool_padding_w, p.stride_h * p.pool_stride_h,
        p.stride_w * p.pool_stride_w, p.dilation_h * p.R, p.dilation_w * p.S,
        p.pool_dilation_h * p.pool_h * p.stride_h, p.pool_dilation_w * p.pool_w * p.stride_w}) {
    if (number > kMost) return false;
  }
  const auto to_int = [](std::int64_t number) { return static_cast<int>(number); };
  s = ConvShape{.N = to_int(p.N),
                .C = to_int(C),
                .H = to_int(p.H),
                .W = to_int(p.W),
                .K = to_int(p.K / p.groups),
                .R = to_int(p.R),
                .S = to_int(p.S),
                .P = to_int(p.P),
                .Q = to_int(p.Q),
                .PH = to_int(p.PH),
                .PW = to_int(p.PW),
                .stride_h = to_int(p.stride_h),
                .stride_w = to_int(p.stride_w),
                .padding_h = to_int(p.padding_h),
                .padding_w = to_int(p.padding_w),
                .dilation_h = to_int(p.dilation_h),
                .dilation_w = to_int(p.dilation_w),
                .groups = to_int(p.groups),
                .pool_h = to_int(p.pool_h),
                .pool_w = to_int(p.pool_w),
                .pool_stride_h = to_int(p.pool_stride_h),
                .pool_stride_w = to_int(p.pool_stride_w),
                .pool_padding_h = to_int(p.pool_padding_h),
                .pool_padding_w = to_int(p.pool_padding_w),
                .pool_dilation_h = to_int(p.pool_dilation_h),
                .pool_dilation_w = to_int(p.pool_dilation_w),
                .count_include_pad = p.count_include_pad,
                .activate_first = activates_first(p),
                .pool = p.pool,
                .activation = p.activation};
  return true;
}

// The box of outputs with the least work for all tiles together, of those whose positions are at
// most kM and that fit. Products are made for kM positions, full or not; to stage a pixel costs as
// much as kStagingCost of them, and a row of pixels as much as row_cost pixels more.
template <class Fits>
ConvTile choose_tile(const ConvShape& s, int kM, int row_cost, const Fits& fits) {
  constexpr double kStagingCost = 8;
  const int span_h = (s.pool_h - 1) * s.pool_dilation_h + 1;
  const int span_w = (s.pool_w - 1) * s.pool_dilation_w + 1;
  const auto box = [&](int images, int rows, int cols) {
    ConvTile t{.images = images, .rows = rows, .cols = cols};
    t.conv_rows = (rows - 1) * s.pool_stride_h + span_h;
    t.conv_cols = (cols - 1) * s.pool_stride_w + span_w;
    t.in_rows = (t.conv_rows - 1) * s.stride_h + (s.R - 1) * s.dilation_h + 1;
    t.in_cols = (t.conv_cols - 1) * s.stride_w + (s.S - 1) * s.dilation_w + 1;
    t.tiles_h = static_cast<int>(conv_ceil_div(s.PH, rows));
    t.tiles_w = static_cast<int>(conv_ceil_div(s.PW, cols));
    return t;
  };
  const auto holds = [&](const ConvTile& t) {
    constexpr std::int64_t kMostPixels = 1 << 16;  // of an image: fits may count in 32 bits
    return static_cast<std::int64_t>(t.in_rows) * t.in_cols <= kMostPixels && fits(t);
  };
  ConvTile best{};
  double least = std::numeric_limits<double>::infinity();
  for (int cols = 1; cols <= s.PW; cols++) {
    const std::int64_t conv_cols = static_cast<std::int64_t>(cols - 1) * s.pool_stride_w + span_w;
    const std::int64_t room = kM / conv_cols - span_h;
    if (room < 0) break;
    int rows = static_cast<int>(std::min<std::int64_t>(s.PH, room / s.pool_stride_h + 1));
    rows = static_cast<int>(conv_ceil_div(s.PH, conv_ceil_div(s.PH, rows)));  // as even as can be
    ConvTile t = box(1, rows, cols);
    if (rows == s.PH && cols == s.PW) t.images = std::min(s.N, kM / t.positions());
    while (!holds(t) && (t.images > 1 || t.rows > 1)) {
      t = t.images > 1 ? box(t.images - 1, t.rows, cols) : box(1, t.rows - 1, cols);
    }
    if (!holds(t)) break;
    const double tiles = static_cast<double>(conv_ceil_div(s.N, t.images)) * t.tiles_h * t.tiles_w;
    const double staged = static_cast<double>(t.images) * t.in_rows * (t.in_cols + row_cost);
    const double cost = tiles * (static_cast<double>(kM) * s.R * s.S + kStagingCost * staged);
    if (cost < least) {
      least = cost;
      best = t;
    }
  }
  return best;
}

// Whether runs of `elements` along dimension 1 are aligned vectors of memory.
inline bool conv_vectors(const void* data, const std::int64_t (&stride)[4], std::int64_t size,
                         std::int64_t elements, std::int64_t element_bytes) {
  bool whole = stride[1] == 1 && size % elements == 0;
  for (int d : {0, 2, 3}) whole = whole && stride[d] % elements == 0;
  return whole && reinterpret_cast<std::uintptr_t>(data) % (elements * element_bytes) == 0;
}

// Strides of weights as a kernel takes them: of groups, filters, taps, and the channels that are
// added up.
struct ConvWeightStrides {
  std::int64_t group, filter, r, s, channel;
};

// How a kernel's weights come from memory of these strides.
template <class Instance>
ConvPacking conv_packing(const ConvShape& s, const ConvWeightStrides& stride) {
  const std::int64_t C = conv_ceil_div(s.C, Instance::kChannels) * Instance::kChannels;
  if constexpr (Instance::kFiltersLast) {
    const std::int64_t K = conv_ceil_div(s.K, Instance::kN) * Instance::kN;
    return {{s.groups, s.R, s.S, C, K},
            {stride.group, stride.r, stride.s, stride.channel, stride.filter},
            s.C,
            s.K};
  } else {
    return {{s.groups, s.K, s.R, s.S, C},
            {stride.group, stride.filter, stride.r, stride.s, stride.channel},
            s.S,
            s.C};
  }
}

// Whether weights are laid out as packing would lay them out.
template <class Instance>
bool is_packed(const void* weight, const ConvPacking& packing) {
  if (Instance::kFiltersLast || packing.valid4 != packing.size[4]) return false;
  std::int64_t next = 1;
  for (int d = ConvPacking::kDims - 1; d >= 0; d--) {
    if (packing.size[d] > 1 && packing.stride[d] != next) return false;
    next *= packing.size[d];
  }
  return reinterpret_cast<std::uintptr_t>(weight) % 16 == 0;
}

inline Pooling pooling_of(const ConvReLUPoolParams& p) {
  if (p.pool == Pool::kNone) return Pooling::kElement;
  return whole_2x2_windows(p) ? Pooling::kQuad : Pooling::kWindow;
}

// Tiles for plan.shape, of input that lies as channels_together says. False if none fits.
template <class Instance>
bool plan_tiles(ConvForwardPlan& plan, bool channels_together) {
  using Element = typename Instance::Element;
  using Epilogue = EpilogueLayout<Instance::kPool, Instance::kM, Instance::kN>;
  constexpr std::size_t kEpilogueBytes = Epilogue().carver.bytes;
  const ConvShape& s = plan.shape;
  const auto bytes = [&](const ConvTile& t) {
    return std::max(typename Instance::Layout(s, t).carver.bytes, kEpilogueBytes);
  };
  // Where channels lie apart a row is read in sectors of 32 bytes, which its ends do not fill.
  const int row_cost = channels_together ? 0 : 32 / static_cast<int>(sizeof(Element));
  const auto fits = [&](const ConvTile& t) { return bytes(t) <= kMostSharedBytes; };
  plan.tile = choose_tile(s, Instance::kM, row_cost, fits);
  if (plan.tile.images == 0) return false;
  plan.filters_last = Instance::kFiltersLast;
  plan.shared_bytes = bytes(plan.tile);
  plan.blocks = conv_ceil_div(s.K, Instance::kN) * s.groups * conv_ceil_div(s.N, plan.tile.images) *
                plan.tile.tiles_h * plan.tile.tiles_w;
  return plan.blocks <= kMostBlocks;
}

// The plan of a kernel, of which Instance is the one for this call's dtype and pool.
template <class Instance>
ConvForwardPlan plan_instance(const ConvForwardCall& call, ConvKernel kernel) {
  ConvForwardPlan plan;
  plan.kernel = kernel;
  plan.pooling = Instance::kPool;
  if (!make_shape(*call.params, plan.shape)) return {};
  if (!plan_tiles<Instance>(plan, call.x_stride[1] == 1)) return {};
  const std::int64_t (&stride)[4] = call.weight_stride;
  plan.packing = conv_packing<Instance>(
      plan.shape, {plan.shape.K * stride[0], stride[0], stride[2], stride[3], stride[1]});
  if (!is_packed<Instance>(call.weight, plan.packing)) {
    plan.workspace_bytes =
        plan.packing.count() * static_cast<std::int64_t>(sizeof(typename Instance::Element));
  }
  return plan;
}

// --- launch --------------------------------------------------------------------------------------

template <class T>
cudaError_t launch_packing(const ConvPacking& packing, const void* from, void* to,
                           cudaStream_t stream) {
  if (packing.count() == 0) return cudaSuccess;
  return launch(conv_pack_kernel<T>, dim3(static_cast<unsigned>(packing.tiles())),
                dim3(ConvPacking::kThreads), 0, stream, static_cast<const T*>(from),
                static_cast<T*>(to), packing);
}

// Of arguments that are complete but for shape, tile and what follows from them.
template <class Instance>
cudaError_t launch_tiles(const ConvForwardPlan& plan, typename Instance::Args& a,
                         cudaStream_t stream) {
  using T = typename Instance::Element;
  using Writer = Epilogue<T, Instance::kPool, Instance::kM, Instance::kN, Instance::kThreads>;
  a.vector_y = conv_vectors(a.y, a.y_stride, plan.shape.K, Writer::kVector, sizeof(T));
  a.shape = plan.shape;
  a.tile = plan.tile;
  return launch(Instance::kernel(), dim3(static_cast<unsigned>(plan.blocks)),
                dim3(Instance::kThreads), plan.shared_bytes, stream, a);
}

template <class Instance>
cudaError_t launch_instance(const ConvForwardCall& call, const ConvForwardPlan& plan,
                            cudaStream_t stream) {
  using T = typename Instance::Element;
  typename Instance::Args a{};
  a.weight = call.weight;
  if (plan.workspace_bytes > 0) {
    const cudaError_t error = launch_packing<T>(plan.packing, call.weight, call.workspace, stream);
    if (error != cudaSuccess) return error;
    a.weight = call.workspace;
  }
  a.x = static_cast<const T*>(call.x);
  a.bias = static_cast<const T*>(call.bias);
  a.y = static_cast<T*>(call.y);
  std::copy_n(call.x_stride, 4, a.x_stride);
  std::copy_n(call.y_stride, 4, a.y_stride);
  a.codes = call.codes;
  a.vector_x = conv_vectors(call.x, call.x_stride, plan.shape.C, Instance::kVectorX, sizeof(T));
  return launch_tiles<Instance>(plan, a, stream);
}

}  // namespace imgfast::cuda
