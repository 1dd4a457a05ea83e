// Pictures turned from NCHW into channels_last, and back: each is a matrix [C, H x W] that becomes
// its transpose. A thread turns a square of vectors in its registers, so that both sides are moved
// by vectors; the squares of a warp lie so that its rows and columns fill sectors.
#pragma once

#include "cuda/platform.cuh"

namespace imgfast::cuda {

// to[image][col][row] = from[image][row][col]
struct Turn {
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  std::int64_t images, rows, cols;
};

// A warp takes kDown by kAcross squares of kRows by kCols elements.
template <class T, int kRows, int kCols>
struct TurnTile {
  static constexpr int kRowBytes = kRows * sizeof(T), kColBytes = kCols * sizeof(T);
  static constexpr int kDown = kColBytes == 2 ? 2 : kRowBytes >= 16 ? 4 : kRowBytes >= 4 ? 8 : 16;
  static constexpr int kAcross = 32 / kDown;
  int down, across;  // tiles

  __host__ __device__ __forceinline__ explicit TurnTile(const Turn& turn)
      : down(tiles(turn.rows, kDown * kRows)), across(tiles(turn.cols, kAcross * kCols)) {}

 private:
  __host__ __device__ static int tiles(std::int64_t size, int of_tile) {
    return static_cast<int>((size + of_tile - 1) / of_tile);
  }
};

// kRows divides the rows, and kCols the columns.
template <class T, int kRows, int kCols>
__global__ void __launch_bounds__(Turn::kThreads)
    conv_turn_kernel(const T* from, T* to, const __grid_constant__ Turn turn) {
  using Tile = TurnTile<T, kRows, kCols>;
  const Tile tiles(turn);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(blockIdx.x) * Turn::kWarps + static_cast<int>(threadIdx.x) / 32;
  const int tile_col = warp % tiles.across, rest = warp / tiles.across;
  const int tile_row = rest % tiles.down, image = rest / tiles.down;
  const int row = (tile_row * Tile::kDown + lane / Tile::kAcross) * kRows;
  const int col = (tile_col * Tile::kAcross + lane % Tile::kAcross) * kCols;
  if (image >= turn.images || row >= turn.rows || col >= turn.cols) return;

  from += image * turn.rows * turn.cols;
  to += image * turn.rows * turn.cols;
  Vec<T, kCols> lines[kRows];
#pragma unroll
  for (int r = 0; r < kRows; r++) {
    lines[r] = load_readonly<Vec<T, kCols>>(from + (row + r) * turn.cols + col);
  }
#pragma unroll
  for (int c = 0; c < kCols; c++) {
    Vec<T, kRows> line;
#pragma unroll
    for (int r = 0; r < kRows; r++) line[r] = lines[r][c];
    store(to + (col + c) * turn.rows + row, line);
  }
}

// Whether 32 bits count what is turned.
inline bool can_turn(const Turn& turn) {
  constexpr std::int64_t kMost = 1 << 30;
  return turn.rows < kMost && turn.cols < kMost && turn.rows * turn.cols < 16 * kMost &&
         turn.images * turn.rows * turn.cols < 16 * kMost;
}

// Calls function(how many elements are a vector along lines of so many, 16 bytes, 8 or one
// element).
template <class T, class Function>
cudaError_t with_vectors(std::int64_t length, const void* data, const Function& function) {
  constexpr int kMost = 16 / sizeof(T);
  const auto lies_in = [&](int elements) {
    return length % elements == 0 &&
           reinterpret_cast<std::uintptr_t>(data) % (elements * sizeof(T)) == 0;
  };
  if (lies_in(kMost)) return function(std::integral_constant<int, kMost>{});
  if (lies_in(kMost / 2)) return function(std::integral_constant<int, kMost / 2>{});
  return function(std::integral_constant<int, 1>{});
}

// Of elements of 2 or 4 bytes. Does not wait for the device.
inline cudaError_t launch_turn(const Turn& turn, const void* from, void* to, int element_bytes,
                               cudaStream_t stream) {
  const auto of_type = [&](auto element) {
    using T = decltype(element);
    return with_vectors<T>(turn.rows, to, [&](auto rows) {
      return with_vectors<T>(turn.cols, from, [&](auto cols) {
        constexpr int kRows = decltype(rows)::value, kCols = decltype(cols)::value;
        const TurnTile<T, kRows, kCols> tiles(turn);
        const std::int64_t warps = turn.images * tiles.down * tiles.across;
        if (warps == 0) return cudaSuccess;  // a grid of no blocks is an error
        return launch(&conv_turn_kernel<T, kRows, kCols>,
                      dim3(static_cast<unsigned>((warps + Turn::kWarps - 1) / Turn::kWarps)),
                      dim3(Turn::kThreads), 0, stream, static_cast<const T*>(from),
                      static_cast<T*>(to), turn);
      });
    });
  };
  return element_bytes == 2 ? of_type(std::uint16_t{}) : of_type(std::uint32_t{});
}

}  // namespace imgfast::cuda
