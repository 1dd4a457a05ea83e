// Launches: blocks one after another, their threads as fibers in turn, in an order drawn from the
// seed. A thread runs until it waits for others, or is preempted.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <numeric>
#include <span>
#include <utility>

#include "machine.h"
#include "module.h"
#include "profile.h"
#include "report.h"

extern "C" {
// The storage behind the constants of simt.h.
simt::Index3 simt_thread_index asm("simt_threadIdx");
simt::Index3 simt_block_index asm("simt_blockIdx");
simt::Index3 simt_block_size asm("simt_blockDim");
simt::Index3 simt_grid_size asm("simt_gridDim");
}

namespace simt {

Machine machine;

namespace {

void* scheduler_stack = nullptr;
void (*run_thread)(void*) = nullptr;
void* closure = nullptr;
std::uint64_t random_state = 1;

template <class T>
void shuffle_order(std::span<T> order) {
  if (machine.options.seed == 0) return;
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
}

void fiber_main() {
  run_thread(closure);
  Thread& thread = *machine.current;
  check_copies_at_exit(thread);
  thread.state = Thread::State::kDone;
  ++machine.done_count;
  yield();
  std::abort();  // nobody resumes a thread that is done
}

void resume(Thread& thread) {
  machine.current = &thread;
  machine.stack = stack_begin(thread.id);
  machine.stack_bytes = kStackBytes;
  simt_thread_index = thread.index;
  simt_switch_fiber(&scheduler_stack, thread.stack_pointer);
  machine.stack = 0;
  machine.stack_bytes = SIZE_MAX;
}

// An exit may be what the others of the warp wait for.
void wake_warp(unsigned warp) {
  const unsigned first = warp * kWarpThreads;
  const unsigned end = std::min(first + kWarpThreads, machine.thread_count);
  for (unsigned id = first; id < end; ++id) {
    const Thread& thread = machine.threads[id];
    if (thread.state == Thread::State::kInWarp) complete_warp(thread);
  }
}

// Runs the warp until none of its threads can go on; false if none could at all.
bool run_warp(unsigned warp) {
  unsigned lanes[kWarpThreads];
  std::iota(lanes, lanes + kWarpThreads, 0u);
  bool any = false;
  for (bool progress = true; progress && !machine.stopped;) {
    progress = false;
    shuffle_order<unsigned>(lanes);
    for (const unsigned lane : lanes) {
      const unsigned id = warp * kWarpThreads + lane;
      if (id >= machine.thread_count) continue;
      Thread& thread = machine.threads[id];
      if (thread.state != Thread::State::kReady) continue;
      resume(thread);
      if (machine.stopped) return true;
      if (thread.state == Thread::State::kDone) wake_warp(warp);
      progress = any = true;
    }
    if (machine.options.preempt != 0) break;  // other warps come in between
  }
  return any;
}

// Who waits where, once nobody can go on.
void report_deadlock() {
  std::map<std::string, std::pair<unsigned, unsigned>> groups;  // place -> threads, the first one
  const Thread* stuck = nullptr;
  for (unsigned id = 0; id < machine.thread_count; ++id) {
    const Thread& thread = machine.threads[id];
    std::string where = "exited";
    if (thread.state != Thread::State::kDone) {
      where = std::string(thread.call.what) + " at " + place(thread.call);
      if (stuck == nullptr) stuck = &thread;
    }
    auto& group = groups.try_emplace(where, 0u, id).first->second;
    ++group.first;
  }
  std::string text = "threads wait for each other:";
  for (const auto& [where, group] : groups) {
    text += " " + std::to_string(group.first) + " (first " + thread_name(group.second) + ") " +
            where + ";";
  }
  text.pop_back();
  report("divergent barrier", place(stuck->call), text);
  machine.stopped = true;
}

void run_block() {
  ++machine.block;
  machine.barrier = 0;
  machine.done_count = 0;
  std::fill(std::begin(machine.warp_sync), std::end(machine.warp_sync), std::uint16_t{0});
  machine.memory.poison_shared();
  for (unsigned id = 0; id < machine.thread_count; ++id) {
    Thread& thread = machine.threads[id];
    thread.stack_pointer = new_fiber(id, fiber_main);
    thread.state = Thread::State::kReady;
    thread.fenced = false;
    thread.fence_barrier = 0;
    thread.fence_time = 0;
    thread.copies.clear();
    thread.copy_group = 0;
  }
  unsigned warps[kMaxThreads / kWarpThreads];
  std::iota(std::begin(warps), std::end(warps), 0u);
  while (machine.done_count < machine.thread_count && !machine.stopped) {
    bool any = false;
    shuffle_order(std::span(warps, machine.warp_count));
    for (unsigned i = 0; i < machine.warp_count && !machine.stopped; ++i) {
      any |= run_warp(warps[i]);
    }
    if (machine.stopped || machine.done_count == machine.thread_count) break;
    if (!complete_block() && !any) report_deadlock();
  }
  profile_end_of_block();
  machine.total_threads += machine.thread_count;
}

// Why CUDA would refuse this launch; nullptr if it would not.
const char* refusal(dim3 grid, dim3 block, std::size_t shared_bytes) {
  constexpr std::size_t kMaxSharedBytes = 227 * 1024 + 4096;  // of 9.0, and the carver's redzones
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return "the grid has no block";
  if (threads == 0) return "the block has no thread";
  if (threads > kMaxThreads || block.z > 64) return "the block is too large";
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return "the grid is too large";
  if (shared_bytes > kMaxSharedBytes) return "too much dynamic shared memory";
  return nullptr;
}

Index3 index_of(std::uint64_t i, dim3 size) {
  return {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
          static_cast<unsigned>(i / size.x / size.y)};
}

}  // namespace

void yield() { simt_switch_fiber(&machine.current->stack_pointer, scheduler_stack); }

std::uint64_t draw() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

unsigned live_lanes(unsigned warp) {
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < kWarpThreads; ++lane) {
    const unsigned id = warp * kWarpThreads + lane;
    if (id < machine.thread_count && machine.threads[id].state != Thread::State::kDone) {
      lanes |= 1u << lane;
    }
  }
  return lanes;
}

