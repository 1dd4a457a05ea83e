// Calls of cross_entropy's launchers with plain parameters. Strides are in elements, of [outer,
// inner, C]; what there is none of is null.
#include <simt/export.h>

#include "cuda/cross_entropy_launch.cuh"

using namespace imgfast;
using namespace imgfast::cuda;

namespace {

#ifdef FEW_INSTANCES  // for mutants, each of which is built: float, smoothed and probabilities

cudaError_t start(bool is_backward, const CrossEntropyArgs& a, const CrossEntropyPlan& plan,
                  float* workspace) {
  cross_entropy_detail::Launcher launcher(a, plan, workspace, nullptr);
  const auto run = [&](auto targets) {
    constexpr Targets kTargets = decltype(targets)::value;
    is_backward ? launcher.backward<float, kTargets>() : launcher.forward<float, kTargets>();
  };
  if (a.target[0]) {
    run(std::integral_constant<Targets, Targets::kSmoothedIndex>{});
  } else {
    run(std::integral_constant<Targets, Targets::kProbability>{});
  }
  return launcher.error;
}

#else

cudaError_t start(bool is_backward, const CrossEntropyArgs& a, const CrossEntropyPlan& plan,
                  float* workspace) {
  return is_backward ? cuda::cross_entropy_backward(a, plan, workspace, nullptr)
                     : cuda::cross_entropy_forward(a, plan, workspace, nullptr);
}

#endif

}  // namespace

// kernel: one to use whatever would be chosen, or -1; max_blocks, parts: 0 leaves them as chosen.
// used: where the kernel and the parts that were used are told.
SIMT_EXPORT int cross_entropy(int is_backward, int is_tile, int kernel, int max_blocks, int parts,
                              int dtype, int loss_dtype, std::int64_t outer, std::int64_t inner,
                              int C, std::int64_t first_class, int num_targets,
                              std::int64_t ignore_index, int reduction, float share, float smooth,
                              float lam, float z_loss, void* logits, std::int64_t x_outer,
                              std::int64_t x_inner, std::int64_t x_class, void* probabilities,
                              std::int64_t t_outer, std::int64_t t_inner, std::int64_t t_class,
                              void* gradient, std::int64_t g_outer, std::int64_t g_inner,
                              std::int64_t g_class, const std::int64_t* target,
                              const std::int64_t* other_target, const float* weight, float* stats,
                              int correct, void* loss, const void* grad_loss, const float* grad_lse,
                              float* workspace, std::int64_t workspace_floats, int* used) {
  CrossEntropyArgs a{};
  a.rows = outer * inner;
  a.inner = inner;
  a.C = C;
  a.first_class = first_class;
  a.num_targets = num_targets;
  a.ignore_index = ignore_index;
  a.reduction = static_cast<Reduction>(reduction);
  a.share = share;
  a.smooth = smooth;
  a.lam[0] = lam;
  a.lam[1] = 1 - lam;
  a.z_loss = z_loss;
  a.dtype = static_cast<DType>(dtype);
  a.loss_dtype = static_cast<DType>(loss_dtype);
  a.logits = {logits, x_outer, x_inner, x_class};
  a.probabilities = {probabilities, t_outer, t_inner, t_class};
  const bool in_place = is_tile && is_backward;
  a.grad_logits = in_place ? a.logits : RowsView{gradient, g_outer, g_inner, g_class};
  a.target[0] = target;
  a.target[1] = other_target;
  a.weight = weight;
  a.maximum = stats;
  a.sum = stats + a.rows;
  if (is_tile) {
    a.mass = stats + 2 * a.rows;
    a.dot = stats + 3 * a.rows;
  } else {
    a.divisors = stats + 2 * a.rows;
    if (correct) a.correct = a.divisors + 4;
  }
  a.loss = loss;
  a.grad_loss = grad_loss;
  a.grad_lse = grad_lse;

  CrossEntropyPlan plan = choose_cross_entropy(a);
  if (kernel >= 0) plan.kernel = static_cast<CrossEntropyKernel>(kernel);
  if (max_blocks > 0) plan.max_blocks = max_blocks;
  if (parts > 0) plan.parts = cut_rows(a, parts);
  if (cross_entropy_workspace(a, plan) > workspace_floats) return cudaErrorMemoryAllocation;
  used[0] = static_cast<int>(plan.kernel);
  used[1] = plan.parts.count;
  return start(is_backward != 0, a, plan, workspace);
}
