// The `simd` kernels for AVX512 with dot products of bfloat16.
#include "region_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define RNNKERN_ISA avx512_bf16
#define RNNKERN_VECTOR_BYTES 64
#define RNNKERN_BF16_DOT
#include "kernels.h"
#pragma GCC pop_options

namespace rnnkern {
const SimdKernels avx512_bf16_kernels{"avx512_bf16", &avx512_bf16::forward_any, &avx512_bf16::backward_any,
                                      &avx512_int8_forward};
}
#endif
