// cross_entropy where the classes of a row lie side by side, and there are enough of them for a
// quarter of a warp, half of one, a warp or a block a row. A few long rows are cut into parts,
// which have a block each.
//
// Fused: the log-softmax is never written to memory. Forward leaves two numbers a row; backward
// reads the logits once and writes the gradient once. A row that fits the registers of its threads
// is read once for loss and gradient together.
//
// Maximum and sum are taken online, a batch of vectors at a time (M. Milakov and N. Gimelshein,
// "Online normalizer calculation for softmax", 2018): a batch gives its maximum and then its
// exponentials, so that a logit is read once and exponentiated once.
#pragma once

#include "cuda/cross_entropy_group.cuh"
#include "cuda/cross_entropy_sums.cuh"

namespace imgfast::cuda {

// How rows are cut: all of a row in one part, or parts of so many vectors, each with a block.
struct RowParts {
  int count;
  int vectors;  // of a part; a multiple of the threads of a block
};

// One part of a row, as a thread sees it.
template <class T, Targets kTargets, int kThreads>
struct RowPart {
  static constexpr bool kReadsTargets = kTargets == Targets::kProbability;
  using Batch = RowBatch<T, kThreads>;

  const CrossEntropyArgs& a;
  const T *x, *t;  // logits, probabilities
  RowSpan<T> span;
  int first, end;  // vectors; the single elements belong to the first part
  int thread;
  bool t_aligned;  // as x is

  __device__ __forceinline__ RowPart(const CrossEntropyArgs& args, std::int64_t row,
                                     const RowParts& parts, int part, int thread_)
      : a(args),
        x(row_of<const T>(a.logits, a, row)),
        t(kReadsTargets ? row_of<const T>(a.probabilities, a, row) : x),
        span(x, a.C),
        first(part * parts.vectors),
        end(part + 1 == parts.count || first + parts.vectors > span.vectors
                ? span.vectors
                : first + parts.vectors),
        thread(thread_),
        t_aligned(misalignment(t) == misalignment(x)) {}

  // Whether every batch but the first is empty.
  __device__ __forceinline__ bool is_one_batch() const { return end - first <= Batch::kStep; }

  __device__ __forceinline__ void load(int from, Batch& of_x, Batch& of_t) const {
    of_x.load_from(x, span, from, end, thread);
    if constexpr (kReadsTargets) of_t.load_from(t, span, from, end, thread, t_aligned);
  }

  // f(class, x, t) for a batch. Without probabilities t repeats x, and is not used.
  template <class F>
  __device__ __forceinline__ void for_each_of(int from, const Batch& of_x, const Batch& of_t,
                                              F f) const {
    for_each(of_x, kReadsTargets ? of_t : of_x, span, from, end, thread, f);
  }

  // This thread's share of the normaliser; the batches are left as they were last.
  __device__ __forceinline__ Normaliser normalise(Batch& of_x, Batch& of_t) const {
    Normaliser n;
    // Not "from < end": a row may have single elements only.
    for (int from = first; from == first || from < end; from += Batch::kStep) {
      load(from, of_x, of_t);
      float maximum = n.maximum;
      for_each_of(from, of_x, of_t, [&](int, const auto& x, const auto&) {
        for (float logit : x) maximum = fmaxf(maximum, logit);
      });
      n.raise(maximum);
      for_each_of(from, of_x, of_t, [&](int c, const auto& x, const auto& t) {
        add_classes<kTargets>(a, c, x, t, n);
      });
    }
    return n;
  }

  // This thread's share of the sum of the u_c.
  __device__ __forceinline__ float sum_probabilities(Batch& of_t) const {
    float mass = 0;
    for (int from = first; from == first || from < end; from += Batch::kStep) {
      of_t.load_from(t, span, from, end, thread, t_aligned);
      for_each(of_t, of_t, span, from, end, thread, [&](int c, const auto&, const auto& t) {
        constexpr int kCount = sizeof(t) / sizeof(float);
        float u[kCount];
        class_weights<kTargets>(a, c, t, u);
        for (float of_class : u) mass += of_class;
      });
    }
    return mass;
  }

