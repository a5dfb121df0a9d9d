// The `simd` kernels with int8 weights for AVX-512 with VNNI.
#include "region_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#define RNNKERN_ISA avx512_int8
#define RNNKERN_VECTOR_BYTES 64
#include "int8_kernels.h"
#pragma GCC pop_options

namespace rnnkern {
void avx512_int8_forward(const Problem& problem, const Group* groups, const Int8Group* weights, int count,
                         const Sharing& sharing, CpuPlatform& platform) {
  avx512_int8::int8_forward_any(problem, groups, weights, count, sharing, platform);
}
}  // namespace rnnkern
#endif
