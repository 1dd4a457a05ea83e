// Causal self-attention with normalised queries and keys, for sequences that fit the cache:
//
//   q = norm(Q)   k = norm(K)   p_i. = softmax over j <= i of scale q_i . k_j   o_i = sum_j p_ij
//   v_j
//
// norm takes the mean from a vector and divides by its standard deviation, see norm-inl.h.
//
// Source: A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762; M. Dehghani et
// al., "Scaling vision transformers to 22 billion parameters", 2023, arXiv:2302.05442, for norm.
#pragma once

#include <cstdint>

#include "../dtype.h"

namespace imgfast::cpu {

// Tensors are dense, of dtype float32 or float64.
struct CausalAttentionArgs {
  int64_t T, H, D;  // positions of a sequence, heads, numbers of a head
  DType dtype;
  double scale;
  const void* qkv;       // [N, T, 3, H, D]
  void* out;             // forward: [N, T, H, D]
  void* logsumexp;       // [N, H, T], of scale q_i . k_j over j <= i
  const void* grad_out;  // backward: [N, T, H, D]
  void* grad_qkv;        // backward: [N, T, 3, H, D]
};

// A unit is a head of a sequence, number n H + h. Calls on different ones may run in parallel, each
// with a scratch of its own (in bytes, aligned to 64); results do not depend on how they are
// shared.
struct CausalAttentionKernels {
  int64_t (*scratch)(const CausalAttentionArgs&);
  void (*forward)(const CausalAttentionArgs&, int64_t begin, int64_t end, void* scratch);
  void (*backward)(const CausalAttentionArgs&, int64_t begin, int64_t end, void* scratch);
};

}  // namespace imgfast::cpu
