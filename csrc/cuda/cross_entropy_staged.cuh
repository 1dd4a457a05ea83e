// cross_entropy of few classes that lie side by side, row after row: a thread a row. A warp takes
// 32 rows, which are one stretch of memory, through shared memory: it is read and written by whole
// 16-byte vectors, however odd C is, and there are no reductions between threads.
//
// Rows stay in shared memory until their gradient has been written over them. Warps work apart from
// one another.
#pragma once

#include "cuda/cross_entropy_sums.cuh"

namespace imgfast::cuda {

constexpr int kStagedWarps = 4;
constexpr int kStagedThreads = 32 * kStagedWarps;
constexpr int kMaxStagedClasses = 128;

// Room for the logits of a warp's rows, wherever in a vector they begin.
template <class T>
__host__ __device__ constexpr int stage_elements(int C) {
  return (32 * C + kVectorWidth<T> - 1) / kVectorWidth<T> * kVectorWidth<T> + kVectorWidth<T>;
}

// The dynamic shared memory of a block, carved: the same on the host and in the kernel.
template <class T, Targets kTargets>
struct StagedLayout {
  SharedCarver carver;
  SharedArray<T> x, t;  // [warps, stage_elements]

  __host__ __device__ explicit StagedLayout(int C)
      : x(carver.take<T>(kStagedWarps * stage_elements<T>(C))),
        t(kTargets == Targets::kProbability ? carver.take<T>(kStagedWarps * stage_elements<T>(C))
                                            : x) {}
};

// n elements, by whole vectors if both sides are equally far past a 16-byte boundary.
// kToGlobal: from shared to global memory, else the other way.
template <bool kToGlobal, class T>
__device__ __forceinline__ void copy_by_warp(const T* from, T* to, int n, int lane) {
  constexpr int kWidth = kVectorWidth<T>;
  int done = 0;
  if (misalignment(from) == misalignment(to)) {
    const RowSpan<T> span(from, n);
    if (lane < span.singles) {
      const int i = span.class_of_single(lane);
      to[i] = from[i];
    }
    for (int i = lane; i < span.vectors; i += 32) {
      const int at = span.class_of_vector(i);
      const Vec<T, kWidth> vector = load_vector<kWidth>(from + at);
      if constexpr (kToGlobal) {
        store_global(to + at, vector);
      } else {
        store(to + at, vector);
      }
    }
    done = n;
  }
  for (int i = done + lane; i < n; i += 32) to[i] = from[i];
}

// A thread's row in the stage. Rows of as many words as have a factor in common with the 32 banks
// begin in the same banks: their threads begin at words of their own, and go round.
template <class T>
struct StagedRow {
  T* data;
  int C, start;

  __device__ __forceinline__ StagedRow(T* stage, int C_, int lane)
      : data(stage + lane * C_), C(C_), start(0) {
    constexpr int kOfWord = 4 / static_cast<int>(sizeof(T));
    if (C % kOfWord != 0) return;
    const int words = C / kOfWord, factor = words & -words;  // the largest power of two in it
    start = lane * (factor < 32 ? factor : 32) / 32 * kOfWord;
  }

  template <class F>
  __device__ __forceinline__ void for_each_class(F f) const {
    int c = start;
#pragma unroll 2
    for (int i = 0; i < C; i++) {
      f(c);
      c = c + 1 == C ? 0 : c + 1;
    }
  }
};

// One row's logits and probabilities.
template <class T, Targets kTargets>
struct StagedThread {
  const CrossEntropyArgs& a;
  StagedRow<T> x, t;

  __device__ __forceinline__ StagedThread(const CrossEntropyArgs& args, T* stage_x, T* stage_t,
                                          int lane)
      : a(args), x(stage_x, a.C, lane), t(stage_t, a.C, lane) {}

  __device__ __forceinline__ float probability(int c) const {
    return kTargets == Targets::kProbability ? widen(t.data[c]) : 0.0f;
  }

