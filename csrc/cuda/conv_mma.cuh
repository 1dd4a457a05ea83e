// conv_relu_pool's forward on tensor cores: implicit GEMM over taps and chunks of channels, by
// mma.sync of bfloat16, float16, or float32 rounded to tf32; sums are float32.
//
// A step of the reduction is one tap of one chunk. Its weights come through a pipeline of kStages
// asynchronous copies; the chunk's input tile, halo included, comes with the chunk's first tap and
// serves all of them. Input whose channels do not lie together (NCHW), or are not whole vectors, is
// gathered through registers into the same place instead: no copy of x in another layout is made.
//
// weight: T [groups * K][R][S][C up to 16 bytes], zeros where there is no channel. R and S may be
// 0: sums of nothing.
#pragma once

#include "cuda/conv_fragment.cuh"
#include "cuda/conv_source.cuh"

namespace imgfast::cuda {

template <class T, int kWarpsN>
struct ConvMma {
  static constexpr int kWarpsM = 2;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kM = kWarpsM * WarpTile::kM, kN = kWarpsN * WarpTile::kN;
  static constexpr int kPiece = 16 / sizeof(T);  // channels of a copy of 16 bytes
  static constexpr int kPieces = 4;              // of a chunk
  static constexpr int kChunk = kPieces * kPiece;
  static constexpr int kStages = 4;

  // Where a piece of a row lies. Of eight rows in sequence, as ldmatrix reads them, the same piece
  // lies in eight different places modulo all banks; so do the pieces of two rows that are copied.
  __device__ static __forceinline__ int offset(int row, int piece) {
    return (row * kPieces + (piece ^ row / 2 % kPieces)) * kPiece;
  }
};

// The shared memory of the main loop, under which lies the epilogue's.
template <class T, int kWarpsN>
struct ConvMmaLayout {
  using Size = ConvMma<T, kWarpsN>;
  int input_size, buffers;
  SharedCarver carver;
  SharedArray<T> weight, input;  // [kStages][kN][kChunk], [buffers][pixels][kChunk]

  // While a step is multiplied, the input of kStages - 1 further steps may be on its way.
  __host__ __device__ ConvMmaLayout(const ConvShape& s, const ConvTile& t)
      : input_size(t.pixels() * Size::kChunk),
        buffers(fewer((Size::kStages - 2) / (s.R * s.S > 0 ? s.R * s.S : 1) + 2,
                      (s.C + Size::kChunk - 1) / Size::kChunk)),
        weight(carver.take<T>(Size::kStages * Size::kN * Size::kChunk)),
        input(carver.take<T>(static_cast<std::size_t>(buffers) * input_size)) {}

  __host__ __device__ static int fewer(int a, int b) { return a < b ? a : b; }
};

// A place in the reduction, in its order.
struct ConvStep {
  int c0 = 0, r = 0, s = 0, buffer = 0;

  __device__ __forceinline__ void next(const ConvShape& shape, int chunk, int buffers) {
    if (++s < shape.S) return;
    s = 0;
    if (++r < shape.R) return;
    r = 0;
    c0 += chunk;
    buffer = buffer + 1 < buffers ? buffer + 1 : 0;
  }
};

template <class T, int kWarpsN, class Args>
struct ConvMmaStage {
  using Size = ConvMma<T, kWarpsN>;
  const Args& a;
  const BlockPlace& place;

  // A chunk of the tile's input, zero in the padding and beyond the last channel.
  __device__ __forceinline__ void input(int c0, T* to) const {
    if constexpr (kReadsGradient<Args>) {
      stage_gradient_tile<Size::kPieces, Size::kPiece, Size::kThreads>(a, place, c0, to,
                                                                       Size::offset);
    } else {
      plain_input(c0, to);
    }
  }

  __device__ __forceinline__ void plain_input(int c0, T* to) const {
    const int pixels = a.tile.pixels(), C = a.shape.C;
    for (int i = static_cast<int>(threadIdx.x); i < pixels * Size::kPieces; i += Size::kThreads) {
      const int pixel = a.vector_x ? i / Size::kPieces : i % pixels;
      const int piece = a.vector_x ? i % Size::kPieces : i / pixels;
      const int c = c0 + piece * Size::kPiece;
      const T* from = pixel_address(a, place, pixel);
      T* piece_to = to + Size::offset(pixel, piece);
      if (a.vector_x) {
        const bool valid = from != nullptr && c < C;
        cp_async<16>(piece_to, valid ? from + c : a.x, valid);
      } else {
        Vec<T, Size::kPiece> values;
#pragma unroll
        for (int j = 0; j < Size::kPiece; j++) {
          const bool valid = from != nullptr && c + j < C;
          values[j] = valid ? load_readonly<T>(from + (c + j) * a.x_stride[1]) : T{};
        }
        store(piece_to, values);
      }
    }
  }

