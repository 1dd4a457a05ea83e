// What both gradients of conv_relu_pool share: the gradient at the convolution's output, as sparse
// as it is.
//
// Of every max window one position at most has a gradient, and the code byte names it. So the
// pooled gradient, taken through the activation, is all that is staged, [positions][K] for a few
// pooled rows; the map of convolution outputs is never expanded. Averages and the absence of a pool
// are the same walk with more positions a window.
#pragma once

#include "conv_rows-inl.h"
#include "conv_tile-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

// How both gradients look at the taps of a filter: runs of S * block channels (one tap's channels
// if dilated), cut into vectors. A block is all channels of a small C, or some multiple of 16 of
// them, so that vectors are aligned, what is walked at random stays in L1, and a gradient's place
// is read for as many sums as registers hold.
template <class X>
struct TapRuns {
  int64_t block, blocks;  // channels of a block; blocks of a group
  int64_t segments, run;  // runs of a filter, elements of a run
  int64_t vectors;        // vectors of a run, the last one padded
  int tail;               // lanes of the last one that count

  // At most `widest` times 16 channels a block, and about `sums` times 16 elements a filter's
  // block.
  TapRuns(const ConvReLUPoolParams& p, int64_t C, int64_t widest, int64_t sums) {
    const int64_t sixteens = ceil_div(C, 16);
    blocks = ceil_div(sixteens, min_of(max_of(1, sums / (p.R * p.S)), widest));
    block = C <= 8 ? C : ceil_div(sixteens, blocks) * 16;
    blocks = ceil_div(C, block);
    const bool dilated = p.dilation_w != 1;
    segments = dilated ? p.R * p.S : p.R;
    run = dilated ? block : p.S * block;
    vectors = ceil_div(run, X::kLanes);
    tail = static_cast<int>(run - (vectors - 1) * X::kLanes);
  }

  int64_t padded_filter() const {
    return segments * vectors * X::kLanes;
  }  // elements of a filter's block

  // Where run i starts in a strip of this width, relative to the convolution output's own place.
  int64_t offset(const ConvReLUPoolParams& p, int64_t i, int64_t width) const {
    if (p.dilation_w == 1) return i * p.dilation_h * width * block;
    return (i / p.S * p.dilation_h * width + i % p.S * p.dilation_w) * block;
  }
};

// Rows of positions, a row and a position so many elements apart, filters together.
template <class T>
struct PlacedRows {
  const T* first;
  int64_t row, position;
};

// Gradients at the convolution's output for pooled rows [ph0, ph1) of image n, filters [k0, k0 +
// K).
template <class X>
struct GradientRows {
  typename X::T*
      grad;          // [positions][K], through the activation and divided by an average's divisor
  typename X::T* y;  // [positions][K] where the activation's derivative needs it
  int64_t K;

  static bool needs_y(const ConvReLUPoolParams& p) {
    return p.activation == Activation::kSigmoid || p.activation == Activation::kTanh ||
           (p.pool == Pool::kNone && p.activation != Activation::kNone);
  }

  GradientRows(typename X::T* grad, typename X::T* y, int64_t K) : grad(grad), y(y), K(K) {}

  GradientRows(Arena& arena, const ConvReLUPoolParams& p, int64_t K, int64_t rows) : K(K) {
    grad = arena.take<typename X::T>(rows * p.PW * K);
    y = arena.take<typename X::T>(needs_y(p) ? rows * p.PW * K : 0);
  }

  void stage(const ConvBackwardArgs& a, int64_t n, int64_t k0, int64_t ph0, int64_t ph1) const {
    const ConvReLUPoolParams& p = *a.params;
    if (p.pool == Pool::kAvg) {
      copy_rows(p, a.grad_y, n, k0, ph0, ph1, grad);
      return divide(p, ph0, ph1);
    }
    if (p.activation == Activation::kNone) return copy_rows(p, a.grad_y, n, k0, ph0, ph1, grad);
    Source from{rows_of(p, a.grad_y, n, k0, ph0, ph1, grad), {nullptr, 0, 0}, nullptr};
    if (needs_y(p)) from.y = rows_of(p, a.y, n, k0, ph0, ph1, y);
    if (a.codes) from.codes = a.codes + (n * p.PH + ph0) * p.PW * p.K + k0;
    switch (p.activation) {
      case Activation::kReLU:
        return differentiate<Activation::kReLU>(from, p, ph1 - ph0);
      case Activation::kLeakyReLU:
        return differentiate<Activation::kLeakyReLU>(from, p, ph1 - ph0);
      case Activation::kSigmoid:
        return differentiate<Activation::kSigmoid>(from, p, ph1 - ph0);
      default:
        return differentiate<Activation::kTanh>(from, p, ph1 - ph0);
    }
  }

