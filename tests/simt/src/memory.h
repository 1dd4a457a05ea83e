// The memory that kernels may touch, as regions: buffers given to a kernel, static shared
// variables, the dynamic shared buffer. Whatever lies in no region is out of bounds.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace simt {

// What a buffer is to the kernels of a run. kOut holds nothing before they write it.
enum class Role { kIn, kOut, kInOut, kShared };

// One access, as the race detector remembers it. Blocks are numbered over all launches from 1 on;
// barrier counts the block's barriers, warp_sync the warp's since the last of these.
struct Access {
  enum Flag : std::uint8_t {
    kManyThreads = 1,  // reads by several threads of a warp, merged into one,
    kManyWarps = 2,    // of a block,
    kManyBlocks = 4,   // of a launch
    kAtomic = 8,
    kInFlight = 16,  // the destination of a copy that has not been waited for
  };
  std::uint32_t block;
  std::uint32_t barrier;
  std::uint32_t site;
  std::uint16_t warp_sync;
  std::uint16_t thread : 11;
  std::uint16_t flags : 5;
};
static_assert(sizeof(Access) == 16);

// The shadow of some bytes: who wrote them last, and who has read them since.
struct Cell {
  Access write;
  Access read;
};

struct Region {
  std::uintptr_t begin;
  std::size_t bytes;
  Role role;
  std::string name;
  std::vector<Cell> cells;  // none until a thread touches a region that can be written
  unsigned shift = 4;       // a cell stands for 2^shift bytes, fewer once an access is smaller

  bool shared() const { return role == Role::kShared; }
  bool writable() const { return role != Role::kIn; }

  // The cells of bytes [offset, offset + size), which are refined to match.
  Cell* shadow(std::size_t offset, std::size_t size, std::size_t* count) {
    if (cells.empty() || ((offset | size) & ((std::size_t{1} << shift) - 1)) != 0) {
      refine(offset | size);
    }
    *count = size >> shift;
    return &cells[offset >> shift];
  }

 private:
  void refine(std::size_t multiple);
};

class Memory {
 public:
  static constexpr std::size_t kDynamicBytes = 256 * 1024;

  void add_buffer(const char* name, void* p, std::size_t bytes, Role role);
  void clear_buffers();
  // Every launch has static variables and an empty dynamic buffer of its own.
  void begin_launch(std::size_t dynamic_bytes);
  // Shared memory has no value when a block starts: NaN if it is read as a float.
  void poison_shared();
  void* carve(std::size_t offset, std::size_t bytes);

  // The region of an access from site, nullptr if there is none.
  Region* find(std::uintptr_t address, std::uint32_t site) {
    Region* region = recent_[site % kRecent];
    if (address - region->begin < region->bytes) return region;
    region = search(address);
    if (region != nullptr) recent_[site % kRecent] = region;
    return region;
  }
  // Shared memory that no carved array has: between two of them, or behind the last.
  bool in_redzone(std::uintptr_t address, std::size_t bytes) const {
    const std::size_t offset = address - dynamic_;
    return offset < dynamic_bytes_ && !(in_array_[offset] && in_array_[offset + bytes - 1]);
  }
  bool in_shared(std::uintptr_t address) const;
  // Memory in no region that the compiler's own code touches: constants of the module, guards of
  // static variables.
  bool is_compilers(std::uintptr_t address, bool write) const;
  // "'x' byte 12 of 400", or what is nearest to an address in no region.
  std::string describe(std::uintptr_t address) const;
  // Bytes of outputs that no thread has written, in the words of a report; empty if none.
  std::vector<std::string> unwritten() const;

 private:
  // One entry for each of many places of access: a place mostly stays in one region.
  static constexpr std::size_t kRecent = 4096;

  Region* search(std::uintptr_t address) const;
  Region* insert(Region region);
  void erase_if(bool (*drop)(const Region&));
  void forget_recent();

  std::vector<Region*> regions_;  // by address, never overlapping
  std::array<Region*, kRecent> recent_;
  std::uintptr_t dynamic_ = 0;
  std::size_t dynamic_bytes_ = 0;
  std::vector<std::pair<std::size_t, std::size_t>> carved_;  // offset, bytes
  std::vector<unsigned char> in_array_;                      // for each byte of the dynamic buffer
  std::uintptr_t static_ = 0;
  std::size_t static_bytes_ = 0;
};

}  // namespace simt
