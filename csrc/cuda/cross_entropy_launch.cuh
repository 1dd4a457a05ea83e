// Which kernels a call of cross_entropy runs, and how they start. It knows nothing of torch: the
// emulator runs the same code.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/cross_entropy_planes.cuh"
#include "cuda/cross_entropy_rows.cuh"
#include "cuda/cross_entropy_staged.cuh"

namespace imgfast::cuda {

enum class CrossEntropyKernel : int {
  kStaged,
  kQuarterWarp,
  kHalfWarp,
  kWarp,
  kBlock,
  kPlanes,
  kWidePlanes
};

// How a call is shared out. It depends on shapes and strides alone, and on no device, so that a
// call gives the same bits everywhere.
struct CrossEntropyPlan {
  CrossEntropyKernel kernel;
  RowParts parts;  // of kBlock; one of the others
  int max_blocks;  // of a kernel that strides over what is left
};

// Two waves of the largest GPUs; and few enough for one block to add up what they leave.
inline constexpr int kMaxBlocks = 2048;
// Rows that keep a GPU busy with a block each.
inline constexpr int kBusyBlocks = 256;

namespace cross_entropy_detail {

constexpr int ceil_div(std::int64_t a, std::int64_t b) { return static_cast<int>((a + b - 1) / b); }

inline int element_bytes(const CrossEntropyArgs& a) { return a.dtype == DType::kFloat32 ? 4 : 2; }

inline bool is_aligned(const void* p, int bytes) {
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0;
}

// Whether `holds` of every view that there is.
template <class Function>
bool all_views(const CrossEntropyArgs& a, Function holds) {
  for (const RowsView* view : {&a.logits, &a.probabilities, &a.grad_logits}) {
    if (view->data && !holds(*view)) return false;
  }
  return true;
}

// Samples whose positions follow one another as rows do are taken for one.
inline void join_samples(CrossEntropyArgs& a) {
  const bool follows = all_views(a, [&](const RowsView& view) {
    return a.inner == 1 || view.outer_stride == a.inner * view.inner_stride;
  });
  if (!follows || a.inner == a.rows) return;
  for (RowsView* view : {&a.logits, &a.probabilities, &a.grad_logits}) {
    if (a.inner == 1) view->inner_stride = view->outer_stride;
  }
  a.inner = a.rows;
}

inline bool takes_wide_planes(const CrossEntropyArgs& a) {
  for (const void* rows :
       {static_cast<const void*>(a.target[0]), static_cast<const void*>(a.target[1]),
        static_cast<const void*>(a.loss), static_cast<const void*>(a.maximum),
        static_cast<const void*>(a.sum), static_cast<const void*>(a.correct)}) {
    if (!is_aligned(rows, 16)) return false;
  }
  return a.inner % kWideRows == 0 && all_views(a, [&](const RowsView& view) {
           return view.inner_stride == 1 && view.class_stride % kWideRows == 0 &&
                  (a.inner == a.rows || view.outer_stride % kWideRows == 0) &&
                  is_aligned(view.data, kWideRows * element_bytes(a));
         });
}

// A thread a row takes as long as a row has classes, for as many rows as there are threads; others
// share a row's classes and take as long as there are rows. On an H200 they meet at kRowsAClass.
inline bool takes_stage(const CrossEntropyArgs& a) {
  constexpr int kFew = 32, kRowsAClass = 200, kMostBytes = 64 * 1024;
  const int row_bytes = a.C * element_bytes(a) * (a.probabilities.data ? 2 : 1);
  return a.C <= kFew || (a.C <= kMaxStagedClasses && a.rows >= std::int64_t{kRowsAClass} * a.C &&
                         row_bytes * kStagedThreads <= kMostBytes);
}

}  // namespace cross_entropy_detail

// Rows in about so many parts.
inline RowParts cut_rows(const CrossEntropyArgs& a, int parts) {
  using namespace cross_entropy_detail;
  const int vectors = ceil_div(a.C, 16 / element_bytes(a));
  const int each = ceil_div(ceil_div(vectors, parts), kRowThreads) * kRowThreads;
  return {ceil_div(vectors, each), each};
}

// The plan of a call, the strides of which may then be told more simply.
inline CrossEntropyPlan choose_cross_entropy(CrossEntropyArgs& a) {
  using namespace cross_entropy_detail;
  join_samples(a);
  CrossEntropyPlan plan{CrossEntropyKernel::kPlanes, {1, a.C}, kMaxBlocks};
  if (!all_views(a, [](const RowsView& view) { return view.class_stride == 1; })) {
    if (takes_wide_planes(a)) plan.kernel = CrossEntropyKernel::kWidePlanes;
    return plan;
  }
  const bool packed = a.inner == a.rows &&
                      all_views(a, [&](const RowsView& view) { return view.inner_stride == a.C; });
  if (packed && takes_stage(a) && !a.is_tile()) {
    plan.kernel = CrossEntropyKernel::kStaged;
  } else if (a.C <= kBatchClasses<8>) {
    plan.kernel = CrossEntropyKernel::kQuarterWarp;
  } else if (a.C <= kBatchClasses<16>) {
    plan.kernel = CrossEntropyKernel::kHalfWarp;
  } else if (a.C <= kBatchClasses<32>) {
    plan.kernel = CrossEntropyKernel::kWarp;
  } else {
    plan.kernel = CrossEntropyKernel::kBlock;
    if (a.C > kBatchClasses<kRowThreads> && a.rows < kBusyBlocks) {
      plan.parts = cut_rows(
          a, std::min(ceil_div(a.C, kBatchClasses<kRowThreads>), ceil_div(kBusyBlocks, a.rows)));
    }
  }
  return plan;
}

// Floats of scratch that a call needs.
inline std::int64_t cross_entropy_workspace(const CrossEntropyArgs& a,
                                            const CrossEntropyPlan& plan) {
  constexpr std::int64_t kPartFloats = sizeof(Normaliser) / sizeof(float);
  const std::int64_t parts = plan.parts.count > 1 ? a.rows * plan.parts.count : 0;
  return std::int64_t{plan.max_blocks} * RowSums::kCount + parts * kPartFloats + 1;
}

namespace cross_entropy_detail {

struct Launcher {
  CrossEntropyArgs a;
  CrossEntropyPlan plan;
  cudaStream_t stream;
  cudaError_t error = cudaSuccess;  // of the first launch that failed; none follows it

