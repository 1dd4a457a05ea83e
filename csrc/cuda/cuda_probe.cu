// Launcher and registration of cuda_probe for the CUDA key.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "cuda/cuda_probe.cuh"

namespace imgfast::cuda {
namespace {

using torch::stable::Tensor;

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor cuda_probe(Tensor x) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor source = torch::stable::contiguous(x);
  Tensor copy = torch::stable::empty_like(source);

  const int64_t bytes = source.numel() * static_cast<int64_t>(source.element_size());
  if (bytes == 0) return copy;  // a grid of no blocks is an error

  constexpr int64_t kThreads = 256;
  constexpr int64_t kMaxBlocks = 4096;  // the kernel strides over what the grid leaves
  const int64_t blocks = std::min((bytes + kThreads - 1) / kThreads, kMaxBlocks);
  STD_CUDA_CHECK(launch(cuda_probe_kernel, dim3(static_cast<unsigned>(blocks)),
                        dim3(static_cast<unsigned>(kThreads)), 0, current_stream(device),
                        static_cast<const std::uint8_t*>(source.const_data_ptr()),
                        static_cast<std::uint8_t*>(copy.mutable_data_ptr()), bytes));
  return copy;
}

STABLE_TORCH_LIBRARY_IMPL(imgfast, CUDA, m) { m.impl("cuda_probe", TORCH_BOX(&cuda_probe)); }

}  // namespace
}  // namespace imgfast::cuda
