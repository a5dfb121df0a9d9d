// The `simd` kernels with int8 weights for AVX2.
#include "region_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define RNNKERN_ISA avx2_int8
#define RNNKERN_VECTOR_BYTES 32
#include "int8_kernels.h"
#pragma GCC pop_options

namespace rnnkern {
void avx2_int8_forward(const Problem& problem, const Group* groups, const Int8Group* weights, int count,
                       const Sharing& sharing, CpuPlatform& platform) {
  avx2_int8::int8_forward_any(problem, groups, weights, count, sharing, platform);
}
}  // namespace rnnkern
#endif
