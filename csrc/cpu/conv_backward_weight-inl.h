// Weight and bias gradient of conv_relu_pool, exact and sparse: for a fixed filter, every window
// contributes its gradient times the input patch under the one position that the code names, so a
// quarter of a dense gradient's work for 2 x 2 windows, without a branch and without the expanded
// map.
//
// A few pooled rows at a time become one list of (place in the input strip, gradient) per filter.
// The taps' sums of one filter and block of channels stay in registers while its list is read; the
// strip's block stays in L1. Layers of few input channels have a kernel of their own, in
// conv_backward_weight_lookup-inl.h.
#pragma once

#include "conv_backward_weight_lookup-inl.h"
#include "conv_gradient-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct BackwardWeightScratch;

template <class X>
struct BackwardWeightPlan {
  using T = typename X::T;
  using Scratch = BackwardWeightScratch<X>;
  static constexpr int kStripBytes = 40 * 1024;  // of a block of channels, to stay in L1
  static constexpr int kSums = X::kTileCols >= 12 ? 18 : 12;  // that stay in registers
  static constexpr int kVectors = 6;                          // of a run, at a time

  int64_t C, K;  // per group
  TapRuns<X> taps;
  int64_t width, rows, strip_rows;  // strip columns, pooled rows of a strip, their input rows
  int64_t windows, capacity;        // of a strip; list entries of a filter
  int64_t span_h;

  explicit BackwardWeightPlan(const ConvReLUPoolParams& p)
      : C(p.C / p.groups), K(p.K / p.groups), taps(p, C, kVectors, 18) {
    width = (p.Q - 1) * p.stride_w + (p.S - 1) * p.dilation_w + 1;
    span_h = (p.pool_h - 1) * p.pool_dilation_h + 1;
    rows = 1;
    while (rows < p.PH &&
           input_rows(p, rows + 1) * width * taps.block * static_cast<int64_t>(sizeof(T)) <=
               kStripBytes) {
      rows++;
    }
    strip_rows = input_rows(p, rows);
    windows = rows * p.PW;
    // An odd number of cache lines, so that the lists' ends, all written at once, do not share one
    // cache set.
    capacity = (ceil_div(windows * (p.pool == Pool::kAvg ? p.pool_h * p.pool_w : 1), 16) | 1) * 16;
  }

  int64_t input_rows(const ConvReLUPoolParams& p, int64_t pooled_rows) const {
    const int64_t conv_rows = min_of((pooled_rows - 1) * p.pool_stride_h + span_h, p.P);
    return (conv_rows - 1) * p.stride_h + (p.R - 1) * p.dilation_h + 1;
  }

  int64_t strip_block() const {
    return round_up(strip_rows * width * taps.block + 2 * X::kLanes, 16);
  }
  int64_t filter_size() const { return taps.blocks * taps.padded_filter(); }
  int64_t partial_size(const ConvReLUPoolParams& p) const { return p.K * filter_size(); }
};

template <class X>
struct BackwardWeightScratch {
  GradientRows<X> gradient;
  typename X::T *strip, *value;  // [blocks][strip_rows][width][block], [K][capacity]
  int32_t *place, *count;        // [K][capacity], [K]
  int64_t size;

  BackwardWeightScratch(const ConvReLUPoolParams& p, const BackwardWeightPlan<X>& plan, Arena arena)
      : gradient(arena, p, plan.K, plan.rows) {
    strip = arena.take<typename X::T>(plan.taps.blocks * plan.strip_block());
    value = arena.take<typename X::T>(plan.K * plan.capacity);
    place = arena.take<int32_t>(plan.K * plan.capacity);
    count = arena.take<int32_t>(plan.K);
    size = arena.used;
  }
};

