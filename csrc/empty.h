// New CPU tensors. torch::stable::empty looks its operator up by name and boxes its arguments,
// which costs as much as a small kernel; the shim's own entry does not.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/huge_pages.h"

namespace imgfast {

// Uninitialised; contiguous, or channels_last of [N, C, H, W].
inline torch::stable::Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                   torch::headeronly::ScalarType dtype,
                                   bool channels_last = false) {
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
  const auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()),
                                                         sizes.data(), strides.data(), code,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  torch::stable::Tensor result(handle);
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
