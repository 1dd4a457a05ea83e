// New tensors, of the CPU above all. torch::stable::empty looks its operator up by name and boxes
// its arguments, which costs as much as a small kernel; the shim's own entry does not.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/huge_pages.h"

namespace imgfast {

// Of a contiguous tensor, or a channels_last one of [N, C, H, W].
inline std::vector<int64_t> dense_strides(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                          bool channels_last) {
  std::vector<int64_t> strides(sizes.size());
  int64_t next = 1;
  const auto stride_over = [&](size_t d) {
    strides[d] = next;
    next *= std::max<int64_t>(sizes[d], 1);
  };
  if (channels_last) {
    for (size_t d : {1, 3, 2, 0}) stride_over(d);
  } else {
    for (size_t d = sizes.size(); d-- > 0;) stride_over(d);
  }
  return strides;
}

// Uninitialised, on a device of a type that aoti_torch_device_type_* tells.
inline torch::stable::Tensor empty_on(int32_t device_type, int32_t device_index,
                                      torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                      torch::headeronly::ScalarType dtype, bool channels_last) {
  const std::vector<int64_t> strides = dense_strides(sizes, channels_last);
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), code,
                                                         device_type, device_index, &handle));
  return torch::stable::Tensor(handle);
}

// Uninitialised; contiguous, or channels_last of [N, C, H, W].
inline torch::stable::Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                   torch::headeronly::ScalarType dtype,
                                   bool channels_last = false) {
  torch::stable::Tensor result =
      empty_on(aoti_torch_device_type_cpu(), 0, sizes, dtype, channels_last);
  cpu::prefer_huge_pages(result.data_ptr(), result.numel() * result.element_size());
  return result;
}

// Uninitialised, in the strides of `like` where those are dense.
inline torch::stable::Tensor empty_like(const torch::stable::Tensor& like) {
  if (like.is_contiguous()) return empty(like.sizes(), like.scalar_type());
  torch::stable::Tensor result = torch::stable::empty_like(like);
  cpu::prefer_huge_pages(result.data_ptr(), result.numel() * result.element_size());
  return result;
}

}  // namespace imgfast