  Launcher(const CrossEntropyArgs& args, const CrossEntropyPlan& plan, float* workspace,
           cudaStream_t stream)
      : a(args), plan(plan), stream(stream) {
    a.weight_sum = workspace;
    a.block_sums = workspace + 1;
    float* const parts = a.block_sums + std::int64_t{plan.max_blocks} * RowSums::kCount;
    a.row_parts = reinterpret_cast<Normaliser*>(parts);
    a.mass_parts = parts;
  }

  // Enough blocks for `pieces`, of which each takes `of_block` at once.
  int blocks_of(std::int64_t pieces, int of_block) const {
    return static_cast<int>(
        std::min<std::int64_t>((pieces + of_block - 1) / of_block, plan.max_blocks));
  }

  template <class... Params, class... Args>
  void start(void (*kernel)(Params...), int blocks, int threads, Args... args) {
    start_shared(kernel, blocks, threads, 0, args...);
  }

  template <class... Params, class... Args>
  void start_shared(void (*kernel)(Params...), int blocks, int threads, std::size_t shared_bytes,
                    Args... args) {
    if (error != cudaSuccess) return;
    error = launch(kernel, dim3(static_cast<unsigned>(blocks)),
                   dim3(static_cast<unsigned>(threads)), shared_bytes, stream, args...);
  }

  // Calls function(element type, kind of targets).
  template <class Function>
  void with_types(Function function) const {
    const auto with_targets = [&](auto element) {
      if (!a.target[0]) {
        function(element, std::integral_constant<Targets, Targets::kProbability>{});
      } else if (a.smooth > 0) {
        function(element, std::integral_constant<Targets, Targets::kSmoothedIndex>{});
      } else {
        function(element, std::integral_constant<Targets, Targets::kIndex>{});
      }
    };
    if (a.dtype == DType::kBFloat16) {
      with_targets(__nv_bfloat16{});
    } else if (a.dtype == DType::kFloat16) {
      with_targets(__half{});
    } else {
      with_targets(float{});
    }
  }

  void finish(const CrossEntropyArgs& of, int blocks) {
    start(&cross_entropy_finish_kernel, 1, kSumThreads, of, blocks);
  }

  // The divisors, from the targets alone.
  void sum_targets() {
    const int blocks = blocks_of(a.rows, kSumThreads);
    start(&cross_entropy_targets_kernel, blocks, kSumThreads, a);
    CrossEntropyArgs without_loss = a;
    without_loss.loss = nullptr;
    finish(without_loss, blocks);
  }

