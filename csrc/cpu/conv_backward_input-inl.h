// Input gradient of conv_relu_pool, exact and sparse: the filters whose maximum lies at one
// position share one patch of grad_x, so their weights, each times its gradient, are summed in
// registers and added to the patch once.
//
// Pooled rows are taken a few at a time from top to bottom; a row of grad_x is written when no
// later window can reach it. Weights are packed [channel block][K][taps][channels of the block] and
// taken in chunks of filters that fit L1.
#pragma once

#include "conv_gradient-inl.h"

namespace imgfast::cpu::IMGFAST_ISA {

template <class X>
struct BackwardInputPlan {
  using T = typename X::T;
  static constexpr int64_t kChunkBytes = 36 * 1024;  // of one block's weights, to stay in L1
  static constexpr int64_t kWindows = 32;            // of a strip, to pay for loading the chunk
  static constexpr int kSums = X::kTileCols >= 12 ? 18 : 12;

  int64_t C, K;  // per group
  TapRuns<X> taps;
  int64_t chunk;  // filters
  int64_t width, rows,
      strip_rows;  // strip columns, pooled rows of a strip, rows of grad_x under them
  int64_t span_h, positions;

  explicit BackwardInputPlan(const ConvReLUPoolParams& p)
      : C(p.C / p.groups), K(p.K / p.groups), taps(p, C, 9, 9) {
    width = (p.Q - 1) * p.stride_w + (p.S - 1) * p.dilation_w + 1;
    span_h = (p.pool_h - 1) * p.pool_dilation_h + 1;
    positions = p.pool_h * p.pool_w;
    rows = min_of(ceil_div(kWindows, p.PW), p.PH);
    strip_rows = end_row(p, rows - 1) + p.padding_h;
    for (int64_t ph = 0; ph + rows <= p.PH; ph++) {
      strip_rows = max_of(strip_rows, end_row(p, ph + rows - 1) - first_row(p, ph));
    }
    const int64_t bytes = taps.padded_filter() * static_cast<int64_t>(sizeof(T));
    chunk = min_of(K, max_of(8, kChunkBytes / bytes));
  }

  // The first row of grad_x that pooled row ph reaches, and the row after its last; both may lie
  // outside the image.
  static int64_t first_row(const ConvReLUPoolParams& p, int64_t ph) {
    return max_of(0, ph * p.pool_stride_h - p.pool_padding_h) * p.stride_h - p.padding_h;
  }
  int64_t end_row(const ConvReLUPoolParams& p, int64_t ph) const {
    const int64_t last = min_of(p.P - 1, ph * p.pool_stride_h - p.pool_padding_h + span_h - 1);
    return last * p.stride_h - p.padding_h + (p.R - 1) * p.dilation_h + 1;
  }

  int64_t strip_block() const { return strip_rows * width * taps.block; }
  int64_t group_size() const { return taps.blocks * K * taps.padded_filter(); }
};

template <class X>
struct BackwardInputScratch {
  using T = typename X::T;
  GradientRows<X> gradient;
  T* strip;  // [blocks][strip_rows][width][block]
  T *chunk_value,
      *chunk_place;  // [chunk] gradients of a window's filters, and their positions or -1
  T* value;          // [window][list_size] gradients, by position
  int32_t *filter,
      *start;  // [window][list_size] their filters, [window][positions + 1] where positions start
  int64_t* offset;  // [segments * vectors] where a vector of taps belongs in the strip
  int64_t list_size, size;

  BackwardInputScratch(const ConvReLUPoolParams& p, const BackwardInputPlan<X>& plan, Arena arena)
      : gradient(arena, p, plan.K, plan.rows) {
    const int64_t windows = plan.rows * p.PW;
    list_size = round_up(plan.chunk * (p.pool == Pool::kAvg ? plan.positions : 1) + X::kLanes, 16);
    strip = arena.take<T>(plan.taps.blocks * plan.strip_block());
    chunk_value = arena.take<T>(plan.chunk + X::kLanes);
    chunk_place = arena.take<T>(plan.chunk + X::kLanes);
    value = arena.take<T>(windows * list_size);
    filter = arena.take<int32_t>(windows * list_size);
    start = arena.take<int32_t>(windows * (plan.positions + 1));
    offset = arena.take<int64_t>(plan.taps.segments * plan.taps.vectors);
    size = arena.used;
  }
};

static int64_t conv_backward_input_pack_size(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    return a.params->groups * BackwardInputPlan<X>(*a.params).group_size() *
           static_cast<int64_t>(sizeof(typename X::T));
  });
}

