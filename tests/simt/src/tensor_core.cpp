// Twins of ldmatrix and mma.sync. Fragments are laid out as the PTX ISA says: g = lane / 4 and
// t = lane % 4. Products are exact in float32 and added one by one in the order of k; the device's
// order of addition and its rounding within a sum are not documented, and differ.
#include <cmath>
#include <cstring>

#include "access.h"
#include "report.h"

namespace simt {
namespace {

// These instructions are undefined unless all 32 lanes execute them.
bool all_lanes(void** requests, unsigned lanes) {
  if (lanes == kAllLanes) return true;
  unsigned lane = 0;
  while ((lanes >> lane & 1) == 0) ++lane;
  const Call& call = *static_cast<const Call*>(requests[lane]);
  report("bad mask", place(call), std::string(call.what) + " by a warp of which lanes are missing");
  machine.stopped = true;
  return false;
}

void meet_all(const Call& call, void* request, Act act) {
  meet(call, kAllLanes, request, act);
  if (machine.stopped) yield();
}

struct LoadRequest : Call {
  std::uint32_t* fragment;
  int matrices;
  bool transposed;
  const unsigned char* row;
};

void do_ldmatrix(void** requests, unsigned lanes) {
  const auto request = [&](unsigned lane) -> LoadRequest& {
    return *static_cast<LoadRequest*>(requests[lane]);
  };
  if (!all_lanes(requests, lanes)) return;
  for (int matrix = 0; matrix < request(0).matrices; ++matrix) {
    for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
      const unsigned g = lane / 4;
      const unsigned t = lane % 4;
      std::uint16_t pair[2];
      for (unsigned i = 0; i < 2; ++i) {
        const unsigned row = request(0).transposed ? 2 * t + i : g;
        const unsigned column = request(0).transposed ? g : 2 * t + i;
        std::memcpy(&pair[i], request(matrix * 8 + row).row + 2 * column, 2);
      }
      request(lane).fragment[matrix] = pair[0] | static_cast<std::uint32_t>(pair[1]) << 16;
    }
  }
}

struct MmaRequest : Call {
  Mma kind;
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

float half_value(std::uint32_t bits) {
  __half_raw raw;
  raw.x = static_cast<unsigned short>(bits);
  return __half2float(__half(raw));
}

// Element i of the one or two in a register.
float element(Mma kind, std::uint32_t word, int i) {
  const std::uint32_t half = word >> (16 * i) & 0xffffu;
  switch (kind) {
    case Mma::kBf16:
      return __builtin_bit_cast(float, half << 16);
    case Mma::kF16:
      return half_value(half);
    case Mma::kTf32:
      return __builtin_bit_cast(float, word & 0xffffe000u);  // the rest is not looked at
  }
  return 0.0f;
}

void do_mma(void** requests, unsigned lanes) {
  const auto request = [&](unsigned lane) -> MmaRequest& {
    return *static_cast<MmaRequest*>(requests[lane]);
  };
  if (!all_lanes(requests, lanes)) return;

  const Mma kind = request(0).kind;
  const int packed = kind == Mma::kTf32 ? 1 : 2;  // elements in a register
  const int depth = 8 * packed;
  float a[16][16];
  float b[16][8];
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    const int g = static_cast<int>(lane) / 4;
    const int t = static_cast<int>(lane) % 4;
    for (int i = 0; i < packed; ++i) {
      for (int r = 0; r < 4; ++r) {
        a[g + 8 * (r % 2)][packed * (t + 4 * (r / 2)) + i] = element(kind, request(lane).a[r], i);
      }
      for (int r = 0; r < 2; ++r) {
        b[packed * (t + 4 * r) + i][g] = element(kind, request(lane).b[r], i);
      }
    }
  }
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    const unsigned g = lane / 4;
    const unsigned t = lane % 4;
    for (unsigned r = 0; r < 4; ++r) {
      float sum = request(lane).d[r];
      for (int k = 0; k < depth; ++k) sum += a[g + 8 * (r / 2)][k] * b[k][2 * t + r % 2];
      request(lane).d[r] = sum;
    }
  }
}

}  // namespace

void ldmatrix(std::uint32_t* fragment, int matrices, bool transposed, const void* row) {
  const std::uint32_t site = site_of(__builtin_return_address(0));
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  if (machine.current->lane() < 8 * static_cast<unsigned>(matrices)) {
    if (!machine.memory.in_shared(address)) {
      stop("out of bounds", place(site),
           "ldmatrix of " + machine.memory.describe(address) + ", which is not shared memory, by " +
               thread_name(machine.current->id));
    }
    access<Touch::kRead>(address, 16, true, site);
  }
  const Call call{"ldmatrix", "", matrices + (transposed ? 8 : 0), site};
  LoadRequest request{call, fragment, matrices, transposed, static_cast<const unsigned char*>(row)};
  meet_all(call, &request, do_ldmatrix);
}

void mma(Mma kind, float* d, const std::uint32_t* a, const std::uint32_t* b) {
  const std::uint32_t site = site_of(__builtin_return_address(0));
  const Call call{"mma.sync", "", static_cast<int>(kind), site};
  MmaRequest request{call, kind, d, a, b};
  meet_all(call, &request, do_mma);
}

std::uint32_t to_tf32(float x) {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // infinities, NaN
  return (bits + 0x1000u) & 0xffffe000u;
}

float exp2_fast(float x) {
  const float y = std::exp2(std::fpclassify(x) == FP_SUBNORMAL ? 0.0f : x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0.0f : y;
}

}  // namespace simt
