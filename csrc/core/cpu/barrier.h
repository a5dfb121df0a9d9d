// How threads that all run wait for each other: they spin, and give the processor up when others are not scheduled.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>
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

// By dissemination (Hensgen, Finkel and Manber 1988): in round r each worker tells the one 2^r places on that it, and
// all that it has heard of, have arrived. Each line has one writer and one reader, and nobody waits for more than
// log2(workers) messages one after the other, where a counter goes round all workers; with more workers than
// processors, though, each of those may wait for the scheduler.
class Barrier {
 public:
  struct alignas(64) Line {
    std::atomic<unsigned> arrivals{0};  // that its reader has been told of; its own: how often it came
    int spins = kSpins;
    char gap[120];  // prefetchers take lines in pairs
  };
  static int lines(int workers) { return workers > 1 ? workers * (rounds(workers) + 1) : 0; }

  // Memory for lines(workers); then at most so many call wait().
  Barrier(Line* lines, int workers) : lines_(lines), pitch_(workers) {
    for (int i = 0; i < Barrier::lines(workers); ++i) new (&lines[i]) Line;
  }

  // Each of `workers` threads calls it with these numbers.
  void wait(int worker, int workers) {
    if (workers == 1) return;
    Line& own = lines_[worker];
    unsigned const now = own.arrivals.load(std::memory_order_relaxed) + 1;
    own.arrivals.store(now, std::memory_order_relaxed);
    Line* round = lines_ + pitch_;
    for (int distance = 1; distance < workers; distance *= 2, round += pitch_) {
      int const next = worker + distance;
      round[next < workers ? next : next - workers].arrivals.store(now, std::memory_order_release);
      auto const& told = round[worker].arrivals;
      // With more threads than processors every wait would spin in vain.
      if (!spin_until([&] { return int(told.load(std::memory_order_acquire) - now) >= 0; }, own.spins))
        own.spins = std::max(own.spins / 2, kSpins / 64);
    }
  }

 private:
  static int rounds(int workers) {
    int count = 0;
    for (int distance = 1; distance < workers; distance *= 2) ++count;
    return count;
  }

  Line* const lines_;
  int const pitch_;
};

}  // namespace rnnkern
