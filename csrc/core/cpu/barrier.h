// A barrier for threads that all run: spins, and gives the processor up when the others are not scheduled.
#pragma once

#include <atomic>
#include <thread>

namespace rnnkern {

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
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < 4000) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

}  // namespace rnnkern