bool launch_threads(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                    void (*run)(void*), void* arguments) {
  static std::mutex mutex;  // there is one machine, and Python may call from several threads
  const std::lock_guard<std::mutex> lock(mutex);
  const std::size_t reports = report_count();
  set_kernel(kernel);
  simt_block_index = {0, 0, 0};
  simt_grid_size = {grid.x, grid.y, grid.z};
  simt_block_size = {block.x, block.y, block.z};
  if (const char* reason = refusal(grid, block, shared_bytes)) {
    report("invalid launch", "launch", reason);
    return false;
  }
  machine.code = module().base;
  machine.thread_count = block.x * block.y * block.z;
  machine.warp_count = (machine.thread_count + kWarpThreads - 1) / kWarpThreads;
  for (unsigned id = 0; id < machine.thread_count; ++id) {
    machine.threads[id].id = id;
    machine.threads[id].index = index_of(id, block);
  }
  machine.memory.begin_launch(shared_bytes);
  machine.stopped = false;
  machine.accesses = 0;
  machine.first_block = machine.block + 1;
  run_thread = run;
  closure = arguments;
  random_state = 0x9e3779b97f4a7c15u * (static_cast<std::uint64_t>(machine.options.seed) + 1) | 1;
  for (int i = 0; i < 8; ++i) draw();

  std::vector<std::uint64_t> order(std::uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  shuffle_order(std::span(order));
  for (const std::uint64_t i : order) {
    simt_block_index = index_of(i, grid);
    run_block();
    if (machine.stopped) break;
  }
  machine.total_accesses += machine.accesses;
  return report_count() == reports;
}

}  // namespace simt
