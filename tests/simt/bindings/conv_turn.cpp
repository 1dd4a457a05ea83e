// Pictures turned from one layout into the other, for the emulator.
#include "cuda/conv_turn.cuh"

#include <simt/export.h>

using namespace imgfast::cuda;

SIMT_EXPORT int conv_turn(std::int64_t images, std::int64_t rows, std::int64_t cols,
                          int element_bytes, const void* from, void* to) {
  return launch_turn({images, rows, cols}, from, to, element_bytes, nullptr);
}
