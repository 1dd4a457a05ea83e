// Barriers of blocks and warps, shuffles and votes: who must call, and what they get.
#include <cstring>
#include <string>

#include "machine.h"
#include "report.h"

namespace simt {
namespace {

bool same_call(const Call& a, const Call& b) {
  const auto same = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
  return a.line == b.line && same(a.what, b.what) && same(a.file, b.file);
}

std::string lane_name(unsigned lane) { return "lane " + std::to_string(lane); }

}  // namespace

bool is_left_out(int number) { return machine.options.left_out == number; }

// --- barriers of a block -------------------------------------------------------------------------

int barrier(Vote vote, int predicate, const char* file, int line) {
  Thread& thread = *machine.current;
  thread.state = Thread::State::kInBlock;
  thread.call = {"__syncthreads", file, line};
  thread.vote = vote;
  thread.predicate = predicate;
  yield();
  return thread.vote_result;
}

// Threads that have exited are not waited for. All others must be at the same call, as CUDA asks of
// a barrier under a condition.
bool complete_block() {
  const Thread* first = nullptr;
  int count = 0;
  int waiting = 0;
  for (unsigned id = 0; id < machine.thread_count; ++id) {
    const Thread& thread = machine.threads[id];
    if (thread.state == Thread::State::kDone) continue;
    if (thread.state != Thread::State::kInBlock) return false;
    if (first == nullptr) first = &thread;
    if (!same_call(first->call, thread.call)) return false;
    count += thread.predicate != 0;
    ++waiting;
  }
  if (first == nullptr) return false;
  const Vote vote = first->vote;
  const int result = vote == Vote::kAnd ? count == waiting : vote == Vote::kOr ? count > 0 : count;
  ++machine.barrier;
  std::memset(machine.warp_sync, 0, sizeof machine.warp_sync);
  for (unsigned id = 0; id < machine.thread_count; ++id) {
    Thread& thread = machine.threads[id];
    if (thread.state == Thread::State::kDone) continue;
    thread.state = Thread::State::kReady;
    thread.vote_result = result;
  }
  return true;
}

// --- collectives of a warp -----------------------------------------------------------------------

bool complete_warp(const Thread& thread) {
  const unsigned first = thread.warp() * kWarpThreads;
  const unsigned lanes = thread.mask & live_lanes(thread.warp());
  void* requests[kWarpThreads] = {};
  for (unsigned i = 1; i <= kWarpThreads; ++i) {  // the next lane mostly runs next: it is not there
    const unsigned lane = (thread.lane() + i) % kWarpThreads;
    if ((lanes >> lane & 1) == 0) continue;
    const Thread& other = machine.threads[first + lane];
    const bool waits = other.state == Thread::State::kInWarp && other.mask == thread.mask;
    if (!waits || !same_call(other.call, thread.call)) return false;
    requests[lane] = other.request;
  }
  thread.act(requests, lanes);
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    if ((lanes >> lane & 1) != 0) machine.threads[first + lane].state = Thread::State::kReady;
  }
  return true;
}

void meet(const Call& call, unsigned mask, void* request, Act act) {
  Thread& thread = *machine.current;
  if ((mask >> thread.lane() & 1) == 0) {
    stop(
        "bad mask", place(call),
        std::string(call.what) + " by " + lane_name(thread.lane()) + ", which its mask leaves out");
  }
  thread.state = Thread::State::kInWarp;
  thread.call = call;
  thread.mask = mask;
  thread.request = request;
  thread.act = act;
  if (!complete_warp(thread)) yield();
}

// Only a barrier of all lanes counts for the order of accesses: the shadow has one clock a warp.
void warp_barrier(unsigned mask, const char* file, int line) {
  const auto act = [](void** requests, unsigned lanes) {
    unsigned lane = 0;
    while ((lanes >> lane & 1) == 0) ++lane;
    const unsigned warp = *static_cast<const unsigned*>(requests[lane]);
    if (lanes != live_lanes(warp)) return;
    if (++machine.warp_sync[warp] == UINT16_MAX) {
      report("invalid launch", "launch", "more barriers of a warp than the emulator can count");
      machine.stopped = true;
    }
  };
  unsigned warp = machine.current->warp();
  meet({"__syncwarp", file, line}, mask, &warp, act);
  if (machine.stopped) yield();
}

namespace {

struct ShuffleRequest {
  Shuffle kind;
  std::uint64_t value;
  std::uint64_t result;
  int operand;
  int width;
  const char* file;
  int line;
};

// The lane that lane reads; itself where the operand leads out of its segment, as on the device.
int source_lane(const ShuffleRequest& request, int lane) {
  const int first = lane & ~(request.width - 1);
  const int end = first + request.width;
  switch (request.kind) {
    case Shuffle::kIndex:
      return first + (request.operand & (request.width - 1));
    case Shuffle::kXor:
      return (lane ^ request.operand) < end ? lane ^ request.operand : lane;
    case Shuffle::kDown:
      return lane + request.operand < end ? lane + request.operand : lane;
    case Shuffle::kUp:
      return lane - request.operand >= first ? lane - request.operand : lane;
  }
  return lane;
}

void do_shuffle(void** requests, unsigned lanes) {
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    auto& request = *static_cast<ShuffleRequest*>(requests[lane]);
    const auto from = static_cast<unsigned>(source_lane(request, static_cast<int>(lane)));
    if (from < kWarpThreads && (lanes >> from & 1) != 0) {
      request.result = static_cast<const ShuffleRequest*>(requests[from])->value;
      continue;
    }
    request.result = ~std::uint64_t{0};
    if (first_report("bad mask", static_cast<std::uint32_t>(request.line))) {
      report("bad mask", place(request.file, request.line),
             lane_name(lane) + " shuffles from " + lane_name(from) +
                 ", which does not take part: the value is undefined");
    }
  }
}

struct BallotRequest {
  bool predicate;
  unsigned result;
};

void do_ballot(void** requests, unsigned lanes) {
  unsigned result = 0;
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    if ((lanes >> lane & 1) == 0) continue;
    if (static_cast<const BallotRequest*>(requests[lane])->predicate) result |= 1u << lane;
  }
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    if ((lanes >> lane & 1) != 0) static_cast<BallotRequest*>(requests[lane])->result = result;
  }
}

}  // namespace

std::uint64_t shuffle(Shuffle kind, unsigned mask, std::uint64_t value, int operand, int width,
                      const char* file, int line) {
  if (width <= 0 || width > 32 || (width & (width - 1)) != 0) {
    stop("bad mask", place(file, line),
         "a shuffle's width must be a power of two up to 32, got " + std::to_string(width));
  }
  ShuffleRequest request{kind, value, 0, operand, width, file, line};
  meet({"shuffle", file, line}, mask, &request, do_shuffle);
  return request.result;
}

unsigned ballot(unsigned mask, bool predicate, const char* file, int line) {
  BallotRequest request{predicate, 0};
  meet({"vote", file, line}, mask, &request, do_ballot);
  return request.result;
}

}  // namespace simt
