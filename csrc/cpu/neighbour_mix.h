// Every position of a sequence and, number by number, some others that a table names:
//
//   y[n][t] = x[n][t] + sum over j of w[j] x[n][p[j][t]],  no term where p[j][t] is -1
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
  const void* weight;     // [J, D]
  const int64_t* places;  // [J, T]
  void* y;                // forward: [N, T, D]
  const void* grad_y;     // backward: [N, T, D]
  void* grad_x;           // [N, T, D]
  void* grad_weight;      // [units, J, D], to be summed over the units
};

// A unit is kMixedAtOnce sequences, in order. Calls on different ones may run in parallel; results
// do not depend on how they are shared.
struct NeighbourMixKernels {
  void (*forward)(const NeighbourMixArgs&, int64_t begin, int64_t end);
  void (*backward)(const NeighbourMixArgs&, int64_t begin, int64_t end);
};

}  // namespace imgfast::cpu