 private:
  using Rows = PlacedRows<typename X::T>;
  // What gradients are made of; codes lie dense, of the filters of all groups.
  struct Source {
    Rows grad, y;
    const uint8_t* codes;  // or null without a pool
  };

  // Rows of a tensor: where they lie if their filters lie together, or a copy.
  Rows rows_of(const ConvReLUPoolParams& p, const View4& from, int64_t n, int64_t k0, int64_t ph0,
               int64_t ph1, typename X::T* copy) const {
    if (is_computed_as_stored<X>(from.dtype) && from.stride[1] == 1)
      return {at<typename X::T>(from, n, k0, ph0, 0), from.stride[2], from.stride[3]};
    copy_rows(p, from, n, k0, ph0, ph1, copy);
    return {copy, p.PW * K, K};
  }

  // Rows that follow each other in memory are one matrix.
  void copy_rows(const ConvReLUPoolParams& p, const View4& from, int64_t n, int64_t k0, int64_t ph0,
                 int64_t ph1, typename X::T* to) const {
    const int64_t rows = from.stride[2] == p.PW * from.stride[3] ? ph1 - ph0 : 1;
    for (int64_t ph = ph0; ph < ph1; ph += rows, to += rows * p.PW * K) {
      read_matrix<X>(from.dtype, at(from, n, k0, ph, 0), from.stride[3], from.stride[1], to, K,
                     rows * p.PW, K);
    }
  }

  // What an average's activation lets through is decided position by position, by the bits of the
  // code.
  void divide(const ConvReLUPoolParams& p, int64_t ph0, int64_t ph1) const {
    typename X::T* g = grad;
    for (int64_t ph = ph0; ph < ph1; ph++) {
      for (int64_t pw = 0; pw < p.PW; pw++, g += K) {
        const auto scale = X::set1(
            static_cast<typename X::T>(1.0 / avg_divisor(p, ph * p.pool_stride_h - p.pool_padding_h,
                                                         pw * p.pool_stride_w - p.pool_padding_w)));
        for (int64_t k = 0; k < K; k += X::kLanes) {
          const int left = static_cast<int>(min_of(X::kLanes, K - k));
          X::store(g + k, X::mul(X::load(g + k, left), scale), left);
        }
      }
    }
  }

  // Takes the gradients through the activation, in runs without a gap: of all rows, a row or a
  // position.
  template <Activation kActivation>
  void differentiate(const Source& from, const ConvReLUPoolParams& p, int64_t rows) const {
    const Rows &g = from.grad, &y = from.y;
    int64_t positions = p.PW, run = K;
    if (g.position == K && (!y.first || y.position == K) && (!from.codes || p.K == K)) {
      run *= positions, positions = 1;
      if (g.row == run && (!y.first || y.row == run)) run *= rows, rows = 1;
    }
    typename X::T* to = grad;
    const uint8_t* codes = from.codes;
    for (int64_t i = 0; i < rows; i++) {
      for (int64_t j = 0; j < positions; j++, to += run) {
        differentiate_run<kActivation>(g.first + i * g.row + j * g.position,
                                       y.first ? y.first + i * y.row + j * y.position : nullptr,
                                       codes, run, to);
        if (codes) codes += p.K;
      }
    }
  }

  template <Activation kActivation>
  static void differentiate_run(const typename X::T* grads, const typename X::T* values,
                                const uint8_t* codes, int64_t count, typename X::T* to) {
    for_each_vector<X>(count, [&](int64_t i, auto vector) {
      const auto g = vector.load(grads + i), one = X::set1(1);
      if constexpr (kActivation == Activation::kSigmoid) {
        const auto value = vector.load(values + i);
        vector.store(to + i, X::mul(g, X::mul(value, X::sub(one, value))));
      } else if constexpr (kActivation == Activation::kTanh) {
        const auto value = vector.load(values + i);
        vector.store(to + i, X::mul(g, X::sub(one, X::mul(value, value))));
      } else {  // blocked: the argument was <= 0
        const auto blocked = codes ? X::ge(vector.load(codes + i), X::set1(kBlocked))
                                   : X::ge(X::zero(), vector.load(values + i));
        const auto small = kActivation == Activation::kReLU
                               ? X::zero()
                               : X::mul(g, X::set1(static_cast<typename X::T>(kLeakyReLUSlope)));
        vector.store(to + i, X::blend(blocked, small, g));
      }
    });
  }
};

