// Storage types of two bytes and their scalar conversions. Every function is static: a translation
// unit compiled for one instruction set must never hand its copy to another through the linker.
#pragma once

#include <cstdint>
#include <cstring>

namespace imgfast {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

static inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float to_float(BFloat16 value) {
  return float_from_bits(static_cast<uint32_t>(value.bits) << 16);
}

// Round to nearest even; every NaN becomes the quiet NaN, as in PyTorch.
static inline BFloat16 to_bfloat16(float value) {
  const uint32_t bits = bits_from_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}

// A half's exponent is rebased by a float multiplication, which also normalises its subnormals.
static inline float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t exponent = magnitude & 0x0f800000u;
  if (exponent == 0x0f800000u) return float_from_bits(sign | magnitude | 0x7f800000u);
  const float rebased = float_from_bits(magnitude) * float_from_bits(0x77800000u);  // 2^112
  return float_from_bits(sign | bits_from_float(rebased));
}

static inline Float16 to_float16(float value) {
  const uint32_t bits = bits_from_float(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000u)
    return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to >= 65520
  if (magnitude <
      0x38800000u) {  // subnormal half: add 0.5, whose last place is 2^-24, and read the low bits
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (bits_from_float(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xc8000fffu + ((magnitude >> 13) & 1);
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

// For types without an instruction for it: X::compress, without a branch.
template <class X>
static inline int compress_lanes(unsigned mask, typename X::V a, int first_lane,
                                 typename X::T* values, int32_t* lanes) {
  int count = 0;
  for (int i = 0; i < X::kLanes; i++) {
    values[count] = a[i];
    lanes[count] = first_lane + i;
    count += mask >> i & 1;
  }
  return count;
}

// The transpose of kLanes vectors through memory, for types whose speed does not matter.
template <class X>
static inline void transpose_lanes(typename X::V (&a)[X::kLanes]) {
  typename X::T from[X::kLanes][X::kLanes], to[X::kLanes][X::kLanes];
  for (int i = 0; i < X::kLanes; i++) X::store(from[i], a[i]);
  for (int i = 0; i < X::kLanes; i++) {
    for (int j = 0; j < X::kLanes; j++) to[j][i] = from[i][j];
  }
  for (int i = 0; i < X::kLanes; i++) a[i] = X::load(to[i]);
}

}  // namespace imgfast
