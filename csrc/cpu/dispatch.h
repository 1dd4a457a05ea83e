// Chooses the instruction set: the best that processor and operating system support, or the one
// that the environment variable IMGFAST_ISA names. Asking for one that is not there is an error,
// never a silent fallback.
#pragma once

#include "causal_attention.h"
#include "conv_relu_pool.h"
#include "cross_entropy.h"
#include "feed_forward.h"
#include "muon.h"
#include "nearest_code.h"
#include "neighbour_mix.h"
#include "upsample_conv_relu.h"

namespace imgfast::cpu {

enum class Isa { kGeneric, kAvx2, kAvx512 };
inline constexpr Isa kIsas[] = {Isa::kAvx512, Isa::kAvx2, Isa::kGeneric};  // best first

struct KernelTable {
  ConvReLUPoolKernels conv_relu_pool;
  CrossEntropyKernels cross_entropy;
  CausalAttentionKernels causal_attention;
  FeedForwardKernels feed_forward;
  MuonKernels muon;
  NearestCodeKernels nearest_code;
  NeighbourMixKernels neighbour_mix;
  UpsampleConvReLUKernels upsample_conv_relu;
};

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);

// Both throw std::runtime_error if IMGFAST_ISA is unknown or not supported; the answer is found
// once.
Isa active_isa();
const KernelTable& kernels();

}  // namespace imgfast::cpu
