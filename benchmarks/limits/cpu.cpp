// What one core does at most: reading from a cache level, and multiply-adds from registers. Called through ctypes by
// floors.py, which compiles it for the machine that it runs on and takes the time.

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
