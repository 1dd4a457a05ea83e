// What becomes of convolution sums: pool, bias, activation and code, from registers or shared
// memory to y. Rules of ties, NaN and codes are those of csrc/cpu/conv_pool-inl.h.
#pragma once

#include "cuda/conv_tile.cuh"
#include "cuda/number.cuh"

namespace imgfast::cuda {

// Everything below takes all elements that a thread has, and decides once for all of them.

// Activations that are more than a comparison. Out of line: a copy for every element would push a
// kernel's loops out of the cache of instructions.
__device__ __attribute__((noinline)) inline float activate_smooth(Activation activation, float v) {
  switch (activation) {
    case Activation::kSigmoid:
      return 1.0f / (1.0f + expf(-v));
    case Activation::kTanh:
      return tanhf(v);
    case Activation::kGELU:
      return 0.5f * v * (1.0f + erff(v * 0.707106781f));
    default:  // kSiLU
      return v / (1.0f + expf(-v));
  }
}

// NaN stays NaN: comparisons with it are false.
template <int N>
__device__ __forceinline__ void activate(Activation activation, float (&v)[N]) {
  if (activation == Activation::kReLU) {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = v[j] <= 0.0f ? 0.0f : v[j];
  } else if (activation == Activation::kLeakyReLU) {
#pragma unroll
    for (int j = 0; j < N; j++) {
      v[j] = v[j] < 0.0f ? v[j] * static_cast<float>(kLeakyReLUSlope) : v[j];
    }
  } else if (activation != Activation::kNone) {
#pragma unroll
    for (int j = 0; j < N; j++) v[j] = activate_smooth(activation, v[j]);
  }
}

// What the pool takes of sums: themselves, or activated ones.
template <int N>
__device__ __forceinline__ void make_terms(const ConvShape& s, const float (&bias)[N],
                                           float (&sums)[N]) {
  if (!s.activate_first) return;
#pragma unroll
  for (int j = 0; j < N; j++) sums[j] += bias[j];
  activate(s.activation, sums);
}

// A window whose terms come in row-major order.
struct Window {
  float value = 0.0f;
  int code = -1;

  // A later position wins only if it is greater or NaN: at equal values the first stays.
  __device__ __forceinline__ void take_max(float term, int position) {
    if (code < 0 || term > value || term != term) {
      value = term;
      code = position;
    }
  }

  // One term of an average, and its bit of the code.
  __device__ __forceinline__ void take_avg(float term, int position) {
    value += term;
    code = code < 0 ? 0 : code;
    if (!(term <= 0.0f) && position < kMaxAvgWindow) code |= 1 << position;
  }
};

// One term of each of some windows.
template <int N>
__device__ __forceinline__ void take_terms(Pool pool, const float (&terms)[N], int position,
                                           Window (&windows)[N]) {
  if (pool == Pool::kMax) {
#pragma unroll
    for (int j = 0; j < N; j++) windows[j].take_max(terms[j], position);
  } else {
#pragma unroll
    for (int j = 0; j < N; j++) windows[j].take_avg(terms[j], position);
  }
}

// Bias and activation, where they follow the pool.
template <int N>
__device__ __forceinline__ void finish_windows(const ConvShape& s, const float (&bias)[N],
                                               Window (&windows)[N]) {
  if (s.activate_first) return;
  float value[N];
#pragma unroll
  for (int j = 0; j < N; j++) {
    value[j] = windows[j].value + bias[j];
    if (value[j] <= 0.0f) windows[j].code |= kBlocked;
  }
  activate(s.activation, value);
#pragma unroll
  for (int j = 0; j < N; j++) windows[j].value = value[j];
}

// The epilogue's shared memory: sums [positions][kN], or values and codes of quads [windows][kN].
template <Pooling kPooling, int kM, int kN>
struct EpilogueLayout {
  static constexpr int kRows = kPooling == Pooling::kQuad ? kM / 4 : kM;
  // Rows that lanes touch together, of a fragment or of y, meet no bank twice.
  static constexpr int kPitch = kN + 8, kCodePitch = kN + 16;
  SharedCarver carver;
  SharedArray<float> values = carver.take<float>(kRows * kPitch);
  SharedArray<std::uint8_t> codes =
      carver.take<std::uint8_t>(kPooling == Pooling::kQuad ? kRows * kCodePitch : 0);
};

// One block's epilogue. The kernel puts what it has summed, waits at a barrier and calls write.
template <class T, Pooling kPooling, int kM, int kN, int kThreads>
struct Epilogue {
  using Layout = EpilogueLayout<kPooling, kM, kN>;
  static constexpr int kPitch = Layout::kPitch, kCodePitch = Layout::kCodePitch;
  static constexpr int kVector = 4;  // filters that a thread writes