  // loaded: the first batch is in the registers already.
  __device__ __forceinline__ void write_gradient(const RowGradient& g, T* out, bool loaded,
                                                 Batch& of_x, Batch& of_t) const {
    const bool out_aligned = misalignment(out) == misalignment(x);
    for (int from = first; from == first || from < end; from += Batch::kStep) {
      if (!loaded || from != first) load(from, of_x, of_t);
      for_each_of(from, of_x, of_t, [&](int c, auto& x, const auto& t) {
        gradient_of<kTargets>(a, g, c, t, x);
        store_vector(out + c, narrow_all<T>(x), out_aligned);
      });
    }
  }
};

// Blocks that a multiprocessor has room for: the more, the more rows are under way while others are
// reduced. Weights and probabilities take registers that allow fewer.
template <Targets kTargets, int kThreads>
constexpr int kMinBlocks = kThreads > 32                 ? (kTargets == Targets::kIndex ? 2 : 1)
                           : kTargets == Targets::kIndex ? 5
                           : kThreads == 32              ? 4
                                                         : 3;

// The logits of a row's targets, which its leader reads by themselves.
template <class T>
__device__ __forceinline__ void pick(const T* x, const RowTargets& targets, float (&picked)[2]) {
#pragma unroll
  for (int k = 0; k < 2; k++) picked[k] = targets.y[k] >= 0 ? widen(x[targets.y[k]]) : 0.0f;
}

template <class T, Targets kTargets, int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlockThreads, kMinBlocks<kTargets, kThreads>)
    cross_entropy_forward_rows_kernel(CrossEntropyArgs a, RowParts parts) {
  using Group = RowGroup<kThreads>;
  using Part = RowPart<T, kTargets, kThreads>;
  const Group group;
  __shared__ RowSums sums[Group::kPerBlock];  // the leaders'
  if (group.thread == 0) sums[group.index] = RowSums{};
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * Group::kPerBlock;
  const std::int64_t pieces = a.rows * parts.count;
  for (std::int64_t piece = static_cast<std::int64_t>(blockIdx.x) * Group::kPerBlock + group.index;
       piece < pieces; piece += step) {
    const std::int64_t row = parts.count == 1 ? piece : piece / parts.count;
    const Part part(a, row, parts, static_cast<int>(piece - row * parts.count), group.thread);
    const bool leads = group.thread == 0;

    // Load. The leader sends for the targets first: their way is the longest.
    RowTargets targets;
    float picked[2] = {0, 0};
    if (leads && parts.count == 1) {
      targets = read_targets<kTargets>(a, row);
      pick(part.x, targets, picked);
    }
    typename Part::Batch of_x, of_t;
    Normaliser n = part.normalise(of_x, of_t);

    // Reduce.
    n = group.reduce(n);

    // Write.
    if (parts.count > 1) {
      if (leads) a.row_parts[piece] = n;
      continue;
    }
    RowGradient g{};
    if (leads && a.is_tile()) {
      join_state<kTargets>(a, row, n, targets, picked[0]);
    } else if (leads) {
      write_row<kTargets>(a, row, n, targets, picked, sums[group.index]);
      if (a.grad_logits.data) {
        g = start_gradient<kTargets>(a, row, targets, n.maximum, n.sum, n.mass);
      }
    }
    if (a.grad_logits.data) {
      g = group.broadcast(g);
      part.write_gradient(g, row_of<T>(a.grad_logits, a, row), part.is_one_batch(), of_x, of_t);
    }
  }
  if (parts.count == 1 && !a.is_tile()) write_leader_sums(a, sums);
}

