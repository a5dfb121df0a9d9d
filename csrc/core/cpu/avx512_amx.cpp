// The `simd` kernels for AVX512 with Intel's matrix unit, AMX, for bfloat16.
#include "region_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define RNNKERN_ISA avx512_amx
#define RNNKERN_VECTOR_BYTES 64
#define RNNKERN_BF16_DOT
#define RNNKERN_MATRIX_UNIT
#include "kernels.h"
#pragma GCC pop_options

namespace rnnkern {
const SimdKernels avx512_amx_kernels{"avx512_amx", &avx512_amx::forward_any, &avx512_amx::backward_any,
                                     &avx512_int8_forward};
}
#endif
