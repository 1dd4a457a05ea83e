// What every kernel of cross_entropy is given: one call, as plain data with device pointers.
#pragma once

#include <cstdint>

#include "cross_entropy.h"
#include "cuda/platform.cuh"

namespace imgfast::cuda {

enum class Targets { kIndex, kSmoothedIndex, kProbability };

struct Normaliser;

// Arithmetic is float32 whatever the dtype. Pointers to rows follow the order of the targets.
struct CrossEntropyArgs {
  std::int64_t rows, inner;  // rows = outer * inner
  int C;
  std::int64_t first_class;  // tiles: targets count from here on
  int num_targets;           // 2 for a pair
  std::int64_t ignore_index;
  Reduction reduction;
  float share, smooth;  // 1 - e, e / num_classes
  float lam[2];
  float z_loss;

  DType dtype;                    // of logits, probabilities and grad_logits
  RowsView logits;                // [outer, inner, C]
  RowsView probabilities;         // [outer, inner, C], or null data
  RowsView grad_logits;           // [outer, inner, C]; forward: null data if it is not wanted
  const std::int64_t* target[2];  // [rows], the second of a pair; null if targets are probabilities
  const float* weight;            // [C] or null

  float* maximum;         // [rows] m
  float* sum;             // [rows] s
  float* divisors;        // [4] what the means divide by: each target's weights, and rows
  void* loss;             // [rows], or one number if it is reduced; of loss_dtype
  DType loss_dtype;       // of loss and grad_loss
  float* correct;         // [rows] 1 or 0, or null
  const void* grad_loss;  // as loss, or null: it is 1 for every loss
  const float* grad_lse;  // [rows] or null
  float *mass, *dot;      // tiles: [rows] the state with maximum and sum; else null

  // Scratch of the call; see cross_entropy_workspace in cross_entropy_launch.cuh.
  float* block_sums;      // [blocks, 8] RowSums
  Normaliser* row_parts;  // [rows, parts] of a row that is cut
  float* mass_parts;      // [rows, parts] backward: the sums of u_c
  float* weight_sum;      // [1] of weight

  __host__ __device__ bool is_tile() const { return mass != nullptr; }
};

}  // namespace imgfast::cuda