static int64_t conv_backward_input_scratch(const ConvBackwardArgs& a) {
  return with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const BackwardInputPlan<X> plan(*a.params);
    return BackwardInputScratch<X>(*a.params, plan, Arena{nullptr}).size;
  });
}

// [group][channel block][K][segment][run padded to whole vectors]
static void conv_backward_input_pack(const ConvBackwardArgs& a) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ConvReLUPoolParams& p = *a.params;
    const BackwardInputPlan<X> plan(p);
    const TapRuns<X>& taps = plan.taps;
    const int64_t run_size = taps.vectors * X::kLanes;
    auto* out = static_cast<typename X::T*>(a.packed_weight);
    fill_zero(out, p.groups * plan.group_size());
    for (int64_t g = 0; g < p.groups; g++) {
      for (int64_t b = 0; b < taps.blocks; b++) {
        const int64_t channels = min_of(taps.block, plan.C - b * taps.block);
        for (int64_t k = 0; k < plan.K; k++, out += taps.padded_filter()) {
          for (int64_t r = 0; r < p.R; r++) {
            typename X::T* run = out + (p.dilation_w == 1 ? r : r * p.S) * run_size;
            read_matrix<X>(a.weight.dtype, at(a.weight, g * plan.K + k, b * taps.block, r, 0),
                           a.weight.stride[3], a.weight.stride[1], run,
                           p.dilation_w == 1 ? taps.block : run_size, p.S, channels);
          }
        }
      }
    }
  });
}

// patch += sum over a list of gradient * weights, for NA vectors of the filters' taps. A run that
// does not fill its last vector must not touch what follows it in the strip: there, tail lanes
// count.
template <class X, int NA>
static void gather_filters(const typename X::T* weight, int64_t filter_size, const int32_t* filter,
                           const typename X::T* value, int64_t count, const int64_t* offset,
                           int64_t first, const TapRuns<X>& taps, typename X::T* patch) {
  constexpr int kUnroll = NA >= 8 ? 1 : NA >= 4 ? 2 : 4;
  typename X::V sum[kUnroll][NA];
#pragma GCC unroll 4
  for (int u = 0; u < kUnroll; u++) {
#pragma GCC unroll 18
    for (int v = 0; v < NA; v++) sum[u][v] = X::zero();
  }
  int64_t i = 0;
  for (; i + kUnroll <= count; i += kUnroll) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; u++) {
      const auto g = X::set1(value[i + u]);
      const typename X::T* w = weight + filter[i + u] * filter_size;
#pragma GCC unroll 18
      for (int v = 0; v < NA; v++) sum[u][v] = X::fma(g, X::load(w + v * X::kLanes), sum[u][v]);
    }
  }
  if constexpr (kUnroll > 1) {
    for (; i < count; i++) {
      const auto g = X::set1(value[i]);
      const typename X::T* w = weight + filter[i] * filter_size;
#pragma GCC unroll 18
      for (int v = 0; v < NA; v++) sum[0][v] = X::fma(g, X::load(w + v * X::kLanes), sum[0][v]);
    }
#pragma GCC unroll 4
    for (int u = 1; u < kUnroll; u++) {
#pragma GCC unroll 18
      for (int v = 0; v < NA; v++) sum[0][v] = X::add(sum[0][v], sum[u][v]);
    }
  }
  if (taps.tail == X::kLanes) {
#pragma GCC unroll 18
    for (int v = 0; v < NA; v++) {
      typename X::T* to = patch + offset[v];
      X::store(to, X::add(X::load(to), sum[0][v]));
    }
    return;
  }
#pragma GCC unroll 18
  for (int v = 0; v < NA; v++) {
    typename X::T* to = patch + offset[v];
    const int lanes = (first + v + 1) % taps.vectors == 0 ? taps.tail : X::kLanes;
    X::store(to, X::add(X::load(to, lanes), sum[0][v]), lanes);
  }
}

