// Access profile: for each place in the source, memory and direction, what a warp's requests cost.
#pragma once

#include <string>

namespace simt {

// Accesses that no full warp has made yet are counted as they are.
void profile_end_of_block();
void clear_profile();
// One row a line, tab-separated: place, memory, "shared" or "global", "read" or "write", bytes of
// an access, requests, lanes, units, least units, units that were in no cache.
std::string profile_rows();

}  // namespace simt
