#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace imgfast::cpu {

namespace generic {
extern const KernelTable kTable;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelTable kTable;
}
namespace avx512 {
extern const KernelTable kTable;
}
#endif

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kGeneric:
      return "generic";
  }
  return "unknown";
}

bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  // The compiler's run-time library reads CPUID and, by XGETBV, whether the system saves the
  // registers.
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             isa_supported(Isa::kAvx2);
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    case Isa::kGeneric:
      return true;
  }
#endif
  return isa == Isa::kGeneric;
}

namespace {

Isa choose_isa() {
  const char* forced = std::getenv("IMGFAST_ISA");
  for (Isa isa : kIsas) {
    if (forced && *forced && std::string(forced) != isa_name(isa)) continue;
    if (isa_supported(isa)) return isa;
    if (forced && *forced) {
      throw std::runtime_error(std::string("IMGFAST_ISA=") + forced +
                               ": this processor or operating system does not support it");
    }
  }
  throw std::runtime_error(std::string("IMGFAST_ISA must be avx512, avx2 or generic, got ") +
                           forced);
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

const KernelTable& kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::kAvx512:
      return avx512::kTable;
    case Isa::kAvx2:
      return avx2::kTable;
    case Isa::kGeneric:
      break;
  }
#else
  active_isa();
#endif
  return generic::kTable;
}

}  // namespace imgfast::cpu
