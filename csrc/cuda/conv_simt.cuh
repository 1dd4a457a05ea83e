// conv_relu_pool's forward in exact float32, for every layout, stride and pool: a block
// computes kM positions by kN filters, a thread 8 positions by 8 filters in registers.
//
// kV channels of a pixel are read from shared memory at once. kV = 4 walks the channels in chunks.
// kV = 1 is for few channels (1, 2, 3): a pixel holds all of them and no more, and the taps of a
// row are one run of S x C, so that a first layer's reduction has no holes.
//
// weight: float32 [groups][R][S][C up to kV][K up to kN], zeros where there is none.
#pragma once

#include "cuda/conv_epilogue.cuh"
#include "cuda/conv_source.cuh"
#include "cuda/ptx.cuh"

namespace imgfast::cuda {

struct ConvSimt {
  static constexpr int kThreads = 128;
  static constexpr int kM = 128, kN = 64;
  static constexpr int kThreadM = 8;                // neighbouring positions
  static constexpr int kVectors = 2, kVectorN = 4;  // and vectors of filters, kN / 2 apart
  static constexpr int kChunk = 16;                 // channels that are staged together
};

// The shared memory of the main loop, under which lies the epilogue's. Of a gradient whole chunks
// are staged.
template <int kV, bool kWhole = false>
struct ConvSimtLayout {
  int channels, pitch;  // of a staged pixel
  SharedCarver carver;
  SharedArray<float> input, weight;

  // The pitch of four extra floats lets eight neighbouring pixels meet no bank twice.
  __host__ __device__ ConvSimtLayout(const ConvShape& s, const ConvTile& t)
      : channels(kV == 1  ? s.C
                 : kWhole ? ConvSimt::kChunk
                          : (min_of(s.C, ConvSimt::kChunk) + kV - 1) / kV * kV),
        pitch(kV == 1 ? channels : channels + 4),
        input(carver.take<float>(static_cast<std::size_t>(t.pixels()) * pitch)),
        weight(carver.take<float>(static_cast<std::size_t>(s.S) * channels * ConvSimt::kN)) {}