  // The kernel that has whole rows. Returns its blocks.
  template <bool kForward, class T, Targets kTargets>
  int start_rows() {
    switch (plan.kernel) {
      case CrossEntropyKernel::kStaged: {
        const int blocks = blocks_of(a.rows, kStagedThreads);
        start_shared(&cross_entropy_staged_kernel<T, kTargets, kForward>, blocks, kStagedThreads,
                     StagedLayout<T, kTargets>(a.C).carver.bytes, a);
        return blocks;
      }
      case CrossEntropyKernel::kQuarterWarp:
        return start_groups<kForward, T, kTargets, 8>();
      case CrossEntropyKernel::kHalfWarp:
        return start_groups<kForward, T, kTargets, 16>();
      case CrossEntropyKernel::kWarp:
        return start_groups<kForward, T, kTargets, 32>();
      case CrossEntropyKernel::kBlock:
        return start_groups<kForward, T, kTargets, kRowThreads>();
      case CrossEntropyKernel::kPlanes:
        return start_planes<kForward, T, kTargets, 1>();
      case CrossEntropyKernel::kWidePlanes:
        return start_planes<kForward, T, kTargets, kWideRows>();
    }
    return 0;
  }

  template <bool kForward, class T, Targets kTargets, int kThreads>
  int start_groups() {
    using Group = RowGroup<kThreads>;
    const int blocks = blocks_of(a.rows * plan.parts.count, Group::kPerBlock);
    if constexpr (kForward) {
      start(&cross_entropy_forward_rows_kernel<T, kTargets, kThreads>, blocks, Group::kBlockThreads,
            a, plan.parts);
    } else {
      start(&cross_entropy_backward_rows_kernel<T, kTargets, kThreads>, blocks,
            Group::kBlockThreads, a, plan.parts);
    }
    return blocks;
  }

  template <bool kForward, class T, Targets kTargets, int kWidth>
  int start_planes() {
    const int blocks = blocks_of(a.rows, kPlaneThreads * kWidth);
    if constexpr (kForward) {
      start(&cross_entropy_forward_planes_kernel<T, kTargets, kWidth>, blocks, kPlaneThreads, a);
    } else {
      start(&cross_entropy_backward_planes_kernel<T, kTargets, kWidth>, blocks, kPlaneThreads, a);
    }
    return blocks;
  }

  template <class T, Targets kTargets>
  void forward() {
    const RowsView gradient = a.grad_logits;
    if (plan.parts.count > 1) {  // which are not known in time to write the gradient in one pass
      a.grad_logits.data = nullptr;
    } else if (gradient.data && a.target[0] && a.reduction == Reduction::kMean) {
      sum_targets();
    }
    int blocks = start_rows<true, T, kTargets>();
    if (plan.parts.count > 1) {
      blocks = blocks_of(a.rows, RowGroup<32>::kPerBlock);
      start(&cross_entropy_combine_kernel<T, kTargets>, blocks, RowGroup<32>::kBlockThreads, a,
            plan.parts.count);
    }
    if (!a.is_tile()) finish(a, blocks);
    if (gradient.data && plan.parts.count > 1) {
      a.grad_logits = gradient;
      backward<T, kTargets>();
    }
  }

  template <class T, Targets kTargets>
  void backward() {
    if (kTargets == Targets::kSmoothedIndex && a.weight && !a.is_tile()) {
      start(&cross_entropy_weight_kernel, 1, kSumThreads, a);
    }
    if (kTargets == Targets::kProbability && plan.parts.count > 1 && !a.is_tile()) {
      start(&cross_entropy_mass_kernel<T>, blocks_of(a.rows * plan.parts.count, 1), kRowThreads, a,
            plan.parts);
    }
    start_rows<false, T, kTargets>();
  }
};

}  // namespace cross_entropy_detail

// The losses, or their reduction, and stats; and the gradient if a.grad_logits has memory for it.
// For tiles the state goes on.
inline cudaError_t cross_entropy_forward(const CrossEntropyArgs& a, const CrossEntropyPlan& plan,
                                         float* workspace, cudaStream_t stream) {
  cross_entropy_detail::Launcher launcher(a, plan, workspace, stream);
  if (a.rows == 0) {  // a grid of no blocks is an error
    if (!a.is_tile()) launcher.finish(launcher.a, 0);
    return launcher.error;
  }
  launcher.with_types([&](auto element, auto targets) {
    launcher.forward<decltype(element), decltype(targets)::value>();
  });
  return launcher.error;
}

// The gradient at the logits, which may be where the logits are.
inline cudaError_t cross_entropy_backward(const CrossEntropyArgs& a, const CrossEntropyPlan& plan,
                                          float* workspace, cudaStream_t stream) {
  cross_entropy_detail::Launcher launcher(a, plan, workspace, stream);
  if (a.rows == 0) return launcher.error;
  launcher.with_types([&](auto element, auto targets) {
    launcher.backward<decltype(element), decltype(targets)::value>();
  });
  return launcher.error;
}

}  // namespace imgfast::cuda
