// What a core does at most: reading from a cache level, multiply-adds from registers, and passing a cache line to
// another core. Called through ctypes by floors.py, which compiles it for the machine that it runs on.

#include <atomic>
#include <chrono>
#include <cstddef>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kChains = 12;  // independent sums: enough to hide an addition's latency, few enough for 16 registers

typedef float Vector __attribute__((vector_size(kBytes)));

static float sum_of(const Vector* sums) {
  float total = 0;
  for (int k = 0; k < kChains; ++k)
    for (int i = 0; i < kBytes / 4; ++i) total += sums[k][i];
  return total;
}

// Reads `bytes` from `data` (aligned to 64), `repeats` times. A multiple of 768 bytes is read, no more than `bytes`.
extern "C" float read_all(const float* data, size_t bytes, size_t repeats) {
  Vector sums[kChains] = {};
  const size_t count = bytes / (kBytes * kChains) * kChains;
  for (size_t repeat = 0; repeat < repeats; ++repeat) {
    const Vector* vectors = reinterpret_cast<const Vector*>(data);
    asm volatile("" : "+r"(vectors)::"memory");  // the data may have changed: read it again
    for (size_t i = 0; i < count; i += kChains)
      for (int k = 0; k < kChains; ++k) sums[k] += vectors[i + k];
  }
  return sum_of(sums);
}

extern "C" size_t vector_bytes() { return kBytes; }

// Two threads, 0 and 1, give each other the turn `repeats` times; the nanoseconds until one sees that it has it. The
// first turns, when one may wait for the other to start, do not count.
extern "C" double take_turns(size_t thread, size_t repeats) {
  using Clock = std::chrono::steady_clock;
  alignas(128) static std::atomic<size_t> turn{0};
  const size_t first = thread + 20;
  Clock::time_point start;
  repeats += 10;
  for (size_t i = thread; i < 2 * repeats; i += 2) {
    if (i == first) start = Clock::now();
    while (turn.load(std::memory_order_acquire) != i) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    turn.store(i + 1 < 2 * repeats ? i + 1 : 0, std::memory_order_release);
  }
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count() / (2 * (repeats - 10));
}

// `repeats` times kChains multiply-adds of one vector each.
extern "C" float multiply_add(size_t repeats) {
  Vector sums[kChains] = {};
  Vector factor = {}, term = {};
  factor += 0.5f;
  term += 1.0f;
  asm volatile("" : "+x"(factor), "+x"(term));            // unknown to the compiler,
  for (Vector& sum : sums) asm volatile("" : "+x"(sum));  // and so are the chains, or it finds some to be the same
  for (size_t repeat = 0; repeat < repeats; ++repeat)
    for (int k = 0; k < kChains; ++k) sums[k] = sums[k] * factor + term;
  return sum_of(sums);
}