  // One tap's weights of a chunk, zero beyond the last filter and channel.
  __device__ __forceinline__ void weight(const ConvStep& step, T* to) const {
    const ConvShape& s = a.shape;
    const int C = (s.C + Size::kPiece - 1) / Size::kPiece * Size::kPiece;
    const T* from = static_cast<const T*>(a.weight);
    constexpr int kItems = Size::kN * Size::kPieces;
    static_assert(kItems % Size::kThreads == 0);
#pragma unroll
    for (int item = 0; item < kItems; item += Size::kThreads) {
      const int i = item + static_cast<int>(threadIdx.x);
      const int filter = i / Size::kPieces, piece = i % Size::kPieces;
      const int k = place.k0 + filter, c = step.c0 + piece * Size::kPiece;
      const bool valid = k < s.K && c < C;
      const std::int64_t row = place.group * s.K + k;
      const std::int64_t offset = ((row * s.R + step.r) * s.S + step.s) * C + c;
      cp_async<16>(to + Size::offset(filter, piece), valid ? from + offset : from, valid);
    }
  }
};

template <class T, int kWarpsN, Pooling kPooling, class Args>
__global__ void __launch_bounds__(ConvMma<T, kWarpsN>::kThreads,
                                  kWarpsHeld<Args> / (ConvMma<T, kWarpsN>::kThreads / 32))
    conv_mma_kernel(const __grid_constant__ Args a) {
  using Size = ConvMma<T, kWarpsN>;
  constexpr int kStages = Size::kStages, kChunk = Size::kChunk, kPiece = Size::kPiece;
  const ConvShape& s = a.shape;
  const BlockPlace place(s, a.tile, Size::kN);
  const ConvMmaLayout<T, kWarpsN> layout(s, a.tile);
  T* const weight = layout.weight.data();
  T* const input = layout.input.data();
  const ConvMmaStage<T, kWarpsN, Args> stage{a, place};

  // The rows that this lane asks ldmatrix for: of positions the matrices are rows 0 to 7 of a
  // fragment, rows 8 to 15, and both 16 bytes further.
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int m = warp % Size::kWarpsM * WarpTile::kM, k = warp / Size::kWarpsM * WarpTile::kN;
  int position[WarpTile::kFragmentsM];
#pragma unroll
  for (int i = 0; i < WarpTile::kFragmentsM; i++) {
    const int at = fragment_position<kPooling>(m / 16 + i, lane % 16);
    position[i] = first_pixel<kPooling>(s, a.tile, at);
  }
  const int filter = k + WarpTile::filter_row(lane);

  // Load ahead: copies of a step form a group, empty behind the last step.
  const int steps = (s.C + Size::kChunk - 1) / Size::kChunk * s.R * s.S;
  ConvStep ahead, step;
  int staged = 0;
  const auto stage_next = [&] {
    if (staged < steps) {
      stage.weight(ahead, weight + staged % kStages * Size::kN * kChunk);
      if (ahead.r == 0 && ahead.s == 0) {
        stage.input(ahead.c0, input + ahead.buffer * layout.input_size);
      }
      ahead.next(s, Size::kChunk, layout.buffers);
    }
    cp_async_commit();
    staged++;
  };
#pragma unroll 1
  for (int i = 0; i < kStages - 1; i++) stage_next();

  WarpTile warp_tile;
#pragma unroll 1
  for (int i = 0; i < steps; i++) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // step i is there, and step i - 1 is read: its place is filled next
    stage_next();

    const int tap = step.r * s.dilation_h * a.tile.in_cols + step.s * s.dilation_w;
    const T* const pixels = input + step.buffer * layout.input_size;
    const T* const filters = weight + i % kStages * Size::kN * kChunk;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (step.c0 + half * 2 * kPiece >= s.C) break;  // nothing but zeros
      std::uint32_t filter_bits[WarpTile::kFragmentsN][2];
      WarpTile::load_filters<T>(
          filter_bits, filters + Size::offset(filter, half * 2 + WarpTile::filter_piece(lane)),
          kChunk);
#pragma unroll
      for (int f = 0; f < WarpTile::kFragmentsM; f++) {
        std::uint32_t x[4];
        ldmatrix(x, pixels + Size::offset(position[f] + tap, half * 2 + lane / 16));
#pragma unroll
        for (int v = 0; v < 4; v++) x[v] = operand<T>(x[v]);
        warp_tile.add<T>(f, x, filter_bits);
      }
    }
    step.next(s, Size::kChunk, layout.buffers);
  }
  __syncthreads();  // the epilogue overwrites what was read; no copy is on its way

  const Epilogue<T, kPooling, Size::kM, Size::kN, Size::kThreads> epilogue(a, place);
  warp_tile.put<kPooling>(epilogue, m, k);
  __syncthreads();
  epilogue.write();
}

}  // namespace imgfast::cuda
