// How threads that all run wait for each other: they spin, and give the processor up when others are not scheduled.
#pragma once

#include <algorithm>
#include <atomic>
#include <thread>

namespace rnnkern {

constexpr int kSpins = 4000;

// Whether `spins` rounds were enough.
template <class Condition>
bool spin_until(Condition condition, int spins = kSpins) {
  for (; spins > 0; --spins) {
    if (condition()) return true;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  while (!condition()) std::this_thread::yield();
  return false;
}

class Barrier {
 public:
  // Every one of `workers` threads calls it with that number.
  void wait(int workers) {
    if (workers == 1) return;
    unsigned const round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    // With more threads than processors every wait would spin in vain.
    int const spins = spins_.load(std::memory_order_relaxed);
    if (!spin_until([&] { return round_.load(std::memory_order_acquire) != round; }, spins))
      spins_.store(std::max(spins / 2, kSpins / 64), std::memory_order_relaxed);
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
  std::atomic<int> spins_{kSpins};
};

}  // namespace rnnkern
