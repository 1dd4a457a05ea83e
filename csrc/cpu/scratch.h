// Memory that kernels reuse from call to call, one buffer of each purpose per thread. Fresh pages
// cost as much as the arithmetic at these sizes, so a buffer is kept; one larger than kKept only
// until the next call that needs one.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "huge_pages.h"

namespace imgfast::cpu {

class Scratch {
 public:
  static constexpr int64_t kKept = 32 << 20;

  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least `bytes`, aligned to 64, with the contents of nobody in particular.
  void* reserve(int64_t bytes) {
    if (bytes > size_ || size_ > kKept) {
      std::free(data_);
      const int64_t page = bytes < kWorthHugePages ? 4096 : kHugePage;
      size_ = (bytes + page - 1) / page * page;
      data_ = size_ ? std::aligned_alloc(page, size_) : nullptr;
      if (size_ && !data_) {
        size_ = 0;
        throw std::bad_alloc();
      }
      prefer_huge_pages(data_, size_);
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace imgfast::cpu
