// Marks a function that runs on the host and, when nvcc compiles it, on the device too.
#pragma once

#if defined(__CUDACC__)
#define RNNKERN_HD __host__ __device__ __forceinline__
#else
#define RNNKERN_HD inline __attribute__((always_inline))
#endif
