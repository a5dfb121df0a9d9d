// The `simd` kernels for any processor.
#include "region_headers.h"

#define RNNKERN_ISA portable
#define RNNKERN_VECTOR_BYTES 16
#include "kernels.h"

namespace rnnkern {
const SimdKernels portable_kernels{"portable", &portable::forward_any, &portable::backward_any, &portable_int8_forward};
}
