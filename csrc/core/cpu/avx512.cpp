// The `simd` kernels for AVX512.
#include "region_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define RNNKERN_ISA avx512
#define RNNKERN_VECTOR_BYTES 64
#include "kernels.h"
#pragma GCC pop_options

namespace rnnkern {
const SimdKernels avx512_kernels{"avx512", &avx512::forward_any, &avx512::backward_any, &avx512_int8_forward};
}
#endif