  const ConvForward<T>& a;
  const BlockPlace& place;
  float* values;
  std::uint8_t* codes;

  __device__ Epilogue(const ConvForward<T>& a, const BlockPlace& place) : a(a), place(place) {
    const Layout layout;
    values = layout.values.data();
    if constexpr (kPooling == Pooling::kQuad) codes = layout.codes.data();
  }

  // Whether the pool takes activated sums. The kernel then calls activate_sums before it puts any:
  // one branch around code that few calls need.
  __device__ __forceinline__ bool activates_first() const { return a.shape.activate_first; }

  template <int N>
  __device__ __forceinline__ void activate_sums(int k, float (&sums)[N]) const {
    float terms[N];
#pragma unroll
    for (int j = 0; j < N; j++) terms[j] = bias(k + j);
    make_terms(a.shape, terms, sums);
  }

  // The sums of N neighbouring filters at one position.
  template <int N>
  __device__ __forceinline__ void put(int position, int k, const float (&sums)[N]) const {
    Vec<float, N> terms;
#pragma unroll
    for (int j = 0; j < N; j++) terms[j] = sums[j];
    store(values + position * kPitch + k, terms);
  }

  // The four sums of each of N neighbouring filters in one window.
  template <int N>
  __device__ __forceinline__ void put_quad(int window, int k, const float (&sums)[N][4]) const {
    Window windows[N];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float terms[N];
#pragma unroll
      for (int j = 0; j < N; j++) terms[j] = sums[j][i];
      take_terms(a.shape.pool, terms, i, windows);
    }
    Vec<float, N> value;
    Vec<std::uint8_t, N> code;
    const float scale = a.shape.pool == Pool::kAvg ? 0.25f : 1.0f;
#pragma unroll
    for (int j = 0; j < N; j++) {
      value[j] = windows[j].value * scale;
      code[j] = static_cast<std::uint8_t>(windows[j].code);
    }
    store(values + window * kPitch + k, value);
    store(codes + window * kCodePitch + k, code);
  }

  // Every output of the tile: a thread stays with its kVector filters. Neighbouring lanes write
  // what lies together in y: filters, or eight outputs of a row.
  __device__ void write() const {
    constexpr int kGroups = kN / kVector, kStep = kThreads / kGroups;
    static_assert(kStep % 8 == 0);
    const int thread = static_cast<int>(threadIdx.x);
    int output = thread / kGroups, k = thread % kGroups * kVector;
    if (a.y_stride[1] != 1) {
      output = thread / (8 * kGroups) * 8 + thread % 8;
      k = thread / 8 % kGroups * kVector;
    }
    if (place.k0 + k >= a.shape.K) return;
    float filter_bias[kVector];
#pragma unroll
    for (int j = 0; j < kVector; j++) filter_bias[j] = bias(k + j);
    for (; output < a.tile.outputs(); output += kStep) write_output(output, k, filter_bias);
  }