// sums[row][vector] += value * strip[place + row offset + vector], over a list, NR runs by NV
// vectors. Few sums are unrolled over the list, since a sum that waits for itself wastes four
// cycles.
template <class X, int NR, int NV>
static void accumulate_taps(const typename X::T* strip, const int64_t* run_offset,
                            const int32_t* place, const typename X::T* value, int64_t count,
                            typename X::T* sums, int64_t run_size) {
  constexpr int kUnroll = NR * NV >= 8 ? 1 : NR * NV >= 4 ? 2 : 4;
  typename X::V sum[kUnroll][NR][NV];
#pragma GCC unroll 4
  for (int u = 0; u < kUnroll; u++) {
#pragma GCC unroll 3
    for (int r = 0; r < NR; r++) {
#pragma GCC unroll 6
      for (int v = 0; v < NV; v++) sum[u][r][v] = X::zero();
    }
  }
  const typename X::T* run[NR];
  for (int r = 0; r < NR; r++) run[r] = strip + run_offset[r];
  int64_t i = 0;
  for (; i + kUnroll <= count; i += kUnroll) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; u++) {
      const auto g = X::set1(value[i + u]);
      const int64_t at = place[i + u];
#pragma GCC unroll 3
      for (int r = 0; r < NR; r++) {
#pragma GCC unroll 6
        for (int v = 0; v < NV; v++) {
          sum[u][r][v] = X::fma(g, X::load(run[r] + at + v * X::kLanes), sum[u][r][v]);
        }
      }
    }
  }
  if constexpr (kUnroll > 1) {
    for (; i < count; i++) {
      const auto g = X::set1(value[i]);
      for (int r = 0; r < NR; r++) {
        for (int v = 0; v < NV; v++) {
          sum[0][r][v] = X::fma(g, X::load(run[r] + place[i] + v * X::kLanes), sum[0][r][v]);
        }
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < NR; r++) {
#pragma GCC unroll 6
    for (int v = 0; v < NV; v++) {
      auto total = sum[0][r][v];
      for (int u = 1; u < kUnroll; u++) total = X::add(total, sum[u][r][v]);
      typename X::T* to = sums + r * run_size + v * X::kLanes;
      X::store(to, X::add(X::load(to), total));
    }
  }
}

template <class X>
using AccumulateTaps = decltype(&accumulate_taps<X, 1, 1>);

template <class X, int NV>
static AccumulateTaps<X> accumulate_taps_for_runs(int64_t runs) {
  if constexpr (3 * NV <= BackwardWeightPlan<X>::kSums) {
    if (runs == 3) return accumulate_taps<X, 3, NV>;
  }
  return runs == 2 ? accumulate_taps<X, 2, NV> : accumulate_taps<X, 1, NV>;
}

// Memory that will be read soon, brought near a part at a time between other work.
struct Prefetch {
  const char *next, *end;
  int64_t part;

  void advance() {
    const char* stop = end - next < part ? end : next + part;
    for (; next < stop; next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// All filters of a block of channels: as many runs by vectors at a time as registers hold.
template <class X>
static void accumulate_block(const ConvReLUPoolParams& p, const BackwardWeightPlan<X>& plan,
                             const BackwardWeightScratch<X>& s, const typename X::T* strip,
                             Prefetch& ahead, typename X::T* block_sums) {
  const TapRuns<X>& taps = plan.taps;
  const int64_t run_size = taps.vectors * X::kLanes;
  const int64_t pieces = ceil_div(taps.vectors, plan.kVectors);
  for (int64_t r = 0, runs; r < taps.segments; r += runs) {
    const int64_t widest = ceil_div(taps.vectors, pieces);
    runs = min_of(min_of(3, plan.kSums / widest), taps.segments - r);
    for (int64_t piece = 0; piece < pieces; piece++) {
      const int64_t v = taps.vectors * piece / pieces,
                    vectors = taps.vectors * (piece + 1) / pieces - v;
      const auto accumulate = with_count<BackwardWeightPlan<X>::kVectors>(
          vectors, [&](auto n) { return accumulate_taps_for_runs<X, decltype(n)::kValue>(runs); });
      int64_t offset[3];
      for (int64_t i = 0; i < runs; i++)
        offset[i] = taps.offset(p, r + i, plan.width) + v * X::kLanes;
      for (int64_t k = 0; k < plan.K; k++) {
        ahead.advance();
        accumulate(strip, offset, s.place + k * plan.capacity, s.value + k * plan.capacity,
                   s.count[k], block_sums + k * plan.filter_size() + r * run_size + v * X::kLanes,
                   run_size);
      }
    }
  }
}

// One list per filter, of the gradients that are not zero.
template <class X>
[[gnu::noinline]] static void list_by_filter(const ConvBackwardArgs& a,
                                             const BackwardWeightPlan<X>& plan,
                                             const BackwardWeightScratch<X>& s,
                                             const WindowWalk& walk, int64_t n, int64_t k0,
                                             int64_t ph0, int64_t ph1, int64_t p0) {
  const ConvReLUPoolParams& p = *a.params;
  fill_zero(s.count, plan.K);
  const typename X::T* g = s.gradient.grad;
  for (int64_t ph = ph0; ph < ph1; ph++) {
    for (int64_t pw = 0; pw < p.PW; pw++, g += plan.K) {
      const int64_t window = walk.window(ph, pw, p0);
      const uint8_t* codes = a.codes ? a.codes + ((n * p.PH + ph) * p.PW + pw) * p.K + k0 : nullptr;
      if (p.pool == Pool::kAvg) {
        for (int64_t position = 0; position < p.pool_h * p.pool_w; position++) {
          if (!walk.inside(ph, pw, position)) continue;
          for (int64_t k = 0; k < plan.K; k++) {
            const bool open = !codes || codes[k] >> position & 1;
            const typename X::T value = open ? g[k] : walk.blocked(g[k]);
            const int64_t i = k * plan.capacity + s.count[k];
            s.place[i] = static_cast<int32_t>(window + walk.place[position]);
            s.value[i] = value;
            s.count[k] += value != 0;
          }
        }
        continue;
      }
      for (int64_t k = 0; k < plan.K; k++) {
        const int64_t i = k * plan.capacity + s.count[k];
        s.place[i] = static_cast<int32_t>(window + (codes ? walk.place[codes[k] % kBlocked] : 0));
        s.value[i] = g[k];
        s.count[k] += g[k] != 0;
      }
    }
  }
}

// An average's pooled gradient reaches the bias once a position that the activation lets through.
template <class X>
static void add_bias_gradient_of_lists(const BackwardWeightPlan<X>& plan,
                                       const BackwardWeightScratch<X>& s, typename X::T* sums) {
  for (int64_t k = 0; k < plan.K; k++) {
    typename X::T total = 0;
    for (int64_t i = 0; i < s.count[k]; i++) total += s.value[k * plan.capacity + i];
    sums[k] += total;
  }
}

template <class X>
static void add_strip(const ConvBackwardArgs& a, const BackwardWeightPlan<X>& plan,
                      const BackwardWeightScratch<X>& s, int64_t n, int64_t g, int64_t ph0,
                      int64_t ph1, typename X::T* weight, typename X::T* bias) {
  using T = typename X::T;
  const ConvReLUPoolParams& p = *a.params;
  const TapRuns<X>& taps = plan.taps;
  const int64_t k0 = g * plan.K;
  const int64_t p0 = max_of(0, ph0 * p.pool_stride_h - p.pool_padding_h);
  const int64_t p1 = min_of(p.P, (ph1 - 1) * p.pool_stride_h - p.pool_padding_h + plan.span_h);
  s.gradient.stage(a, n, k0, ph0, ph1);
  if (weight || p.pool == Pool::kAvg) {
    const WindowWalk walk(p, p.stride_h * plan.width * taps.block, p.stride_w * taps.block);
    list_by_filter(a, plan, s, walk, n, k0, ph0, ph1, p0);
  }
  if (bias && p.pool == Pool::kAvg) {
    add_bias_gradient_of_lists(plan, s, bias + k0);
  } else if (bias) {
    add_bias_gradient<X>(s.gradient.grad, (ph1 - ph0) * p.PW, plan.K, plan.K, bias + k0);
  }
  if (!weight) return;
  const int64_t input_rows = (p1 - p0 - 1) * p.stride_h + (p.R - 1) * p.dilation_h + 1;
  // The rows of the next strip, if channels_last puts them behind one another.
  Prefetch ahead{};
  if (a.x.stride[1] == 1 && g == p.groups - 1) {
    const int64_t bytes =
        plan.rows * p.pool_stride_h * p.stride_h * a.x.stride[2] * bytes_of(a.x.dtype);
    ahead.next = static_cast<const char*>(
        at(a.x, n, 0, (p1 - 1) * p.stride_h - p.padding_h + (p.R - 1) * p.dilation_h, 0));
    ahead.end = ahead.next + bytes;
    ahead.part = round_up(ceil_div(bytes, taps.blocks * plan.K), 64);
  }
  for (int64_t b = 0; b < taps.blocks; b++) {
    T* strip = s.strip + b * plan.strip_block();
    stage_strip<X>(a.x, p.H, p.W, n, g * plan.C + b * taps.block,
                   min_of(taps.block, plan.C - b * taps.block), p0 * p.stride_h - p.padding_h,
                   input_rows, -p.padding_w, plan.width, taps.block, strip);
    accumulate_block(p, plan, s, strip, ahead,
                     weight + k0 * plan.filter_size() + b * taps.padded_filter());
  }
}

template <class X>
static void write_weight(const ConvBackwardArgs& a, const BackwardWeightPlan<X>& plan,
                         const typename X::T* sums) {
  const ConvReLUPoolParams& p = *a.params;
  const TapRuns<X>& taps = plan.taps;
  const bool dilated = p.dilation_w != 1;
  const int64_t run_size = taps.vectors * X::kLanes;
  for (int64_t k = 0; k < p.K; k++) {
    for (int64_t b = 0; b < taps.blocks; b++, sums += taps.padded_filter()) {
      for (int64_t r = 0; r < p.R; r++) {
        write_matrix<X>(sums + (dilated ? r * p.S : r) * run_size, dilated ? run_size : taps.block,
                        a.grad_weight.dtype, at(a.grad_weight, k, b * taps.block, r, 0),
                        a.grad_weight.stride[3], a.grad_weight.stride[1], p.S,
                        min_of(taps.block, plan.C - b * taps.block));
      }
    }
  }
}

// Calls function with the plan of the kernel that this layer gets.
template <class X, class Function>
static inline auto with_weight_plan(const ConvReLUPoolParams& p, Function function) {
  if constexpr (X::kPermutes) {
    if (LookupPlan<X>::fits(p)) return function(LookupPlan<X>(p));
  }
  return function(BackwardWeightPlan<X>(p));
}

static int64_t conv_backward_weight_partial_size(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    return with_weight_plan<X>(*a.params, [&](auto plan) {
      return plan.partial_size(*a.params) * static_cast<int64_t>(sizeof(typename X::T));
    });
  });
}

static int64_t conv_backward_weight_scratch(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    return with_weight_plan<decltype(x)>(*a.params, [&](auto plan) {
      using Scratch = typename decltype(plan)::Scratch;
      return Scratch(*a.params, plan, Arena{nullptr}).size;
    });
  });
}

