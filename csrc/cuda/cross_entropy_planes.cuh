// cross_entropy where the classes of a row do not lie side by side, above all NCHW, where they are
// a plane apart: a thread takes kWidth neighbouring rows through all classes. No thread needs
// another, and neighbours read neighbours. Any strides will do with a width of one.
//
// Maximum and sum are taken online, a few planes at a time, so that a logit is read once and
// exponentiated once.
#pragma once

#include "cuda/cross_entropy_sums.cuh"

namespace imgfast::cuda {

constexpr int kPlaneThreads = 128;

// Neighbouring rows of a thread, where they can be read at once. More would not fit the registers.
constexpr int kWideRows = 4;

// Blocks that a multiprocessor has room for.
template <Targets kTargets>
constexpr int kPlaneBlocks = kTargets == Targets::kIndex ? 4 : 3;

// Planes that a thread reads at once, as many as stay in registers.
template <class T, Targets kTargets, int kWidth>
constexpr int kPlanesAtOnce =
    kWidth == 1                         ? 8
    : kTargets == Targets::kIndex       ? 4
    : kTargets == Targets::kProbability ? 8 / static_cast<int>(sizeof(T))
                                        : 16 / static_cast<int>(sizeof(T));

// kWidth neighbouring numbers, 16 bytes at a time. Wide ones begin at a 16-byte boundary.
template <int kWidth, class T>
__device__ __forceinline__ void load_rows(const T* p, T (&x)[kWidth]) {
  constexpr int kEach = kWidth < kVectorWidth<T> ? kWidth : kVectorWidth<T>;
#pragma unroll
  for (int i = 0; i < kWidth; i += kEach) {
    const Vec<T, kEach> v = load_vector<kEach>(p + i);
#pragma unroll
    for (int k = 0; k < kEach; k++) x[i + k] = v[k];
  }
}

template <int kWidth, class T>
__device__ __forceinline__ void store_rows(T* p, const float (&x)[kWidth]) {
  constexpr int kEach = kWidth < kVectorWidth<T> ? kWidth : kVectorWidth<T>;
#pragma unroll
  for (int i = 0; i < kWidth; i += kEach) {
    Vec<T, kEach> v;
#pragma unroll
    for (int k = 0; k < kEach; k++) v[k] = narrow<T>(x[i + k]);
    store_vector(p + i, v);
  }
}

template <int kWidth>
__device__ __forceinline__ void store_losses(void* loss, DType dtype, std::int64_t row,
                                             const float (&x)[kWidth]) {
  if (dtype == DType::kBFloat16) {
    store_rows(static_cast<__nv_bfloat16*>(loss) + row, x);
  } else if (dtype == DType::kFloat16) {
    store_rows(static_cast<__half*>(loss) + row, x);
  } else {
    store_rows(static_cast<float*>(loss) + row, x);
  }
}

// A thread's rows, [row, row + kWidth), all of one sample.
template <class T, Targets kTargets, int kWidth>
struct PlaneRows {
  static constexpr int kPlanes = kPlanesAtOnce<T, kTargets, kWidth>;
  static constexpr bool kReadsTargets = kTargets == Targets::kProbability;
  using Plane = Vec<T, kWidth>;

  const CrossEntropyArgs& a;
  std::int64_t row;
  const T *x, *t;  // logits, probabilities

  __device__ __forceinline__ PlaneRows(const CrossEntropyArgs& args, std::int64_t row_)
      : a(args),
        row(row_),
        x(row_of<const T>(a.logits, a, row)),
        t(kReadsTargets ? row_of<const T>(a.probabilities, a, row) : x) {}

  __device__ __forceinline__ void load_planes(const T* from, std::int64_t stride, int c0,
                                              Plane (&planes)[kPlanes]) const {
#pragma unroll
    for (int j = 0; j < kPlanes; j++) {
      if (c0 + j < a.C) planes[j] = load_vector<kWidth>(from + (c0 + j) * stride);
    }
  }

  // f(c, x, t), where x and t are a plane's numbers, for the classes that are there.
  template <class F>
  __device__ __forceinline__ void for_each_plane(int c0, const Plane (&of_x)[kPlanes],
                                                 const Plane (&of_t)[kPlanes], F f) const {
#pragma unroll
    for (int j = 0; j < kPlanes; j++) {
      if (c0 + j >= a.C) continue;
      float x_all[kWidth], t_all[kWidth];
      widen(of_x[j], x_all);
      widen(of_t[j], t_all);
      f(c0 + j, x_all, t_all);
    }
  }

  // f(c0, logits, probabilities) for all classes, a few planes at a time. Without probabilities the
  // logits stand in for them, and are not used.
  template <class F>
  __device__ __forceinline__ void for_each_batch(F f) const {
    for (int c0 = 0; c0 < a.C; c0 += kPlanes) {
      Plane of_x[kPlanes];
      load_planes(x, a.logits.class_stride, c0, of_x);
      if constexpr (kReadsTargets) {
        Plane of_t[kPlanes];
        load_planes(t, a.probabilities.class_stride, c0, of_t);
        f(c0, of_x, of_t);
      } else {
        f(c0, of_x, of_x);
      }
    }
  }

  __device__ __forceinline__ void read_all_targets(RowTargets (&targets)[kWidth]) const {
    if constexpr (!kReadsTargets) {
#pragma unroll
      for (int k = 0; k < 2; k++) {
        if (k == a.num_targets) break;
        std::int64_t y[kWidth];
        load_rows(a.target[k] + row, y);
#pragma unroll
        for (int i = 0; i < kWidth; i++) take_target(a, k, y[i], targets[i]);
      }
    }
  }