  __device__ __forceinline__ Normaliser normalise() const {
    Normaliser n;
    float maximum = n.maximum;
    x.for_each_class([&](int c) { maximum = fmaxf(maximum, widen(x.data[c])); });
    n.raise(maximum);
    x.for_each_class([&](int c) {
      const float logit[1] = {widen(x.data[c])}, of_t[1] = {probability(c)};
      add_classes<kTargets>(a, c, logit, of_t, n);
    });
    return n;
  }

  __device__ __forceinline__ float sum_probabilities() const {
    float mass = 0;
    x.for_each_class([&](int c) {
      const float of_t[1] = {probability(c)};
      float u[1];
      class_weights<kTargets>(a, c, of_t, u);
      mass += u[0];
    });
    return mass;
  }

  __device__ __forceinline__ void pick(const RowTargets& targets, float (&picked)[2]) const {
#pragma unroll
    for (int k = 0; k < 2; k++) {
      picked[k] = targets.y[k] >= 0 ? widen(x.data[targets.y[k]]) : 0.0f;
    }
  }

  __device__ __forceinline__ void write_gradient(const RowGradient& g) const {
    x.for_each_class([&](int c) {
      float logit[1] = {widen(x.data[c])};
      const float of_t[1] = {probability(c)};
      gradient_of<kTargets>(a, g, c, of_t, logit);
      x.data[c] = narrow<T>(logit[0]);
    });
  }
};

template <class T, Targets kTargets, bool kForward>
__global__ void __launch_bounds__(kStagedThreads, 5)
    cross_entropy_staged_kernel(CrossEntropyArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const StagedLayout<T, kTargets> layout(a.C);
  T* const shared_x = layout.x.data() + warp * stage_elements<T>(a.C);
  T* const shared_t = layout.t.data() + warp * stage_elements<T>(a.C);
  const bool writes_gradient = a.grad_logits.data != nullptr;

  RowSums sums{};
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kStagedThreads;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kStagedThreads + warp * 32;
       first < a.rows; first += step) {
    const int rows = a.rows - first < 32 ? static_cast<int>(a.rows - first) : 32;

    // Load.
    const T* const from_x = static_cast<const T*>(a.logits.data) + first * a.C;
    T* const stage_x = shared_x + misalignment(from_x);
    T* stage_t = stage_x;
    copy_by_warp<false>(from_x, stage_x, rows * a.C, lane);
    if constexpr (kTargets == Targets::kProbability) {
      const T* const from_t = static_cast<const T*>(a.probabilities.data) + first * a.C;
      stage_t = shared_t + misalignment(from_t);
      copy_by_warp<false>(from_t, stage_t, rows * a.C, lane);
    }
    __syncwarp();  // each row was brought by all lanes

    // Reduce, and write over the row.
    if (lane < rows) {
      const std::int64_t row = first + lane;
      const StagedThread<T, kTargets> own(a, stage_x, stage_t, lane);
      const RowTargets targets = read_targets<kTargets>(a, row);
      float maximum, sum, mass = 0;
      if constexpr (kForward) {
        const Normaliser n = own.normalise();
        float picked[2];
        own.pick(targets, picked);
        write_row<kTargets>(a, row, n, targets, picked, sums);
        maximum = n.maximum, sum = n.sum, mass = n.mass;
      } else {
        maximum = a.maximum[row], sum = a.sum[row];
        if constexpr (kTargets == Targets::kProbability) mass = own.sum_probabilities();
        if constexpr (kTargets == Targets::kSmoothedIndex) mass = weight_sum(a);
      }
      if (writes_gradient) {
        own.write_gradient(start_gradient<kTargets>(a, row, targets, maximum, sum, mass));
      }
    }

    // Write.
    if (writes_gradient) {
      __syncwarp();  // all rows have their gradient
      copy_by_warp<true>(stage_x, static_cast<T*>(a.grad_logits.data) + first * a.C, rows * a.C,
                         lane);
    }
    __syncwarp();  // nobody brings the next rows while these are read
  }
  if constexpr (kForward) write_thread_sums<kStagedThreads>(a, sums);
}

}  // namespace imgfast::cuda
