// Shape arithmetic of conv_relu_pool, at its edges and beyond 32 bits.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "conv_relu_pool.h"

namespace {

int failures = 0;

void check(int64_t actual, int64_t expected, const char* what) {
  const bool passed = actual == expected;
  std::printf("%s: %s: %lld\n", passed ? "ok" : "FAILED", what, static_cast<long long>(actual));
  failures += !passed;
}

}  // namespace

int main() {
  using imgfast::conv_output_size;
  using imgfast::pool_output_size;
  constexpr int64_t kHuge = int64_t{3} << 31;

  check(conv_output_size(32, 3, 1, 1, 1), 32, "3, padding 1 keeps the size");
  check(conv_output_size(224, 7, 2, 3, 1), 112, "7, stride 2, padding 3");
  check(conv_output_size(5, 3, 1, 0, 2), 1, "a dilated filter as large as the map");
  check(conv_output_size(4, 3, 1, 0, 2), 0, "a dilated filter larger than the map");
  check(conv_output_size(2, 3, 2, 0, 1), 0, "a filter larger than the map, with a stride");
  check(conv_output_size(kHuge, 3, 1, 1, 1), kHuge, "more than 2^31 columns");

  check(pool_output_size(32, 2, 2, 0, 1, false), 16, "2 / 2");
  check(pool_output_size(33, 2, 2, 0, 1, false), 16, "2 / 2 leaves an odd column out");
  check(pool_output_size(33, 2, 2, 0, 1, true), 17, "2 / 2 with ceil_mode takes it in");
  check(pool_output_size(112, 3, 2, 1, 1, false), 56, "3 / 2, padding 1");
  check(pool_output_size(4, 3, 2, 1, 1, true), 3, "ceil_mode, the last window starts inside");
  check(pool_output_size(3, 1, 3, 0, 1, true), 1, "ceil_mode, no window starts outside");
  check(pool_output_size(5, 3, 1, 0, 2, false), 1, "a dilated window");
  check(pool_output_size(4, 5, 1, 0, 1, false), 0, "a window larger than the map");
  check(pool_output_size(kHuge, 2, 2, 0, 1, false), kHuge / 2, "more than 2^31 columns");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
