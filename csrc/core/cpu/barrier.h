// How threads that all run wait for each other: they spin, and give the processor up when others are not scheduled.
#pragma once

#include <atomic>
#include <thread>

namespace rnnkern {

template <class Condition>
void spin_until(Condition condition) {
  for (int spins = 0; !condition();) {
    if (spins < 4000) {
      ++spins;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      std::this_thread::yield();
    }
  }
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
    spin_until([&] { return round_.load(std::memory_order_acquire) != round; });
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

}  // namespace rnnkern
