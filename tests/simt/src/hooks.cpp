// The functions that the compiler calls under -fsanitize=thread and the checks of undefined
// behaviour. No sanitizer's library is linked: these definitions take its place.
#include <cstdio>
#include <string>

#include "access.h"
#include "report.h"

#define HOOK extern "C" void
#define SITE simt::site_of(__builtin_return_address(0))

using simt::access;
using simt::Touch;

// --- memory --------------------------------------------------------------------------------------

#define ACCESS_HOOKS(BYTES)                                                         \
  HOOK __tsan_read##BYTES(void* p) {                                                \
    access<Touch::kRead>(reinterpret_cast<std::uintptr_t>(p), BYTES, true, SITE);   \
  }                                                                                 \
  HOOK __tsan_write##BYTES(void* p) {                                               \
    access<Touch::kWrite>(reinterpret_cast<std::uintptr_t>(p), BYTES, true, SITE);  \
  }                                                                                 \
  HOOK __tsan_unaligned_read##BYTES(void* p) {                                      \
    access<Touch::kRead>(reinterpret_cast<std::uintptr_t>(p), BYTES, false, SITE);  \
  }                                                                                 \
  HOOK __tsan_unaligned_write##BYTES(void* p) {                                     \
    access<Touch::kWrite>(reinterpret_cast<std::uintptr_t>(p), BYTES, false, SITE); \
  }
ACCESS_HOOKS(1)
ACCESS_HOOKS(2)
ACCESS_HOOKS(4)
ACCESS_HOOKS(8)
ACCESS_HOOKS(16)

HOOK __tsan_read_range(void* p, std::size_t bytes) {
  const std::uint32_t site = SITE;
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  for (std::size_t i = 0; i < bytes; i += 16) {
    access<Touch::kRead>(address + i, bytes - i < 16 ? bytes - i : 16, false, site);
  }
}
HOOK __tsan_write_range(void* p, std::size_t bytes) {
  const std::uint32_t site = SITE;
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  for (std::size_t i = 0; i < bytes; i += 16) {
    access<Touch::kWrite>(address + i, bytes - i < 16 ? bytes - i : 16, false, site);
  }
}

HOOK __tsan_init() {}
HOOK __tsan_func_entry(void*) {}
HOOK __tsan_func_exit() {}

// --- undefined behaviour -------------------------------------------------------------------------

namespace {

// As GCC's and Clang's ubsan lay them out.
struct SourceLocation {
  const char* file;
  std::uint32_t line;
  std::uint32_t column;
};
struct TypeDescriptor {
  std::uint16_t kind;
  std::uint16_t info;
  char name[1];
};
struct OutOfBounds {
  SourceLocation location;
  const TypeDescriptor* array;
  const TypeDescriptor* index;
};
struct TypeMismatch {
  SourceLocation location;
  const TypeDescriptor* type;
  unsigned char log_alignment;
  unsigned char kind;
};
struct Overflow {
  SourceLocation location;
  const TypeDescriptor* type;
};

// In a kernel it ends the launch; the code that launches is compiled the same way, and goes on.
void undefined(const SourceLocation& location, const char* kind, const std::string& text) {
  const std::string where = simt::place(location.file, static_cast<int>(location.line));
  if (!simt::machine.running()) {
    simt::report(kind, where, text + " in the launcher");
    return;
  }
  simt::stop(kind, where, text + " by " + simt::thread_name(simt::machine.current->id));
}

}  // namespace

HOOK __ubsan_handle_out_of_bounds(const OutOfBounds* data, std::uintptr_t index) {
  undefined(data->location, "out of bounds",
            "index " + std::to_string(static_cast<std::intptr_t>(index)) + " of type " +
                data->array->name);
}
HOOK __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, std::uintptr_t address) {
  const std::string what = simt::machine.memory.describe(address);
  undefined(data->location, "misaligned",
            std::string("a pointer to ") + data->type->name + ", which must be a multiple of " +
                std::to_string(1 << data->log_alignment) + " bytes, at " + what);
}
#define OVERFLOW_HOOK(NAME, TEXT)                                                    \
  HOOK __ubsan_handle_##NAME(const Overflow* data, std::uintptr_t, std::uintptr_t) { \
    undefined(data->location, "undefined behaviour",                                 \
              std::string(TEXT) + " in type " + data->type->name);                   \
  }
OVERFLOW_HOOK(shift_out_of_bounds, "shift out of range")
OVERFLOW_HOOK(add_overflow, "overflow of +")
OVERFLOW_HOOK(sub_overflow, "overflow of -")
OVERFLOW_HOOK(mul_overflow, "overflow of *")
OVERFLOW_HOOK(negate_overflow, "overflow of a negation")
OVERFLOW_HOOK(divrem_overflow, "division by zero, or its overflow,")
