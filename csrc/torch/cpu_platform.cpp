#include "cpu_platform.h"

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <memory>

namespace rnnkern {
namespace {

constexpr size_t kArena = size_t(1) << 20, kBlock = size_t(1) << 18, kAlign = 64;

// One a thread; a call that finds it taken (a callback that calls back) allocates instead.
thread_local std::unique_ptr<char[]> arena;
thread_local bool arena_taken = false;

// A forked child has none of the parent's OpenMP threads and may not start new ones.
std::atomic<bool> forked{false};
[[maybe_unused]] int const at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

TorchCpuPlatform::~TorchCpuPlatform() {
  if (holds_arena_) arena_taken = false;
}

void* TorchCpuPlatform::scratch(size_t bytes) {
  bytes = (std::max<size_t>(bytes, 1) + kAlign - 1) / kAlign * kAlign;
#if defined(__SANITIZE_ADDRESS__)
  // One allocation each, so that a step beyond its end is seen.
  blocks_.push_back(c10::GetCPUAllocator()->allocate(bytes));
  return blocks_.back().get();
#endif
  if (bytes > left_) {
    if (!holds_arena_ && !arena_taken && blocks_.empty() && bytes <= kArena) {
      if (!arena) arena.reset(new char[kArena + kAlign]);
      arena_taken = holds_arena_ = true;
      next_ = arena.get();
      left_ = kArena;
    } else {
      left_ = std::max(bytes, kBlock);
      blocks_.push_back(c10::GetCPUAllocator()->allocate(left_ + kAlign));
      next_ = static_cast<char*>(blocks_.back().get());
    }
    next_ += (kAlign - reinterpret_cast<uintptr_t>(next_) % kAlign) % kAlign;
  }
  void* const here = next_;
  next_ += bytes;
  left_ -= bytes;
  return here;
}

int TorchCpuPlatform::max_workers() const {
#if AT_PARALLEL_OPENMP
  if (!forked && !at::in_parallel_region()) return at::get_num_threads();
#endif
  return 1;  // another pool does not promise that its tasks run at the same time
}

void TorchCpuPlatform::parallel(int wanted, const std::function<void(int worker, int workers)>& work) {
  wanted = std::min(wanted, max_workers());
  if (wanted <= 1) return work(0, 1);
  // OpenMP may grant fewer threads, and then hands several indices to one. Each waits until all indices are taken: by
  // then every thread that takes part has made itself known.
  std::atomic<int> taken{0}, workers{0};
  at::parallel_for(0, wanted, 1, [&](int64_t begin, int64_t end) {
    int const worker = workers.fetch_add(1);
    taken.fetch_add(int(end - begin));
    while (taken.load() < wanted) std::atomic_signal_fence(std::memory_order_seq_cst);
    work(worker, workers.load());
  });
}

}  // namespace rnnkern
