// The normalised positions of a sequence and, number by number, some others that a table names:
//
//   m[n][t] = g norm(x[n][t])   y[n][t] = m[n][t] + sum over j of w[j] m[n][p[j][t]],
//                                         no term where p[j][t] is -1
//
// with norm of norm-inl.h. Without neighbours that is layer_norm.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace imgfast::cpu {

inline constexpr int64_t kMostNeighbours = 16;
inline constexpr int64_t kMixedAtOnce = 4;  // sequences of a unit

// Tensors are dense, of dtype float32 or float64; places lie in [-1, T).
struct NeighbourMixArgs {
  int64_t N, T, D, J;  // sequences, positions, numbers of each, neighbours
  DType dtype;
  const void* x;          // [N, T, D]
  const void* gain;       // g: [D]
  const void* weight;     // [J, D]
  const int64_t* places;  // [J, T]
  void* y;                // forward: [N, T, D]
  const void* grad_y;     // backward: [N, T, D]
  const void* grad_too;   // another gradient at x, to be added; may be null
  void* grad_x;           // [N, T, D]
  void* sums;         // [units, 1 + J, D], over a unit's grad_y[t] norm(x)[p[j][t]]; p[-1][t]: t
  void* grad_gain;    // [D]
  void* grad_weight;  // [J, D]

  int64_t units() const { return (N + kMixedAtOnce - 1) / kMixedAtOnce; }
};

// A unit is kMixedAtOnce sequences, in order. Calls on different ones may run in parallel, each
// with a scratch of its own (in bytes, aligned to 64); results do not depend on how they are
// shared. After all of backward, reduce makes the gradients at gain and weight.
struct NeighbourMixKernels {
  int64_t (*scratch)(const NeighbourMixArgs&);
  void (*forward)(const NeighbourMixArgs&, int64_t begin, int64_t end, void* scratch);
  void (*backward)(const NeighbourMixArgs&, int64_t begin, int64_t end, void* scratch);
  void (*reduce)(const NeighbourMixArgs&);
};

}  // namespace imgfast::cpu