static void conv_backward_weight(const ConvBackwardArgs& a, int64_t row_begin, int64_t row_end,
                                 int64_t slot, void* base) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    using T = typename X::T;
    const ConvReLUPoolParams& p = *a.params;
    with_weight_plan<X>(p, [&](auto plan) {
      const typename decltype(plan)::Scratch scratch(p, plan, Arena{static_cast<char*>(base)});
      T* weight = a.partial_weight ? static_cast<T*>(a.partial_weight) + slot * plan.partial_size(p)
                                   : nullptr;
      T* bias = a.partial_bias ? static_cast<T*>(a.partial_bias) + slot * p.K : nullptr;
      for (int64_t row = row_begin; row < row_end;) {
        const int64_t n = row / p.PH, ph0 = row % p.PH;
        const int64_t ph1 = min_of(min_of(ph0 + plan.rows, p.PH), ph0 + row_end - row);
        row += ph1 - ph0;
        for (int64_t g = 0; g < p.groups; g++) {
          add_strip<X>(a, plan, scratch, n, g, ph0, ph1, weight, bias);
        }
      }
    });
  });
}

static void conv_backward_weight_reduce(const ConvBackwardArgs& a, int64_t slots) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ConvReLUPoolParams& p = *a.params;
    with_weight_plan<X>(p, [&](auto plan) {
      auto* sums = static_cast<typename X::T*>(a.partial_weight);
      if (!sums) return;
      add_slots<X>(sums, plan.partial_size(p), slots);
      write_weight<X>(a, plan, sums);
    });
    reduce_bias_gradient<X>(a, slots);
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