  __host__ __device__ static constexpr int min_of(int a, int b) { return a < b ? a : b; }
};

// Channels [c0, c0 + channels) of every pixel of the tile; what x does not have is zero.
template <int kV>
__device__ __forceinline__ void stage_input(const ConvForward<float>& a, const BlockPlace& place,
                                            int c0, int channels, int pitch, float* input) {
  const int parts = channels / kV, pixels = a.tile.pixels();
  const std::int64_t stride = a.x_stride[1];
  for (int i = static_cast<int>(threadIdx.x); i < pixels * parts; i += ConvSimt::kThreads) {
    // Neighbouring lanes read what lies together in x.
    const int pixel = stride == 1 ? i / parts : i % pixels;
    const int part = stride == 1 ? i % parts : i / pixels;
    const int c = c0 + part * kV;
    const float* from = pixel_address(a, place, pixel);
    Vec<float, kV> values{};
    if (from != nullptr) {
      if (kV > 1 && a.vector_x && c + kV <= a.shape.C) {
        values = load_readonly<Vec<float, kV>>(from + c);
      } else {
#pragma unroll
        for (int j = 0; j < kV; j++) {
          if (c + j < a.shape.C) {
            values[j] = load_readonly<float>(from + (c + j) * stride);
          }
        }
      }
    }
    store(input + pixel * pitch + part * kV, values);
  }
}

template <int kV, Pooling kPooling, class Args>
__global__ void __launch_bounds__(ConvSimt::kThreads, 3)
    conv_simt_kernel(const __grid_constant__ Args a) {
  constexpr int kM = ConvSimt::kM, kN = ConvSimt::kN;
  constexpr int kThreadM = ConvSimt::kThreadM;
  constexpr int kVectors = ConvSimt::kVectors, kVectorN = ConvSimt::kVectorN;
  const ConvShape& s = a.shape;
  const ConvTile& tile = a.tile;
  const BlockPlace place(s, tile, kN);
  const ConvSimtLayout<kV, kReadsGradient<Args>> layout(s, tile);
  float* input = layout.input.data();
  float* weight = layout.weight.data();

  // Eight threads share their positions, and as vectors their filters fill all banks.
  const int m = static_cast<int>(threadIdx.x) / 8 * kThreadM;
  const int k = static_cast<int>(threadIdx.x) % 8 * kVectorN;

  int position[kThreadM];
#pragma unroll
  for (int i = 0; i < kThreadM; i++) {
    position[i] = first_pixel<kPooling>(s, tile, m + i) * layout.pitch;
  }
  float sum[kVectors][kThreadM][kVectorN] = {};

  const int C = (s.C + kV - 1) / kV * kV, K = (s.K + kN - 1) / kN * kN;
  for (int c0 = 0; c0 < C; c0 += layout.channels) {
    const int channels = min(layout.channels, C - c0);
    for (int r = 0; r < s.R; r++) {
      // Load: the input once a chunk, the weights [S][channels][kN] of one row of taps.
      if (r == 0) {
        if constexpr (kReadsGradient<Args>) {
          stage_gradient_tile<ConvSimt::kChunk / kV, kV, ConvSimt::kThreads>(
              a, place, c0, input,
              [&](int pixel, int piece) { return pixel * layout.pitch + piece * kV; });
        } else {
          stage_input<kV>(a, place, c0, channels, layout.pitch, input);
        }
      }
      const float* row = static_cast<const float*>(a.weight) +
                         (static_cast<std::int64_t>(place.group) * s.R + r) * s.S * C * K +
                         static_cast<std::int64_t>(c0) * K + place.k0;
      for (int i = static_cast<int>(threadIdx.x); i < s.S * channels * (kN / 4);
           i += ConvSimt::kThreads) {
        const int term = i / (kN / 4), tap = term / channels, part = i % (kN / 4) * 4;
        cp_async<16>(weight + term * kN + part,
                     row + static_cast<std::int64_t>(tap * C + term % channels) * K + part);
      }
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();

      // Multiply: runs of taps and channels that follow one another in shared memory.
      const bool joined = kV == 1 && s.dilation_w == 1;
      const int length = joined ? s.S * channels : channels;
      const float* term = weight;
      for (int tap = 0; tap < (joined ? 1 : s.S); tap++) {
        const int offset = (r * s.dilation_h * tile.in_cols + tap * s.dilation_w) * layout.pitch;
#pragma unroll(4 / kV)
        for (int c = 0; c < length; c += kV) {
          Vec<float, kV> x[kThreadM];
#pragma unroll
          for (int i = 0; i < kThreadM; i++) {
            x[i] = load<Vec<float, kV>>(input + position[i] + offset + c);
          }
#pragma unroll
          for (int v = 0; v < kV; v++, term += kN) {
#pragma unroll
            for (int n = 0; n < kVectors; n++) {
              const auto w = load<Vec<float, kVectorN>>(term + n * (kN / kVectors) + k);
#pragma unroll
              for (int i = 0; i < kThreadM; i++) {
#pragma unroll
                for (int j = 0; j < kVectorN; j++) {
                  sum[n][i][j] = fmaf(x[i][v], w[j], sum[n][i][j]);
                }
              }
            }
          }
        }
      }
      __syncthreads();  // before what was read is overwritten, by the epilogue at last
    }
  }

  const Epilogue<float, kPooling, kM, kN, ConvSimt::kThreads> epilogue(a, place);
#pragma unroll
  for (int n = 0; n < kVectors; n++) {
    const int filter = n * (kN / kVectors) + k;
    if (epilogue.activates_first()) {
#pragma unroll
      for (int i = 0; i < kThreadM; i++) epilogue.activate_sums(filter, sum[n][i]);
    }
    if constexpr (kPooling == Pooling::kQuad) {
#pragma unroll
      for (int i = 0; i < kThreadM; i += 4) {
        float quad[kVectorN][4];
#pragma unroll
        for (int j = 0; j < kVectorN; j++) {
#pragma unroll
          for (int q = 0; q < 4; q++) quad[j][q] = sum[n][i + q][j];
        }
        epilogue.put_quad((m + i) / 4, filter, quad);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kThreadM; i++) epilogue.put(m + i, filter, sum[n][i]);
    }
  }
  __syncthreads();
  epilogue.write();
}

}  // namespace imgfast::cuda
