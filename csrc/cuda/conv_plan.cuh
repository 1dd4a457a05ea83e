// One kernel of conv_relu_pool's forward, given: its tiles, its memory and its launch.
// conv_forward.cuh chooses it.
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
  std::int64_t workspace_bytes = 0;  // of packed weights; 0: the kernel reads them where they are
};

constexpr std::size_t kMostSharedBytes = 99 * 1024;  // a block's, of compute capability 8.6 and on
constexpr std::int64_t kMostBlocks = std::numeric_limits<int>::max();

// --- instances -----------------------------------------------------------------------------------

// What planning and launching need to know of a kernel.
template <int kV, Pooling kPooling>
struct ConvSimtInstance {
  using Element = float;
  using Layout = ConvSimtLayout<kV>;
  static constexpr int kM = ConvSimt::kM, kN = ConvSimt::kN, kThreads = ConvSimt::kThreads;
  static constexpr int kChannels = kV;  // multiples of them are packed,
  static constexpr int kVectorX = kV;   // and as many read of x at once
  static constexpr bool kFiltersLast = true;
  static constexpr Pooling kPool = kPooling;
  static auto kernel() { return &conv_relu_pool_forward_simt_kernel<kV, kPooling>; }
};

template <class T, int kWarpsN, Pooling kPooling>
struct ConvMmaInstance {
  using Element = T;
  using Size = ConvMma<T, kWarpsN>;
  using Layout = ConvMmaLayout<T, kWarpsN>;
  static constexpr int kM = Size::kM, kN = Size::kN, kThreads = Size::kThreads;
  static constexpr int kChannels = Size::kPiece, kVectorX = Size::kPiece;
  static constexpr bool kFiltersLast = false;
  static constexpr Pooling kPool = kPooling;
  static auto kernel() { return &conv_relu_pool_forward_mma_kernel<T, kWarpsN, kPooling>; }
};

template <class T, Pooling kPooling>
struct ConvMmaFewInstance {
  using Element = T;
  using Layout = ConvMmaFewLayout<T>;
  static constexpr int kM = ConvMmaFew::kM, kN = ConvMmaFew::kN, kThreads = ConvMmaFew::kThreads;
  static constexpr int kChannels = 1, kVectorX = 1;
  static constexpr bool kFiltersLast = false;
  static constexpr Pooling kPool = kPooling;
  static auto kernel() { return &conv_relu_pool_forward_mma_few_kernel<T, kPooling>; }
};

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

// How a kernel's weights come from a tensor of these strides.
template <class Instance>
ConvPacking conv_packing(const ConvShape& s, const std::int64_t (&stride)[4]) {
  const std::int64_t C = conv_ceil_div(s.C, Instance::kChannels) * Instance::kChannels;
  if constexpr (Instance::kFiltersLast) {
    const std::int64_t K = conv_ceil_div(s.K, Instance::kN) * Instance::kN;
    return {{s.groups, s.R, s.S, C, K},
            {s.K * stride[0], stride[2], stride[3], stride[1], stride[0]},
            s.C,
            s.K};
  } else {
    const std::int64_t filters = static_cast<std::int64_t>(s.groups) * s.K;
    return {{1, filters, s.R, s.S, C}, {0, stride[0], stride[2], stride[3], stride[1]}, s.S, s.C};
  }
}

// Whether the tensor is laid out as packing would lay it out.
template <class Instance>
bool is_packed(const ConvForwardCall& call, const ConvPacking& packing) {
  if (Instance::kFiltersLast || packing.valid4 != packing.size[4]) return false;
  std::int64_t next = 1;
  for (int d = ConvPacking::kDims - 1; d >= 1; d--) {
    if (packing.size[d] > 1 && packing.stride[d] != next) return false;
    next *= packing.size[d];
  }
  return reinterpret_cast<std::uintptr_t>(call.weight) % 16 == 0;
}

