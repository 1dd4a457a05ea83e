// A model of what memory requests cost, in 32-byte sectors of global memory and in passes over the
// 32 banks of shared memory. The k-th access of a lane at a place belongs to the same request as
// the k-th access of the other lanes of its warp there; where lanes diverge, that is a guess.
// Behind global memory's requests lies a cache of 4 MB for all blocks together: a tenth of what
// large GPUs have for the hundreds of blocks that run at a time there, and one after another here.
#include "profile.h"

#include <algorithm>
#include <deque>
#include <map>
#include <tuple>
#include <vector>

#include "access.h"
#include "cache.h"
#include "report.h"

namespace simt {
namespace {

constexpr unsigned kSectorBytes = 32;
constexpr unsigned kBankBytes = 4;
constexpr unsigned kBanks = 32;
constexpr std::size_t kCacheBytes = 4 << 20;

struct Request {
  std::uintptr_t address[kWarpThreads];
  unsigned lanes = 0;
};

struct WarpRequests {
  std::deque<Request> open;  // the first one is the oldest that some lane has not made
  std::size_t closed = 0;    // requests before that one
  std::size_t made[kWarpThreads] = {};
};

struct Row {
  std::size_t bytes = 0;
  std::uint64_t requests = 0;
  std::uint64_t lanes = 0;
  std::uint64_t units = 0;
  std::uint64_t least = 0;
  std::uint64_t missed = 0;
  std::vector<WarpRequests> warps;
};

struct Key {
  std::uint32_t site;
  std::string memory;
  bool shared;
  bool write;
  bool operator<(const Key& other) const {
    return std::tie(site, memory, write) < std::tie(other.site, other.memory, other.write);
  }
};

std::map<Key, Row> rows;
SectorCache cache(kCacheBytes / kSectorBytes);

struct Recent {
  const Region* region = nullptr;
  std::uint32_t site = 0;
  bool write = false;
  std::uint32_t block = 0;
  Row* row = nullptr;
};
Recent recent[4096];

// Distinct addresses of some lanes, in order.
unsigned distinct(const Request& request, unsigned lanes, std::uintptr_t* addresses) {
  unsigned count = 0;
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    if ((lanes >> lane & 1) != 0) addresses[count++] = request.address[lane];
  }
  std::sort(addresses, addresses + count);
  return static_cast<unsigned>(std::unique(addresses, addresses + count) - addresses);
}

void count_sectors(Row& row, const Request& request) {
  std::uintptr_t addresses[kWarpThreads];
  const unsigned count = distinct(request, request.lanes, addresses);
  std::uintptr_t next = 0;  // the first sector that is not counted yet
  for (unsigned i = 0; i < count; ++i) {
    const std::uintptr_t first = std::max(next, addresses[i] / kSectorBytes);
    const std::uintptr_t end = (addresses[i] + row.bytes - 1) / kSectorBytes + 1;
    for (std::uintptr_t sector = first; sector < end; ++sector) {
      ++row.units;
      row.missed += !cache.touch(sector);
    }
    next = std::max(next, end);
  }
  row.least += (count * row.bytes + kSectorBytes - 1) / kSectorBytes;
}

// A quarter of the warp at a time for 16 bytes a lane, a half for 8: what fits into the banks.
// Lanes that ask for the same word share it.
void count_passes(Row& row, const Request& request) {
  const unsigned group = row.bytes >= 16 ? 8 : row.bytes >= 8 ? 16 : 32;
  for (unsigned first = 0; first < kWarpThreads; first += group) {
    const unsigned lanes =
        group == 32 ? request.lanes : request.lanes & ((1u << group) - 1) << first;
    std::uintptr_t addresses[kWarpThreads];
    const unsigned count = distinct(request, lanes, addresses);
    unsigned in_bank[kBanks] = {};
    unsigned words = 0;
    std::uintptr_t next = 0;
    for (unsigned i = 0; i < count; ++i) {
      const std::uintptr_t end = (addresses[i] + row.bytes - 1) / kBankBytes + 1;
      for (std::uintptr_t word = std::max(next, addresses[i] / kBankBytes); word < end; ++word) {
        ++in_bank[word % kBanks];
        ++words;
      }
      next = std::max(next, end);
    }
    row.units += *std::max_element(in_bank, in_bank + kBanks);
    row.least += (words + kBanks - 1) / kBanks;
  }
}

void close(bool shared, Row& row, const Request& request) {
  ++row.requests;
  row.lanes += static_cast<unsigned>(__builtin_popcount(request.lanes));
  if (shared) {
    count_passes(row, request);
  } else {
    count_sectors(row, request);
  }
}

}  // namespace

void profile_access(const Region& region, std::uintptr_t address, std::size_t bytes, bool write,
                    std::uint32_t site) {
  Recent& entry = recent[site % std::size(recent)];
  if (entry.region != &region || entry.site != site || entry.write != write ||
      entry.block != machine.block) {
    Row& row = rows[Key{site, region.name, region.shared(), write}];
    row.bytes = std::max(row.bytes, bytes);
    row.warps.resize(kMaxThreads / kWarpThreads);
    entry = {&region, site, write, machine.block, &row};
  }
  Row& row = *entry.row;
  WarpRequests& warp = row.warps[machine.current->warp()];
  const unsigned lane = machine.current->lane();
  const std::size_t k = warp.made[lane]++ - warp.closed;
  if (k >= warp.open.size()) warp.open.resize(k + 1);
  Request& request = warp.open[k];
  request.address[lane] = address;
  request.lanes |= 1u << lane;
  while (!warp.open.empty() && warp.open.front().lanes == kAllLanes) {
    close(region.shared(), row, warp.open.front());
    warp.open.pop_front();
    ++warp.closed;
  }
}

void profile_end_of_block() {
  if (machine.options.profile == 0) return;
  for (auto& [key, row] : rows) {
    for (WarpRequests& warp : row.warps) {
      for (const Request& request : warp.open) close(key.shared, row, request);
      warp = {};
    }
  }
}

void clear_profile() {
  rows.clear();
  cache.clear();
  std::fill(std::begin(recent), std::end(recent), Recent{});
}

std::string profile_rows() {
  std::string text;
  for (const auto& [key, row] : rows) {
    text += place(key.site) + "\t" + key.memory + "\t" + (key.shared ? "shared" : "global") + "\t" +
            (key.write ? "write" : "read");
    for (const std::uint64_t value :
         {std::uint64_t{row.bytes}, row.requests, row.lanes, row.units, row.least, row.missed}) {
      text += "\t" + std::to_string(value);
    }
    text += "\n";
  }
  return text;
}

}  // namespace simt