  __device__ __forceinline__ void normalise(const RowTargets (&targets)[kWidth],
                                            Normaliser (&n)[kWidth],
                                            float (&picked)[kWidth][2]) const {
    for_each_batch([&](int c0, const auto& of_x, const auto& of_t) {
      // A batch is added up by itself first: into a total of thousands of classes each one would
      // be rounded at the size of the total.
      Normaliser batch[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; i++) batch[i].maximum = n[i].maximum;
      for_each_plane(c0, of_x, of_t, [&](int, const auto& x, const auto&) {
#pragma unroll
        for (int i = 0; i < kWidth; i++) batch[i].maximum = fmaxf(batch[i].maximum, x[i]);
      });
      for_each_plane(c0, of_x, of_t, [&](int c, const auto& x, const auto& t) {
#pragma unroll
        for (int i = 0; i < kWidth; i++) {
          const float logit[1] = {x[i]}, of_target[1] = {t[i]};
          add_classes<kTargets>(a, c, logit, of_target, batch[i]);
          if constexpr (!kReadsTargets) {  // on the way: a read of its own would cost a sector
            if (c == targets[i].y[0]) picked[i][0] = x[i];
            if (c == targets[i].y[1]) picked[i][1] = x[i];
          }
        }
      });
#pragma unroll
      for (int i = 0; i < kWidth; i++) n[i].join(batch[i]);
    });
  }

  __device__ __forceinline__ void sum_probabilities(float (&mass)[kWidth]) const {
    for (int c0 = 0; c0 < a.C; c0 += kPlanes) {
      Plane of_t[kPlanes];
      load_planes(t, a.probabilities.class_stride, c0, of_t);
      for_each_plane(c0, of_t, of_t, [&](int c, const auto&, const auto& t) {
#pragma unroll
        for (int i = 0; i < kWidth; i++) {
          const float of_target[1] = {t[i]};
          float u[1];
          class_weights<kTargets>(a, c, of_target, u);
          mass[i] += u[0];
        }
      });
    }
  }

  __device__ __forceinline__ void write_gradient(const RowGradient (&g)[kWidth]) const {
    T* const out = row_of<T>(a.grad_logits, a, row);
    for_each_batch([&](int c0, const auto& of_x, const auto& of_t) {
      for_each_plane(c0, of_x, of_t, [&](int c, auto& x, const auto& t) {
#pragma unroll
        for (int i = 0; i < kWidth; i++) {
          float logit[1] = {x[i]};
          const float of_target[1] = {t[i]};
          gradient_of<kTargets>(a, g[i], c, of_target, logit);
          x[i] = logit[0];
        }
        store_vector(out + c * a.grad_logits.class_stride, narrow_all<T>(x));
      });
    });
  }
};

template <class T, Targets kTargets, int kWidth>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<kTargets>)
    cross_entropy_forward_planes_kernel(CrossEntropyArgs a) {
  RowSums sums{};
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kPlaneThreads * kWidth;
  for (std::int64_t row =
           (static_cast<std::int64_t>(blockIdx.x) * kPlaneThreads + threadIdx.x) * kWidth;
       row < a.rows; row += step) {
    // Load, and reduce: a thread has all of its rows.
    const PlaneRows<T, kTargets, kWidth> rows(a, row);
    RowTargets targets[kWidth];
    rows.read_all_targets(targets);
    Normaliser n[kWidth];
    float picked[kWidth][2] = {};
    rows.normalise(targets, n, picked);

    // Write.
    float maximum[kWidth], sum[kWidth], loss[kWidth], correct[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; i++) {
      maximum[i] = n[i].maximum;
      sum[i] = n[i].sum;
      loss[i] = finish_loss<kTargets>(a, n[i], targets[i], picked[i], sums);
      correct[i] = is_correct(n[i], targets[i]);
    }
    store_rows(a.maximum + row, maximum);
    store_rows(a.sum + row, sum);
    if (a.correct) store_rows(a.correct + row, correct);
    if (a.reduction == Reduction::kNone) store_losses(a.loss, a.loss_dtype, row, loss);
    if (a.grad_logits.data) {
      RowGradient g[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; i++) {
        g[i] = start_gradient<kTargets>(a, row + i, targets[i], maximum[i], sum[i], n[i].mass);
      }
      rows.write_gradient(g);
    }
  }
  write_thread_sums<kPlaneThreads>(a, sums);
}

template <class T, Targets kTargets, int kWidth>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBlocks<kTargets>)
    cross_entropy_backward_planes_kernel(CrossEntropyArgs a) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kPlaneThreads * kWidth;
  for (std::int64_t row =
           (static_cast<std::int64_t>(blockIdx.x) * kPlaneThreads + threadIdx.x) * kWidth;
       row < a.rows; row += step) {
    // Load.
    const PlaneRows<T, kTargets, kWidth> rows(a, row);
    RowTargets targets[kWidth];
    rows.read_all_targets(targets);
    float maximum[kWidth], sum[kWidth], mass[kWidth] = {};
    load_rows(a.maximum + row, maximum);
    load_rows(a.sum + row, sum);

    // Reduce.
    if constexpr (kTargets == Targets::kProbability) rows.sum_probabilities(mass);
    RowGradient g[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; i++) {
      if constexpr (kTargets == Targets::kSmoothedIndex) mass[i] = weight_sum(a);
      g[i] = start_gradient<kTargets>(a, row + i, targets[i], maximum[i], sum[i], mass[i]);
    }

    // Write.
    rows.write_gradient(g);
  }
}

}  // namespace imgfast::cuda