 private:
  // Of filter k of the tile; 0 where there is none.
  __device__ __forceinline__ float bias(int k) const {
    const int at = place.k0 + k;
    if (a.bias == nullptr || at >= a.shape.K) return 0.0f;
    return widen(load_readonly<T>(a.bias + place.group * a.shape.K + at));
  }

  __device__ __forceinline__ void write_output(int output, int k,
                                               const float (&filter_bias)[kVector]) const {
    const ConvShape& s = a.shape;
    const BoxIndex at(output, a.tile.rows, a.tile.cols);
    const int n = place.n0 + at.image, ph = place.ph0 + at.row, pw = place.pw0 + at.col;
    if (n >= s.N || ph >= s.PH || pw >= s.PW) return;
    Window windows[kVector];
    if constexpr (kPooling == Pooling::kQuad) {
      const auto value = load<Vec<float, kVector>>(values + output * kPitch + k);
      const auto code = load<Vec<std::uint8_t, kVector>>(codes + output * kCodePitch + k);
#pragma unroll
      for (int j = 0; j < kVector; j++) windows[j] = {value[j], code[j]};
    } else if constexpr (kPooling == Pooling::kElement) {
      const auto value = load<Vec<float, kVector>>(values + output * kPitch + k);
#pragma unroll
      for (int j = 0; j < kVector; j++) windows[j] = {value[j], 0};
    } else {
      reduce(at, k, windows);
    }

    finish_windows(s, filter_bias, windows);

    const int filter = place.group * s.K + place.k0 + k;
    const int valid = min(kVector, s.K - place.k0 - k);
    Vec<T, kVector> value;
    Vec<std::uint8_t, kVector> code;
#pragma unroll
    for (int j = 0; j < kVector; j++) {
      value[j] = narrow<T>(windows[j].value);
      code[j] = static_cast<std::uint8_t>(windows[j].code);
    }
    T* y =
        a.y + n * a.y_stride[0] + filter * a.y_stride[1] + ph * a.y_stride[2] + pw * a.y_stride[3];
    if (a.vector_y) {
      store(y, value);
    } else {
#pragma unroll
      for (int j = 0; j < kVector; j++) {
        if (j < valid) store(y + j * a.y_stride[1], value[j]);
      }
    }
    if (a.codes == nullptr) return;
    const std::int64_t K = static_cast<std::int64_t>(s.groups) * s.K;
    std::uint8_t* to =
        a.codes + ((static_cast<std::int64_t>(n) * s.PH + ph) * s.PW + pw) * K + filter;
    if (s.K % kVector == 0) {
      store(to, code);
    } else {
#pragma unroll
      for (int j = 0; j < kVector; j++) {
        if (j < valid) store(to + j, code[j]);
      }
    }
  }

  // Windows of any kind, from the sums of the positions under them.
  __device__ __forceinline__ void reduce(const BoxIndex& at, int k,
                                         Window (&windows)[kVector]) const {
    const ConvShape& s = a.shape;
    const int row0 = at.row * s.pool_stride_h, col0 = at.col * s.pool_stride_w;
    for (int i = 0; i < s.pool_h; i++) {
      const int row = row0 + i * s.pool_dilation_h, p = place.p0 + row;
      if (p < 0 || p >= s.P) continue;
      for (int j = 0; j < s.pool_w; j++) {
        const int col = col0 + j * s.pool_dilation_w, q = place.q0 + col;
        if (q < 0 || q >= s.Q) continue;
        const int position = (at.image * a.tile.conv_rows + row) * a.tile.conv_cols + col;
        const auto terms = load<Vec<float, kVector>>(values + position * kPitch + k);
        take_terms(s.pool, terms.data, i * s.pool_w + j, windows);
      }
    }
    if (s.pool == Pool::kAvg) {
      const float scale = average_scale(s, place.ph0 + at.row, place.pw0 + at.col);
#pragma unroll
      for (int f = 0; f < kVector; f++) windows[f].value *= scale;
    }
  }
};

}  // namespace imgfast::cuda
