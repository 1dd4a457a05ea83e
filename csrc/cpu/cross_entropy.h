// What one instruction set offers for cross_entropy. Pointers only: these structs cross into
// translation units that include neither torch nor the C++ library.
#pragma once

#include "../cross_entropy.h"

namespace imgfast::cpu {

// "Compute type" is double for float64 and float for the others.
struct CrossEntropyArgs {
  const CrossEntropyParams* params;
  DType dtype;               // of logits, probabilities and grad_logits
  RowsView logits;           // [outer, inner, C]
  const int64_t* target[2];  // [rows], the second of a pair; null if targets are probabilities
  RowsView probabilities;    // [outer, inner, C], or null data
  const void* weight;        // [C] of the compute type, or null
  double weight_sum;         // of weight, C if there is none; for smoothing
  void* maximum;             // [rows] of the compute type: m
  void* sum;                 // [rows] of the compute type: s
  void* loss;                // forward: [rows] of loss_dtype, or null if the loss is reduced
  DType loss_dtype;
  void* correct;           // forward: [rows] of the compute type, 1 or 0, or null
  RowsView grad_logits;    // [outer, inner, C]; forward: null data if it is not wanted
  bool streams;            // grad_logits is too large to stay in the cache
  const void* grad_loss;   // [rows] of the compute type, or null if it is 1 for every row
  const void* grad_lse;    // [rows] of the compute type, or null
  double grad_scale[2];    // of grad_loss at the loss of each target
  double grad_z_scale[2];  // and at lse^2
  int64_t first_class;     // of the C that are here, among num_classes
  void* mass;              // tiles and parts: [rows] of the compute type, as maximum and sum
  void* dot;
  const void* parts;  // forward: [num_parts, 4, rows] maximum, sum, dot and mass of parts, or null
  int64_t num_parts;
};

// What the rows of one call add up to, for each target.
struct CrossEntropySums {
  double loss[2];
  double weight[2];  // w_y of the rows that count
  double square[2];  // lse^2 of those, and their number: of z_loss, or 0
  double count[2];
  int64_t
      bad_row;  // the first row whose target is not a class; nothing else is valid then. -1: none
};

// Calls on disjoint rows may run in parallel, each with a scratch of its own (in bytes, aligned to
// 64). Sums are reproducible for equal row ranges, and chunk_rows depends on nothing but the shape
// and the instruction set.
struct CrossEntropyKernels {
  int64_t (*chunk_rows)(const CrossEntropyArgs&);
  int64_t (*scratch)(const CrossEntropyArgs&);
  CrossEntropySums (*forward)(const CrossEntropyArgs&, int64_t row_begin, int64_t row_end,
                              void* scratch);
  int64_t (*backward)(const CrossEntropyArgs&, int64_t row_begin, int64_t row_end,
                      void* scratch);  // bad row or -1
  // Few rows of many classes are shared out by classes: into parts of so many, or of all. Each is
  // normalised, and forward joins them; backward may run on a part.
  int64_t (*part_classes)(const CrossEntropyArgs&);
  void (*normalise_part)(const CrossEntropyArgs&, int64_t row_begin, int64_t row_end,
                         void* scratch);
  // Over a tile of the classes, which lie side by side: the rows' state goes on; the gradient.
  void (*tile)(const CrossEntropyArgs&, int64_t row_begin, int64_t row_end, void* scratch);
  void (*tile_gradient)(const CrossEntropyArgs&, int64_t row_begin, int64_t row_end, void* scratch);
};

}  // namespace imgfast::cpu