static void conv_output_gradient(const ConvBackwardArgs& a, int64_t n, void* out, void* room) {
  with_compute(a.grad_y.dtype, [&](auto x) {
    using T = typename decltype(x)::T;
    const ConvReLUPoolParams& p = *a.params;
    GradientRows<decltype(x)>(static_cast<T*>(out), static_cast<T*>(room), p.K)
        .stage(a, n, 0, 0, p.P);
  });
}

// sums[k] += the gradients of all positions, grad [positions][step], of which the first K count. In
// four parts, since a sum that waits for itself wastes four cycles.
template <class X>
static void add_bias_gradient(const typename X::T* grad, int64_t positions, int64_t step, int64_t K,
                              typename X::T* sums) {
  for (int64_t k = 0; k < K; k += X::kLanes) {
    const int n = static_cast<int>(min_of(X::kLanes, K - k));
    const typename X::T* from = grad + k;
    typename X::V total[4] = {X::zero(), X::zero(), X::zero(), X::zero()};
    int64_t i = 0;
    for (; i + 4 <= positions; i += 4) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++, from += step) total[u] = X::add(total[u], X::load(from, n));
    }
    for (; i < positions; i++, from += step) total[0] = X::add(total[0], X::load(from, n));
    total[0] = X::add(X::add(total[0], total[1]), X::add(total[2], total[3]));
    X::store(sums + k, X::add(X::load(sums + k, n), total[0]), n);
  }
}

// The convolution row and column of a position of a window; they may lie outside of the map.
static inline int64_t position_row(const ConvReLUPoolParams& p, int64_t ph, int64_t position) {
  return ph * p.pool_stride_h - p.pool_padding_h + position / p.pool_w * p.pool_dilation_h;
}
static inline int64_t position_col(const ConvReLUPoolParams& p, int64_t pw, int64_t position) {
  return pw * p.pool_stride_w - p.pool_padding_w + position % p.pool_w * p.pool_dilation_w;
}

// The positions of one window that may carry a gradient: all of an average, the named one of a
// maximum.
struct WindowWalk {
  const ConvReLUPoolParams& p;
  int64_t row_step, col_step;  // of neighbouring convolution outputs in a strip
  int64_t place[kMaxWindow];   // of a position, relative to the window's first

  WindowWalk(const ConvReLUPoolParams& p, int64_t row_step, int64_t col_step)
      : p(p), row_step(row_step), col_step(col_step) {
    for (int64_t i = 0; i < min_of(p.pool_h * p.pool_w, kMaxWindow); i++) {
      place[i] =
          i / p.pool_w * p.pool_dilation_h * row_step + i % p.pool_w * p.pool_dilation_w * col_step;
    }
  }

  // Of the window (ph, pw) in a strip whose first row belongs to convolution row p0 and first
  // column to output 0.
  int64_t window(int64_t ph, int64_t pw, int64_t p0) const {
    return (ph * p.pool_stride_h - p.pool_padding_h - p0) * row_step +
           (pw * p.pool_stride_w - p.pool_padding_w) * col_step;
  }

  bool inside(int64_t ph, int64_t pw, int64_t position) const {
    const int64_t h = position_row(p, ph, position), w = position_col(p, pw, position);
    return h >= 0 && h < p.P && w >= 0 && w < p.Q;
  }

  // What an average's gradient g becomes at a position where the activation's argument was <= 0.
  template <class T>
  T blocked(T g) const {
    if (p.activation == Activation::kReLU) return 0;
    return p.activation == Activation::kLeakyReLU ? static_cast<T>(g * kLeakyReLUSlope) : g;
  }
};

// Adds the slots [slots][size] to the first, in their order, so that the result depends on their
// number alone. Size is a multiple of the lanes.
template <class X>
static void add_slots(typename X::T* sums, int64_t size, int64_t slots) {
  for (int64_t slot = 1; slot < slots; slot++) {
    const typename X::T* from = sums + slot * size;
    for (int64_t i = 0; i < size; i += X::kLanes) {
      X::store(sums + i, X::add(X::load(sums + i), X::load(from + i)));
    }
  }
}

template <class X>
static void reduce_bias_gradient(const ConvBackwardArgs& a, int64_t slots) {
  const int64_t K = a.params->K;
  auto* bias = static_cast<typename X::T*>(a.partial_bias);
  if (!bias) return;
  for (int64_t i = 1; i < slots; i++) {
    for (int64_t k = 0; k < K; k++) bias[k] += bias[i * K + k];
  }
  write_matrix<X>(bias, K, a.grad_y.dtype, a.grad_bias, K, 1, 1, K);
}

// The units of the direct gradients: pooled rows of all images, counted n * PH + ph.
static int64_t count_pooled_rows(const ConvBackwardArgs& a) { return a.params->N * a.params->PH; }

}  // namespace imgfast::cpu::IMGFAST_ISA
