#include "weight_cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace imgfast::cpu {
namespace {

uint64_t mix(uint64_t hash, uint64_t value) {  // FNV-1a, a word at a time
  return (hash ^ value) * 0x100000001b3;
}

// Some bytes all over the source: enough to notice an optimizer's step, not to trust.
uint64_t sample(const WeightCache::Source& source) {
  constexpr int64_t kSamples = 32;
  uint64_t hash = 0xcbf29ce484222325;
  const auto take = [&](const void* data, int64_t bytes) {
    for (int64_t i = 0; bytes > 0 && i < kSamples; i++) {
      const int64_t at = i * bytes / kSamples;
      uint64_t value = 0;
      std::memcpy(&value, static_cast<const char*>(data) + at,
                  std::min<int64_t>(sizeof value, bytes - at));
      hash = mix(hash, value);
    }
  };
  take(source.weight, source.weight_bytes);
  take(source.bias, source.bias_bytes);
  return hash;
}

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

size_t WeightCache::KeyHash::operator()(const Key& key) const {
  uint64_t hash = 0xcbf29ce484222325;
  for (int64_t value : key) hash = mix(hash, static_cast<uint64_t>(value));
  return static_cast<size_t>(hash ^ hash >> 32);
}

std::shared_ptr<void> WeightCache::find(const Key& key, const Source& source, int64_t packed_bytes,
                                        const Pack& pack) {
  const int64_t copy_offset = round_up(packed_bytes);
  const int64_t bytes = round_up(copy_offset + source.weight_bytes + source.bias_bytes);
  if (bytes + kEntryBytes > capacity_) return nullptr;
  Block block;
  {
    const std::lock_guard lock(mutex_);
    lookups_++;
    if (const auto found = index_.find(key); found != index_.end()) {
      entries_.splice(entries_.begin(), entries_, found->second);
      found->second->used = lookups_;
      block = found->second->block;
    }
  }
  if (!block.data || !serves(block, source)) {
    block = {};  // so that an outdated one is freed before the next is allocated
    if (!seen_before(key, sample(source), bytes)) return nullptr;
    auto* data = static_cast<char*>(std::aligned_alloc(64, bytes));
    if (!data) return nullptr;
    block = {std::shared_ptr<char>(data, std::free), copy_offset, bytes};
    char* copy = data + copy_offset;
    std::memcpy(copy, source.weight, source.weight_bytes);
    if (source.bias) std::memcpy(copy + source.weight_bytes, source.bias, source.bias_bytes);
    pack({copy, source.weight_bytes, source.bias ? copy + source.weight_bytes : nullptr,
          source.bias_bytes},
         data);
    keep(key, block);
  }
  return block.data;
}

bool WeightCache::serves(const Block& block, const Source& source) const {
  const char* copy = block.data.get() + block.copy_offset;
  return compare_(copy, source.weight, source.weight_bytes) == 0 &&
         (!source.bias ||
          compare_(copy + source.weight_bytes, source.bias, source.bias_bytes) == 0);
}

// Notes what was seen, and tells whether it was the same the last time and there is room to keep
// it.
bool WeightCache::seen_before(const Key& key, uint64_t samples, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto found = index_.find(key);
  if (found != index_.end()) {
    Entry& entry = *found->second;
    drop_block(entry);
    if (entry.samples == samples) return make_room(bytes, &entry);
    entry.samples = samples;
  } else if (make_room(kEntryBytes, nullptr)) {
    entries_.push_front({key, lookups_, samples, {}});
    index_.emplace(key, entries_.begin());
    bytes_ += kEntryBytes;
  }
  return false;
}

void WeightCache::keep(const Key& key, const Block& block) {
  const std::lock_guard lock(mutex_);
  const auto found = index_.find(key);
  if (found == index_.end()) return;  // another thread took its room meanwhile
  Entry& entry = *found->second;
  drop_block(entry);
  if (!make_room(block.bytes, &entry)) return;
  entry.block = block;
  bytes_ += block.bytes;
}

void WeightCache::drop_block(Entry& entry) {
  bytes_ -= entry.block.bytes;
  entry.block = {};
}

// Evicts what was used longest ago, but only if several rounds of all entries have gone by without
// it. A network that does not fit would otherwise, layer after layer, evict what comes next.
bool WeightCache::make_room(int64_t bytes, const Entry* spare) {
  while (bytes_ + bytes > capacity_) {
    if (entries_.empty()) return false;
    Entry& last = entries_.back();
    const int64_t idle = lookups_ - last.used;
    if (&last == spare || idle <= kIdle * static_cast<int64_t>(entries_.size())) return false;
    drop_block(last);
    bytes_ -= kEntryBytes;
    index_.erase(last.key);
    entries_.pop_back();
  }
  return true;
}

int64_t WeightCache::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace imgfast::cpu