inline Pooling pooling_of(const ConvReLUPoolParams& p) {
  if (p.pool == Pool::kNone) return Pooling::kElement;
  return whole_2x2_windows(p) ? Pooling::kQuad : Pooling::kWindow;
}

// The plan of a kernel, of which Instance is the one for this call's dtype and pool.
template <class Instance>
ConvForwardPlan plan_instance(const ConvForwardCall& call, ConvKernel kernel) {
  using Element = typename Instance::Element;
  using Epilogue = EpilogueLayout<Instance::kPool, Instance::kM, Instance::kN>;
  constexpr std::size_t kEpilogueBytes = Epilogue().carver.bytes;
  ConvForwardPlan plan;
  plan.kernel = kernel;
  plan.pooling = Instance::kPool;
  if (!make_shape(*call.params, plan.shape)) return {};
  const ConvShape& s = plan.shape;
  const auto bytes = [&](const ConvTile& t) {
    return std::max(typename Instance::Layout(s, t).carver.bytes, kEpilogueBytes);
  };
  // Where channels lie apart a row is read in sectors of 32 bytes, which its ends do not fill.
  const int row_cost = call.x_stride[1] == 1 ? 0 : 32 / static_cast<int>(sizeof(Element));
  const auto fits = [&](const ConvTile& t) { return bytes(t) <= kMostSharedBytes; };
  plan.tile = choose_tile(s, Instance::kM, row_cost, fits);
  if (plan.tile.images == 0) return {};
  plan.shared_bytes = bytes(plan.tile);
  plan.blocks = conv_ceil_div(s.K, Instance::kN) * s.groups * conv_ceil_div(s.N, plan.tile.images) *
                plan.tile.tiles_h * plan.tile.tiles_w;
  if (plan.blocks > kMostBlocks) return {};
  plan.packing = conv_packing<Instance>(s, call.weight_stride);
  if (!is_packed<Instance>(call, plan.packing)) {
    plan.workspace_bytes = plan.packing.count() * static_cast<std::int64_t>(sizeof(Element));
  }
  return plan;
}

// --- launch --------------------------------------------------------------------------------------

template <class Instance>
cudaError_t launch_instance(const ConvForwardCall& call, const ConvForwardPlan& plan,
                            cudaStream_t stream) {
  using T = typename Instance::Element;
  const void* weight = call.weight;
  if (plan.workspace_bytes > 0) {
    constexpr int kPackThreads = 256;
    const std::int64_t blocks = conv_ceil_div(plan.packing.count(), kPackThreads);
    const auto grid = static_cast<unsigned>(std::min(blocks, kMostBlocks));
    const cudaError_t error =
        launch(conv_pack_kernel<T>, dim3(grid), dim3(kPackThreads), 0, stream,
               static_cast<const T*>(call.weight), static_cast<T*>(call.workspace), plan.packing);
    if (error != cudaSuccess) return error;
    weight = call.workspace;
  }
  const ConvShape& s = plan.shape;
  using Writer = Epilogue<T, Instance::kPool, Instance::kM, Instance::kN, Instance::kThreads>;
  ConvForward<T> a{};
  a.x = static_cast<const T*>(call.x);
  a.weight = weight;
  a.bias = static_cast<const T*>(call.bias);
  a.y = static_cast<T*>(call.y);
  std::copy_n(call.x_stride, 4, a.x_stride);
  std::copy_n(call.y_stride, 4, a.y_stride);
  a.codes = call.codes;
  a.vector_x = conv_vectors(call.x, call.x_stride, s.C, Instance::kVectorX, sizeof(T));
  a.vector_y = conv_vectors(call.y, call.y_stride, s.K, Writer::kVector, sizeof(T));
  a.shape = s;
  a.tile = plan.tile;
  return launch(Instance::kernel(), dim3(static_cast<unsigned>(plan.blocks)),
                dim3(Instance::kThreads), plan.shared_bytes, stream, a);
}

}  // namespace imgfast::cuda