// A warp a row: what forward does after its parts have met.
template <class T, Targets kTargets>
__global__ void __launch_bounds__(RowGroup<32>::kBlockThreads)
    cross_entropy_combine_kernel(CrossEntropyArgs a, int parts) {
  const RowGroup<32> group;
  __shared__ RowSums sums[RowGroup<32>::kPerBlock];  // the leaders'
  if (group.thread == 0) sums[group.index] = RowSums{};
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * group.kPerBlock;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * group.kPerBlock + group.index;
       row < a.rows; row += step) {
    // Load.
    Normaliser n;
    for (int part = group.thread; part < parts; part += 32) {
      n.merge(a.row_parts[row * parts + part]);
    }
    // Reduce.
    n = group.reduce(n);
    // Write.
    if (group.thread != 0) continue;
    const RowTargets targets = read_targets<kTargets>(a, row);
    float picked[2];
    pick(row_of<const T>(a.logits, a, row), targets, picked);
    if (a.is_tile()) {
      join_state<kTargets>(a, row, n, targets, picked[0]);
    } else {
      write_row<kTargets>(a, row, n, targets, picked, sums[group.index]);
    }
  }
  if (!a.is_tile()) write_leader_sums(a, sums);
}

// The sum of the u_c of each part of the rows, for backward.
template <class T>
__global__ void __launch_bounds__(kRowThreads)
    cross_entropy_mass_kernel(CrossEntropyArgs a, RowParts parts) {
  using Part = RowPart<T, Targets::kProbability, kRowThreads>;
  const RowGroup<kRowThreads> group;
  const std::int64_t pieces = a.rows * parts.count;
  for (std::int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const std::int64_t row = piece / parts.count;
    const Part part(a, row, parts, static_cast<int>(piece - row * parts.count), group.thread);
    typename Part::Batch of_t;
    const float mass = group.sum(part.sum_probabilities(of_t));
    if (group.thread == 0) a.mass_parts[piece] = mass;
  }
}

template <class T, Targets kTargets, int kThreads>
__global__ void __launch_bounds__(RowGroup<kThreads>::kBlockThreads, kMinBlocks<kTargets, kThreads>)
    cross_entropy_backward_rows_kernel(CrossEntropyArgs a, RowParts parts) {
  using Group = RowGroup<kThreads>;
  using Part = RowPart<T, kTargets, kThreads>;
  const Group group;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * Group::kPerBlock;
  const std::int64_t pieces = a.rows * parts.count;
  for (std::int64_t piece = static_cast<std::int64_t>(blockIdx.x) * Group::kPerBlock + group.index;
       piece < pieces; piece += step) {
    const std::int64_t row = parts.count == 1 ? piece : piece / parts.count;
    const Part part(a, row, parts, static_cast<int>(piece - row * parts.count), group.thread);

    // Load. The first batch is under way while the leader works out the factors.
    typename Part::Batch of_x, of_t;
    constexpr bool kSums = kTargets == Targets::kProbability;  // a tile's state has done it
    float mass = 0;
    bool loaded = true;
    if (kSums && parts.count == 1 && !a.is_tile()) {
      mass = group.sum(part.sum_probabilities(of_t));
      loaded = part.is_one_batch();  // which of_t still is
      if (loaded) of_x.load_from(part.x, part.span, part.first, part.end, part.thread);
    } else {
      part.load(part.first, of_x, of_t);
    }

    // Reduce.
    RowGradient g{};
    if (group.thread == 0) {
      if (kSums && parts.count > 1 && !a.is_tile()) {
        for (int i = 0; i < parts.count; i++) mass += a.mass_parts[row * parts.count + i];
      }
      if (kTargets == Targets::kSmoothedIndex) mass = weight_sum(a);
      g = start_gradient<kTargets>(a, row, read_targets<kTargets>(a, row), a.maximum[row],
                                   a.sum[row], mass);
    }
    g = group.broadcast(g);

    // Write.
    part.write_gradient(g, row_of<T>(a.grad_logits, a, row), loaded, of_x, of_t);
  }
}

}  // namespace imgfast::cuda
