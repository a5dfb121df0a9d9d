// The `simd` kernels with int8 weights for any processor.
#include "region_headers.h"

#define RNNKERN_ISA portable_int8
#define RNNKERN_VECTOR_BYTES 16
#include "int8_kernels.h"

namespace rnnkern {
void portable_int8_forward(const Problem& problem, const Group* groups, const Int8Group* weights, int count,
                           const Sharing& sharing, CpuPlatform& platform) {
  portable_int8::int8_forward_any(problem, groups, weights, count, sharing, platform);
}
}  // namespace rnnkern
