// The `simd` kernels for AVX2.
#include "region_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define RNNKERN_ISA avx2
#define RNNKERN_VECTOR_BYTES 32
#include "kernels.h"
#pragma GCC pop_options

namespace rnnkern {
const SimdKernels avx2_kernels{"avx2", &avx2::forward_any, &avx2::backward_any, &avx2_int8_forward};
}
#endif