// Of filters [k0, k0 + chunk) of a group, those whose gradient is not zero, listed by window and
// position.
template <class X>
[[gnu::noinline]] static void list_by_position(const ConvBackwardArgs& a,
                                               const BackwardInputPlan<X>& plan,
                                               const BackwardInputScratch<X>& s,
                                               const WindowWalk& walk, int64_t n, int64_t group_k0,
                                               int64_t k0, int64_t chunk, int64_t ph0,
                                               int64_t ph1) {
  using T = typename X::T;
  const ConvReLUPoolParams& p = *a.params;
  const int64_t lanes = round_up(chunk, X::kLanes);
  for (int64_t k = chunk; k < lanes; k++) s.chunk_place[k] = -1;
  for (int64_t ph = ph0; ph < ph1; ph++) {
    for (int64_t pw = 0; pw < p.PW; pw++) {
      const int64_t window = (ph - ph0) * p.PW + pw;
      const T* g = s.gradient.grad + window * plan.K + k0;
      const uint8_t* codes =
          a.codes ? a.codes + ((n * p.PH + ph) * p.PW + pw) * p.K + group_k0 + k0 : nullptr;
      T* value = s.value + window * s.list_size;
      int32_t* filter = s.filter + window * s.list_size;
      int32_t* start = s.start + window * (plan.positions + 1);
      const auto append = [&](const T* from, int64_t position, int count) {
        const auto wanted = X::set1(static_cast<T>(position));
        for (int64_t k = 0; k < lanes; k += X::kLanes) {
          count += X::compress(X::eq(X::load(s.chunk_place + k), wanted), X::load(from + k),
                               static_cast<int>(k), value + count, filter + count);
        }
        start[position + 1] = count;
      };
      start[0] = 0;
      if (p.pool == Pool::kAvg) {
        for (int64_t position = 0; position < plan.positions; position++) {
          const bool inside = walk.inside(ph, pw, position);
          for (int64_t k = 0; k < chunk; k++) {
            const bool open = !codes || codes[k] >> position & 1;
            s.chunk_value[k] = open ? g[k] : walk.blocked(g[k]);
            s.chunk_place[k] = inside && s.chunk_value[k] != 0 ? static_cast<T>(position) : -1;
          }
          append(s.chunk_value, position, start[position]);
        }
        continue;
      }
      for (int64_t k = 0; k < chunk; k += X::kLanes) {
        const int left = static_cast<int>(min_of(X::kLanes, chunk - k));
        const auto gradient = X::load(g + k, left);
        auto place = codes ? X::load(codes + k, left) : X::zero();
        place = X::blend(X::ge(place, X::set1(kBlocked)), X::sub(place, X::set1(kBlocked)), place);
        X::store(s.chunk_value + k, gradient);
        X::store(s.chunk_place + k, X::blend(X::eq(gradient, X::zero()), X::set1(-1), place));
      }
      for (int64_t position = 0; position < plan.positions; position++) {
        append(s.chunk_value, position, start[position]);
      }
    }
  }
}

// Adds what pooled rows [ph0, ph1) contribute to the strip, whose first row is that of ph0.
template <class X>
[[gnu::noinline]] static void add_to_strip(const ConvBackwardArgs& a,
                                           const BackwardInputPlan<X>& plan,
                                           const BackwardInputScratch<X>& s, const WindowWalk& walk,
                                           int64_t n, int64_t g, int64_t ph0, int64_t ph1) {
  const ConvReLUPoolParams& p = *a.params;
  const TapRuns<X>& taps = plan.taps;
  const int64_t filter_size = taps.padded_filter(), total = taps.segments * taps.vectors;
  const int64_t passes = ceil_div(total, plan.kSums);
  const int64_t p0 = max_of(0, ph0 * p.pool_stride_h - p.pool_padding_h);
  const auto* packed = static_cast<const typename X::T*>(a.packed_weight) + g * plan.group_size();
  for (int64_t k0 = 0; k0 < plan.K; k0 += plan.chunk) {
    list_by_position(a, plan, s, walk, n, g * plan.K, k0, min_of(plan.chunk, plan.K - k0), ph0,
                     ph1);
    for (int64_t b = 0; b < taps.blocks; b++) {
      const auto* weight = packed + (b * plan.K + k0) * filter_size;
      typename X::T* strip = s.strip + b * plan.strip_block();
      for (int64_t pass = 0; pass < passes; pass++) {
        const int64_t v = total * pass / passes;
        const auto gather = with_count<BackwardInputPlan<X>::kSums>(
            total * (pass + 1) / passes - v,
            [](auto n) { return gather_filters<X, decltype(n)::kValue>; });
        for (int64_t ph = ph0; ph < ph1; ph++) {
          for (int64_t pw = 0; pw < p.PW; pw++) {
            const int64_t window = (ph - ph0) * p.PW + pw;
            const int32_t* start = s.start + window * (plan.positions + 1);
            typename X::T* patch = strip + walk.window(ph, pw, p0);
            for (int64_t position = 0; position < plan.positions; position++) {
              const int64_t count = start[position + 1] - start[position];
              if (count == 0) continue;
              const int64_t at = window * s.list_size + start[position];
              gather(weight + v * X::kLanes, filter_size, s.filter + at, s.value + at, count,
                     s.offset + v, v, taps, patch + walk.place[position]);
            }
          }
        }
      }
    }
  }
}

