#include "cpu_platform.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "../core/cpu/barrier.h"

namespace rnnkern {
namespace {

constexpr size_t kAlign = 64, kBlock = size_t(1) << 18, kHugePage = size_t(1) << 21, kMostKept = size_t(64) << 20;

// What the thread keeps between calls: as much as its largest call needed, at most kMostKept. Without, the system maps
// and zeros the packed weights' pages in every call (a quarter of 100 steps of an LSTM with H 1024). A call that finds
// it taken (a callback that calls back) maps its own.
struct Kept {
  Pages pages;
  size_t wanted = 0;
  bool taken = false;
};
thread_local Kept kept;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// A forked child has none of the parent's OpenMP threads and may not start new ones.
std::atomic<bool> forked{false};
[[maybe_unused]] int const at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

Pages::Pages(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)  // to the byte, so that a step beyond its end is seen
  size_ = bytes;
  mapped_ = {std::aligned_alloc(kAlign, bytes), Release{}};
  data_ = static_cast<char*>(mapped_.get());
#else
  size_ = round_up(bytes, kHugePage);
  size_t const mapped_size = size_ + kHugePage;
  void* const mapped = mmap(nullptr, mapped_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TORCH_CHECK(mapped != MAP_FAILED, "rnnkern: no memory for ", bytes, " bytes of scratch");
  mapped_ = {mapped, Release{mapped_size}};
  data_ = reinterpret_cast<char*>(round_up(reinterpret_cast<uintptr_t>(mapped), kHugePage));
#ifdef MADV_HUGEPAGE
  if (bytes >= kHugePage) madvise(data_, size_, MADV_HUGEPAGE);
#endif
#endif
}

void Pages::Release::operator()(void* mapped) const {
#if defined(__SANITIZE_ADDRESS__)
  std::free(mapped);
#else
  munmap(mapped, size);
#endif
}

TorchCpuPlatform::~TorchCpuPlatform() {
  if (!holds_kept_) return;
  kept.taken = false;
  if (used_ <= kMostKept) kept.wanted = std::max(kept.wanted, used_);
}

void* TorchCpuPlatform::scratch(size_t bytes) {
  bytes = round_up(std::max<size_t>(bytes, 1), kAlign);
#if defined(__SANITIZE_ADDRESS__)
  return blocks_.emplace_back(bytes).data();
#endif
  used_ += bytes;
  if (!holds_kept_ && !kept.taken) {
    if (kept.wanted > kept.pages.size()) {
      kept.pages = Pages();
      kept.pages = Pages(kept.wanted);
    }
    holds_kept_ = kept.taken = true;
    next_ = kept.pages.data();
    left_ = kept.pages.size();
  }
  if (bytes > left_) {
    Pages const& block = blocks_.emplace_back(std::max(bytes, kBlock));
    next_ = block.data();
    left_ = block.size();
  }
  void* const here = next_;
  next_ += bytes;
  left_ -= bytes;
  return here;
}

int max_workers() {
#if AT_PARALLEL_OPENMP
  if (!forked && !at::in_parallel_region()) return at::get_num_threads();
#endif
  return 1;  // another pool does not promise that its tasks run at the same time
}

void TorchCpuPlatform::parallel(int wanted, const std::function<void(int worker, int workers)>& work) {
  wanted = std::min(wanted, max_workers());
  if (wanted <= 1) return work(0, 1);
  // OpenMP may grant fewer threads, and then hands several indices to one. Each waits until all indices are taken: by
  // then every thread that takes part has made itself known. If all were granted, a thread is the same worker in every
  // call, and finds in its caches what it left there.
  std::atomic<int> taken{0}, arrived{0};
  at::parallel_for(0, wanted, 1, [&](int64_t begin, int64_t end) {
    int const arrival = arrived.fetch_add(1);
    taken.fetch_add(int(end - begin));
    spin_until([&] { return taken.load() >= wanted; });
    int const workers = arrived.load();
    work(workers == wanted ? int(begin) : arrival, workers);
  });
}

}  // namespace rnnkern
