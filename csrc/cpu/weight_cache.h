// Packed weights, kept from one inference call to the next.
//
// Nothing is believed about a weight that its bytes do not show: an entry holds a copy of the bytes
// it was packed from, and serves only a weight and bias whose bytes are the same (memcmp, a small
// part of what packing costs). So whoever changed the weight, and whether or not autograd's version
// counter noticed, the next call sees it.
//
// Packing is kept the second time that the same values are seen, as far as a few samples tell.
// Weights that change between calls, or pass by once, cost a lookup and no memory.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace imgfast::cpu {

class WeightCache {
 public:
  static constexpr int64_t kCapacity = 256 << 20;  // bytes, of copies and packed weights together
  static constexpr int64_t kEntryBytes = 256;      // what an entry is taken to cost besides
  static constexpr int64_t kIdle = 8;              // see make_room

  // Everything that packing depends on besides the values, and where the weight lies.
  using Key = std::array<int64_t, 13>;

  struct Source {
    const void* weight;
    int64_t weight_bytes;
    const void* bias;
    int64_t bias_bytes;  // 0 without a bias
  };
  using Pack = std::function<void(const Source&, void* packed)>;
  using Compare = int(const void*, const void*, size_t);  // as std::memcmp, 0 if equal

  explicit WeightCache(int64_t capacity = kCapacity, Compare* compare = std::memcmp)
      : capacity_(capacity), compare_(compare) {}

  // The packed weight, to be read only, aligned to 64 bytes, good for as long as it is held; null
  // where it is not kept, and the caller packs for itself. Packs from the copy, so that the two
  // agree even if somebody writes to the weight meanwhile. Any number of threads may call it.
  std::shared_ptr<void> find(const Key& key, const Source& source, int64_t packed_bytes,
                             const Pack& pack);

  int64_t bytes() const;

 private:
  // [packed weight][weight][bias], the first part rounded up to 64 bytes.
  struct Block {
    std::shared_ptr<char> data;
    int64_t copy_offset = 0, bytes = 0;
  };
  struct Entry {
    Key key;
    int64_t used;      // lookup that it was last used in
    uint64_t samples;  // of the values seen last
    Block block;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  using Entries = std::list<Entry>;

  bool serves(const Block& block, const Source& source) const;
  bool seen_before(const Key& key, uint64_t samples, int64_t bytes);
  void keep(const Key& key, const Block& block);
  void drop_block(Entry& entry);
  bool make_room(int64_t bytes, const Entry* spare);

  const int64_t capacity_;
  Compare* const compare_;
  mutable std::mutex mutex_;
  int64_t bytes_ = 0, lookups_ = 0;
  Entries entries_;  // the one used last at the front
  std::unordered_map<Key, Entries::iterator, KeyHash> index_;
};

}  // namespace imgfast::cpu