// Writes rows [h0, h1) of grad_x, clipped to [own0, own1), from a strip whose first row is h0; rows
// beyond the strip are zero, as are columns that no window reaches.
template <class X>
static void write_rows(const ConvBackwardArgs& a, const BackwardInputPlan<X>& plan,
                       const BackwardInputScratch<X>& s, int64_t n, int64_t g, int64_t h0,
                       int64_t h1, int64_t own0, int64_t own1) {
  const ConvReLUPoolParams& p = *a.params;
  const TapRuns<X>& taps = plan.taps;
  for (int64_t h = max_of(h0, own0); h < min_of(h1, own1); h++) {
    const bool stored = h - h0 < plan.strip_rows;
    const int64_t cols = stored ? max_of(0, min_of(p.W, plan.width - p.padding_w)) : 0;
    for (int64_t b = 0; b < taps.blocks; b++) {
      const int64_t channels = min_of(taps.block, plan.C - b * taps.block);
      const View4 to = view_at(a.grad_x, n, g * plan.C + b * taps.block, h, 0);
      const typename X::T* row =
          s.strip + b * plan.strip_block() + ((h - h0) * plan.width + p.padding_w) * taps.block;
      if (cols > 0) {
        write_matrix<X>(row, taps.block, to.dtype, to.data, to.stride[3], to.stride[1], cols,
                        channels);
      }
      const typename X::T zero = 0;
      for (int64_t c = 0; c < channels && cols < p.W; c++) {
        write_matrix<X>(&zero, 0, to.dtype, at(to, 0, c, 0, cols), to.stride[3], 1, p.W - cols, 1);
      }
    }
  }
}

// Moves the strip's window down by some rows; what comes in is zero.
template <class X>
static void advance_strip(const BackwardInputPlan<X>& plan, typename X::T* strip, int64_t by) {
  const int64_t row = plan.width * plan.taps.block;
  const int64_t kept = max_of(0, plan.strip_rows - by);
  for (int64_t b = 0; b < plan.taps.blocks; b++) {
    typename X::T* block = strip + b * plan.strip_block();
    if (kept > 0 && by > 0) std::memmove(block, block + by * row, kept * row * sizeof *block);
    fill_zero(block + kept * row, (plan.strip_rows - kept) * row);
  }
}

// The pooled rows [row_begin, row_end) own the rows of grad_x from their first row to that of
// row_end; windows above that reach into these rows are computed again, so that no two calls write
// the same row.
static void conv_backward_input(const ConvBackwardArgs& a, int64_t row_begin, int64_t row_end,
                                void* base) {
  with_compute(a.x.dtype, [&](auto x) {
    using X = decltype(x);
    const ConvReLUPoolParams& p = *a.params;
    const BackwardInputPlan<X> plan(p);
    const TapRuns<X>& taps = plan.taps;
    const BackwardInputScratch<X> s(p, plan, Arena{static_cast<char*>(base)});
    const WindowWalk walk(p, p.stride_h * plan.width * taps.block, p.stride_w * taps.block);
    for (int64_t i = 0; i < taps.segments * taps.vectors; i++) {
      s.offset[i] = taps.offset(p, i / taps.vectors, plan.width) + i % taps.vectors * X::kLanes;
    }
    for (int64_t row = row_begin; row < row_end;) {
      const int64_t n = row / p.PH, begin = row % p.PH, end = min_of(p.PH, begin + row_end - row);
      row += end - begin;
      const int64_t own0 = begin == 0 ? 0 : max_of(0, plan.first_row(p, begin));
      const int64_t own1 = end == p.PH ? p.H : max_of(0, min_of(p.H, plan.first_row(p, end)));
      int64_t start = begin;
      while (start > 0 && plan.end_row(p, start - 1) > own0) start--;
      for (int64_t g = 0; g < p.groups; g++) {
        advance_strip<X>(plan, s.strip, plan.strip_rows);
        for (int64_t ph = start; ph < end;) {
          const int64_t next = min_of(ph + plan.rows, end);
          s.gradient.stage(a, n, g * plan.K, ph, next);
          add_to_strip(a, plan, s, walk, n, g, ph, next);
          const int64_t h0 = plan.first_row(p, ph),
                        h1 = next < end ? plan.first_row(p, next) : own1;
          write_rows<X>(a, plan, s, n, g, h0, h1, own0, own1);
          advance_strip<X>(plan, s.strip, h1 - h0);
          ph = next;
        }
      }
    }
  });
}

}  // namespace imgfast::cpu::IMGFAST_ISA
