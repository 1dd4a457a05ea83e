// cuda_probe's kernel for the emulator.
#include "cuda/cuda_probe.cuh"

#include <simt/export.h>

using namespace imgfast::cuda;

SIMT_EXPORT int cuda_probe(const std::uint8_t* x, std::uint8_t* y, std::int64_t bytes, int blocks,
                           int threads) {
  return launch(cuda_probe_kernel, dim3(blocks), dim3(threads), 0, nullptr, x, y, bytes);
}
