// A step of Muon with Nesterov momentum, of weights that are matrices of few rows or few columns:
//
//   b = m b + (1 - m) g   u = (1 - m) g + m b   w = keep w - step sqrt(max(K, L)) orthogonalised(u)
//
// orthogonalised(x) = ... p2(x1 x1^T) p1(x x^T) x with x divided by its Frobenius norm first, x1
// what p1 makes of it, and so on: polynomials a + b s + c s^2 that draw all singular values to one.
//
// Source: K. Jordan et al., "Muon", 2024; N. Amsel et al., "The Polar Express", 2025,
// arXiv:2505.16932.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace imgfast::cpu {

// Dense [K][L], all of one dtype.
struct MuonMatrix {
  int64_t K, L;
  void* weight;
  const void* grad;
  void* average;  // b
};

struct MuonArgs {
  DType dtype;  // float32 or float64
  double momentum, keep, step;
  const double* coefficients;  // [polynomials][3]: a, b, c
  int64_t polynomials;
};

// Calls on different matrices may run in parallel, each with a scratch of its own (in bytes,
// aligned to 64).
struct MuonKernels {
  int64_t (*scratch)(const MuonArgs&, const MuonMatrix&);
  void (*update)(const MuonArgs&, const MuonMatrix&, void* scratch);
};

}  // namespace imgfast::cpu
