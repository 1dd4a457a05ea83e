// The cache of packed weights: never a byte out of date, never above its capacity.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "cpu/weight_cache.h"

namespace {

using imgfast::cpu::WeightCache;
using Bytes = std::vector<unsigned char>;

int failures = 0;

void check(bool passed, const char* what) {
  std::printf("%s: %s\n", passed ? "ok" : "FAILED", what);
  failures += !passed;
}

// "Packs" by complementing every byte, and counts how often it had to.
struct Packer {
  WeightCache& cache;
  int packed = 0;

  static Bytes expected(const Bytes& weight, const Bytes& bias) {
    Bytes out;
    for (auto byte : weight) out.push_back(~byte);
    for (auto byte : bias) out.push_back(~byte);
    return out;
  }

  std::shared_ptr<void> find(int64_t key, const Bytes& weight, const Bytes& bias = {}) {
    const WeightCache::Source source = {weight.data(), int64_t(weight.size()),
                                        bias.empty() ? nullptr : bias.data(), int64_t(bias.size())};
    return cache.find({key}, source, source.weight_bytes + source.bias_bytes,
                      [&](const WeightCache::Source& copy, void* out) {
                        packed++;
                        auto* to = static_cast<unsigned char*>(out);
                        const auto* w = static_cast<const unsigned char*>(copy.weight);
                        const auto* b = static_cast<const unsigned char*>(copy.bias);
                        for (int64_t i = 0; i < copy.weight_bytes; i++) *to++ = ~w[i];
                        for (int64_t i = 0; i < copy.bias_bytes; i++) *to++ = ~b[i];
                      });
  }

  // Null, or what packing these very bytes gives.
  bool right(int64_t key, const Bytes& weight, const Bytes& bias = {}) {
    const std::shared_ptr<void> kept = find(key, weight, bias);
    return !kept || equal(kept, expected(weight, bias));
  }

  static bool equal(const std::shared_ptr<void>& kept, const Bytes& bytes) {
    return std::memcmp(kept.get(), bytes.data(), bytes.size()) == 0;
  }
};

void test_kept_from_the_second_time() {
  WeightCache cache;
  Packer packer{cache};
  const Bytes weight(1000, 7), bias(40, 9);
  check(!packer.find(1, weight, bias) && packer.packed == 0, "a first sight is not kept");
  const auto second = packer.find(1, weight, bias), third = packer.find(1, weight, bias);
  check(second && second == third && packer.packed == 1, "packed once, at the second");
  check(reinterpret_cast<uintptr_t>(second.get()) % 64 == 0, "aligned");
  check(Packer::equal(second, Packer::expected(weight, bias)), "with the bias");
  check(!packer.find(2, weight, bias), "another key is another weight");
  check(packer.find(1, weight, bias) == second, "which leaves the first alone");
}

void test_every_byte_counts() {
  WeightCache cache;
  Packer packer{cache};
  Bytes weight(300), bias(20);
  for (int i = 0; i < 3; i++) packer.find(1, weight, bias);
  const auto before = packer.find(1, weight, bias);
  bool right = before != nullptr;
  for (auto* bytes : {&weight, &bias}) {
    for (auto& byte : *bytes) {
      byte++;
      for (int i = 0; i < 3; i++) right = right && packer.right(1, weight, bias);
      right = right && packer.find(1, weight, bias);  // kept again
    }
  }
  check(right, "a change of any byte is seen");
  check(Packer::equal(before, Packer::expected(Bytes(300), Bytes(20))),
        "what a caller holds stays as it was");
}

void test_capacity() {
  constexpr int64_t kWeights = 10, kBytes = 4096;
  // Room for all entries, and for the copies and packed weights of half of them.
  WeightCache cache(kWeights * WeightCache::kEntryBytes + kWeights / 2 * 2 * kBytes);
  Packer packer{cache};
  const int64_t capacity = kWeights * WeightCache::kEntryBytes + kWeights * kBytes;
  std::vector<Bytes> weights;
  for (int64_t i = 0; i < kWeights; i++) weights.emplace_back(kBytes, i);
  bool bounded = true;
  const auto round = [&](int64_t first_key) {
    int kept = 0;
    for (int64_t i = 0; i < kWeights; i++) {
      kept += packer.find(first_key + i, weights[i]) != nullptr;
      bounded = bounded && cache.bytes() <= capacity;
    }
    return kept;
  };
  for (int i = 0; i < 3; i++) round(0);
  const int before = packer.packed;
  int least = kWeights;
  for (int i = 0; i < 50; i++) least = std::min(least, round(0));
  check(least == kWeights / 2 && packer.packed == before, "a round too large: those in it stay");
  int last = 0;
  for (int i = 0; i < 50; i++) last = round(100);
  check(last == kWeights / 2, "others take the place of those not used any more");
  check(bounded, "never above the capacity");

  const Bytes large(capacity);
  for (int i = 0; i < 3; i++) bounded = bounded && !packer.find(7, large);
  check(bounded, "larger than the capacity: never kept");
}

void test_threads() {
  constexpr int kThreads = 4;
  WeightCache cache(40 * 1000);
  std::vector<std::thread> threads;
  std::vector<int> wrong(kThreads);
  for (int t = 0; t < kThreads; t++) {
    threads.emplace_back([&cache, &wrong, t] {
      Packer packer{cache};
      for (int i = 0; i < 3000; i++) {
        // One key of all threads, some that come and go, and values that often repeat.
        const Bytes weight(500, static_cast<unsigned char>(t + i / 100 % 2));
        wrong[t] += !packer.right(i % 3 ? 1 : 2 + i % 50, weight, Bytes(8, 1));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  bool right = cache.bytes() <= 40 * 1000;
  for (int count : wrong) right = right && count == 0;
  check(right, "threads with different values under one key get their own");
}

}  // namespace

int main() {
  test_kept_from_the_second_time();
  test_every_byte_counts();
  test_capacity();
  test_threads();
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
