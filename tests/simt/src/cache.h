// A cache of sectors: what it holds is not moved again, and what was used longest ago gives way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>

namespace simt {

class SectorCache {
 public:
  explicit SectorCache(std::size_t sectors) : sectors_(sectors) {}

  // Whether the sector was there; it is from now on.
  bool touch(std::uintptr_t sector) {
    const auto found = place_.find(sector);
    if (found != place_.end()) {
      order_.splice(order_.begin(), order_, found->second);
      return true;
    }
    if (order_.size() == sectors_) {
      place_.erase(order_.back());
      order_.pop_back();
    }
    order_.push_front(sector);
    place_[sector] = order_.begin();
    return false;
  }

  void clear() {
    order_.clear();
    place_.clear();
  }

 private:
  std::size_t sectors_;
  std::list<std::uintptr_t> order_;  // the last one used is the first
  std::unordered_map<std::uintptr_t, std::list<std::uintptr_t>::iterator> place_;
};

}  // namespace simt
