// How cross_entropy reads and writes memory: numbers of any dtype as float32, 16 bytes at a time,
// and rows that begin anywhere.
#pragma once

#include "cuda/cross_entropy_args.cuh"
#include "cuda/number.cuh"

namespace imgfast::cuda {

// Number i of those of a dtype that is known only now: for what there is one of in a row.
__device__ __forceinline__ float load_number(const void* data, DType dtype, std::int64_t i) {
  if (dtype == DType::kBFloat16) return widen(static_cast<const __nv_bfloat16*>(data)[i]);
  if (dtype == DType::kFloat16) return widen(static_cast<const __half*>(data)[i]);
  return static_cast<const float*>(data)[i];
}

__device__ __forceinline__ void store_number(void* data, DType dtype, std::int64_t i, float x) {
  if (dtype == DType::kBFloat16) {
    static_cast<__nv_bfloat16*>(data)[i] = narrow<__nv_bfloat16>(x);
  } else if (dtype == DType::kFloat16) {
    static_cast<__half*>(data)[i] = narrow<__half>(x);
  } else {
    static_cast<float*>(data)[i] = x;
  }
}

// How many T are 16 bytes.
template <class T>
constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

template <class T, int kWidth>
__device__ __forceinline__ void widen(const Vec<T, kWidth>& v, float (&x)[kWidth]) {
#pragma unroll
  for (int k = 0; k < kWidth; k++) x[k] = widen(v[k]);
}

template <class T, int kWidth>
__device__ __forceinline__ Vec<T, kWidth> narrow_all(const float (&x)[kWidth]) {
  Vec<T, kWidth> v;
#pragma unroll
  for (int k = 0; k < kWidth; k++) v[k] = narrow<T>(x[k]);
  return v;
}

// kWidth neighbours; aligned: whether p is, to all of them together.
template <int kWidth, class T>
__device__ __forceinline__ Vec<T, kWidth> load_vector(const T* p, bool aligned = true) {
  if (aligned) return load<Vec<T, kWidth>>(p);
  Vec<T, kWidth> v;
#pragma unroll
  for (int k = 0; k < kWidth; k++) v[k] = p[k];
  return v;
}

template <class T, int kWidth>
__device__ __forceinline__ void store_vector(T* p, const Vec<T, kWidth>& v, bool aligned = true) {
  if (aligned) {
    store(p, v);
    return;
  }
#pragma unroll
  for (int k = 0; k < kWidth; k++) p[k] = v[k];
}

// How many elements p is past a 16-byte boundary.
template <class T>
__device__ __forceinline__ int misalignment(const T* p) {
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(p) % 16 / sizeof(T));
}

template <class T>
__device__ __forceinline__ T* row_of(const RowsView& view, const CrossEntropyArgs& a,
                                     std::int64_t row) {
  std::int64_t sample = 0;
  if (a.inner != a.rows) {  // a division of 64 bits costs as much as a short row
    sample = row / a.inner;
    row -= sample * a.inner;
  }
  return static_cast<T*>(view.data) + sample * view.outer_stride + row * view.inner_stride;
}

// Where the 16-byte vectors of a row [C] lie: behind `head` single elements, so that they begin
// with a sector of 32 bytes and a warp's vectors share none with another's; fewer than kVectorWidth
// single elements follow them. Rows of odd C begin anywhere, and still are read by vectors.
template <class T>
struct RowSpan {
  static constexpr int kWidth = kVectorWidth<T>;
  static constexpr int kMostSingles = 48 / static_cast<int>(sizeof(T)) - 2;
  int head, vectors, singles;  // singles: those of both ends together

  __device__ __forceinline__ RowSpan(const T* row, int C) {
    constexpr int kSector = 32 / static_cast<int>(sizeof(T));
    const int past = static_cast<int>(reinterpret_cast<std::uintptr_t>(row) % 32 / sizeof(T));
    head = (kSector - past) % kSector;
    if (head > C) head = C;
    vectors = (C - head) / kWidth;
    singles = C - vectors * kWidth;
  }

  __device__ __forceinline__ int class_of_vector(int i) const { return head + i * kWidth; }
  __device__ __forceinline__ int class_of_single(int i) const {
    return i < head ? i : i + vectors * kWidth;
  }
};

// Classes that kThreads have in their registers at once: for a block fewer each, so that a
// multiprocessor has room for two.
template <int kThreads>
constexpr int kBatchClasses = kThreads * (kThreads <= 32 ? 32 : 16);

// The part of a row that one of kThreads has in its registers at once: kVectors vectors, and with
// the first of them its share of the single elements.
template <class T, int kThreads>
struct RowBatch {
  static constexpr int kWidth = kVectorWidth<T>;
  static constexpr int kStep = kBatchClasses<kThreads> / kWidth;  // vectors of all threads
  static constexpr int kVectors = kStep / kThreads;
  static constexpr int kSingles = (RowSpan<T>::kMostSingles + kThreads - 1) / kThreads;

  Vec<T, kWidth> vector[kVectors];
  T single[kSingles];

  // Vectors [first, end) as far as they go. aligned: whether `row` is as the span was made for.
  __device__ __forceinline__ void load_from(const T* row, const RowSpan<T>& span, int first,
                                            int end, int thread, bool aligned = true) {
#pragma unroll
    for (int j = 0; j < kSingles; j++) {
      const int i = j * kThreads + thread;
      if (first == 0 && i < span.singles) single[j] = row[span.class_of_single(i)];
    }
#pragma unroll
    for (int j = 0; j < kVectors; j++) {
      const int i = first + j * kThreads + thread;
      if (i < end) vector[j] = load_vector<kWidth>(row + span.class_of_vector(i), aligned);
    }
  }
};

// Calls f(class, x, t) for the vectors and singles that two batches hold, the numbers as
// float (&)[N]. x and t may be one.
template <class T, int kThreads, class F>
__device__ __forceinline__ void for_each(const RowBatch<T, kThreads>& x,
                                         const RowBatch<T, kThreads>& t, const RowSpan<T>& span,
                                         int first, int end, int thread, F f) {
  using Batch = RowBatch<T, kThreads>;
#pragma unroll
  for (int j = 0; j < Batch::kSingles; j++) {
    const int i = j * kThreads + thread;
    if (first != 0 || i >= span.singles) continue;
    float x_one[1] = {widen(x.single[j])}, t_one[1] = {widen(t.single[j])};
    f(span.class_of_single(i), x_one, t_one);
  }
#pragma unroll
  for (int j = 0; j < Batch::kVectors; j++) {
    const int i = first + j * kThreads + thread;
    if (i >= end) continue;
    float x_all[Batch::kWidth], t_all[Batch::kWidth];
    widen(x.vector[j], x_all);
    widen(t.vector[j], t_all);
    f(span.class_of_vector(i), x_all, t_all);
  }
}

}  // namespace imgfast::cuda
